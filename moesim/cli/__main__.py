"""``python -m moesim.cli`` is the ``moesim`` command."""

from moesim.cli.root import main

main()
