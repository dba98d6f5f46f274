"""Start the ``moesim`` command, which loads when it can already be interrupted in one line."""

from moesim.cli.command import run_command


def main() -> None:
    """Run the ``moesim`` command.

    Raises:
        SystemExit: At its end; see `moesim.cli.command.run_command`.
    """
    run_command(_root)


def _root() -> None:
    from moesim.cli.root import app
    from moesim.cli.script import run_app

    run_app(app)


__all__ = ["main"]
