"""What study scripts and the command line share: options with one meaning each, and errors of one line.

A study declares its options with these names, so that ``--trials``, ``--seed`` or ``--fresh`` mean
the same in every study and read the same in every ``--help``.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import MoesimError

Trials = Annotated[
    int, typer.Option(help="Trials in all, those of earlier runs in --out included.")
]
Screen = Annotated[
    int, typer.Option(help="Points that the bound engine looks at first; 0: none.", min=0)
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Out = Annotated[Path, typer.Option(help="Output folder.")]
Workers = Annotated[int, typer.Option(help="Processes that work at the same time.", min=1)]
Executor = Annotated[
    str | None, typer.Option(help="dask://HOST:PORT: evaluate trials on a Dask cluster.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard what the output folder holds.")]
Quick = Annotated[bool, typer.Option("--quick", help="A small version of the study, for a test.")]
RoutingText = Annotated[str, typer.Option("--routing", help="Distribution of load over experts.")]
EconomicsName = Annotated[
    str, typer.Option("--economics", help="Cost and power model: a name or a file.")
]


def run_command(command: Callable[[], object]) -> None:
    """Run a command and turn errors that a user can mend into one line.

    Args:
        command: The function to call, without arguments.

    Raises:
        SystemExit: The command failed; exit code 2 with one line on stderr, or 130 after Ctrl-C.
    """
    try:
        command()
    except MoesimError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print(
            "interrupted: finished trials are kept; the same command continues", file=sys.stderr
        )
        raise SystemExit(130) from None


def run_script(function: Callable[..., object]) -> None:
    """Run a study's main function as a command of its own, with the same rules.

    Args:
        function: The function whose annotated parameters are the options.

    Raises:
        SystemExit: The study failed, as in `run_command`.
    """
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command()(function)
    run_command(script)
