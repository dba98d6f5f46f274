"""The ``moesim`` command."""

from moesim.cli.start import main

__all__ = ["main"]
