"""Run the ``moesim`` command as ``python -m moesim``."""

from moesim.cli.root import main

if __name__ == "__main__":
    main()
