"""The ``moesim`` command."""

from moesim.cli.root import main, run_script

__all__ = ["main", "run_script"]
