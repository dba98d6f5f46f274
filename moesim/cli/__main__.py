"""``python -m moesim.cli`` is the ``moesim`` command."""

from moesim.cli import main

main()
