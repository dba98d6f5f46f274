"""Options and one-line errors that the study scripts and the command line share.

A study declares its options with these names, so that ``--trials``, ``--seed`` or ``--fresh`` mean
the same in every study and read the same in every ``--help``.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.command import run_command
from moesim.cli.options import parameters_of, with_parameters
from moesim.cli.output import with_output
from moesim.errors import one_line
from moesim.files.addresses import masked_text

if TYPE_CHECKING:
    from moesim.search import Study

#: what Typer raises for options that it refuses; newer versions bring Click along, older import it
_REFUSAL: Any = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException")

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
Sampler = Annotated[
    str, typer.Option(help="auto (by the number of trials), every, random, tpe, nsga2 or gp.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard what the output folder holds.")]
Quick = Annotated[bool, typer.Option("--quick", help="A small version of the study, for a test.")]
RoutingText = Annotated[str, typer.Option("--routing", help="Distribution of load over experts.")]
EconomicsName = Annotated[
    str, typer.Option("--economics", help="Cost and power model: a name or a file.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """The options that every study with a search has; see `run_search`.

    Attributes:
        trials: Total number of trials, including those of earlier runs.
        screen: Number of points that the bound engine looks at before the search begins.
        seed: Seed of the search and of the routing.
        workers: Number of processes that evaluate trials.
        executor: Address of a Dask cluster that evaluates the trials instead.
        quick: Whether to run a small version that takes seconds, for the tests.
        sampler: What proposes points; ``auto`` goes by the number of trials.
        fresh: Whether to discard what the output folder holds.
        out: Output folder; None lets the study choose.
    """

    trials: Trials
    screen: Screen
    seed: Seed
    workers: Workers
    executor: Executor
    quick: Quick
    sampler: Sampler
    fresh: Fresh
    out: Annotated[Path | None, typer.Option(help="Output folder.")]

    def reduced(self, *, trials: int, screen: int) -> "SearchOptions":
        """Return these options with fewer trials and screened points, and with one worker.

        Args:
            trials: Maximum number of trials.
            screen: Maximum number of screened points.
        """
        return replace(
            self, trials=min(self.trials, trials), screen=min(self.screen, screen), workers=1
        )

    def search(self, *problem: Any, storage: Path, **more: Any) -> "Study":
        """Run the study with these options and a progress bar on stderr.

        Args:
            *problem: Space, cluster and workload.
            storage: Output folder.
            **more: Further arguments of `moesim.search.run_study`, such as the objectives.

        Raises:
            MoesimError: `moesim.search.run_study` refuses the problem or an option.
        """
        from moesim.engines.ahead import compile_ahead
        from moesim.report.terminal import say
        from moesim.search.session.watch import watched_study

        # a search is silent until its first trial
        first = f"up to {self.screen:,} points by their bound, then " if self.screen else ""
        say(f"searching: {first}up to {self.trials:,} trials in {self.workers} processes")
        if self.screen:  # which needs other engines than the trials after it
            compile_ahead()
        return watched_study(
            *problem,
            storage=storage,
            num_trials=self.trials,
            screen=self.screen,
            seed=self.seed,
            num_workers=self.workers,
            executor=self.executor,
            sampler=self.sampler,
            fresh=self.fresh,
            **more,
        )


def run_search(
    function: Callable[..., object],
    *,
    trials: int,
    screen: int,
    workers: int = 2,
    out: Path | None = None,
) -> None:
    """Run the main function of a study with a search: `run_script` with `SearchOptions`.

    Args:
        function: The function; its first parameter takes the `SearchOptions`, and the others are
            options of this study alone.
        trials: Default of ``--trials``.
        screen: Default of ``--screen``.
        workers: Default of ``--workers``.
        out: Default of ``--out``.

    Raises:
        SystemExit: The study failed; see `run_command`.
    """
    defaults: dict[str, Any] = {"trials": trials, "screen": screen, "workers": workers, "out": out}
    defaults |= {"seed": 0, "executor": None, "quick": False, "sampler": "auto"}
    defaults["fresh"] = False
    names = [field.name for field in fields(SearchOptions)]
    described = signature(function, eval_str=True)
    own = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in list(described.parameters.values())[1:]]

    def command(**given: Any) -> None:
        function(SearchOptions(**{name: given.pop(name) for name in names}), **given)

    with_parameters(command, [*own, *parameters_of(SearchOptions, defaults)], function)
    run_script(command)


def run_app(app: typer.Typer) -> None:
    """Run a Typer application with the error handling of `run_command`; what it refuses of its
    options is one line, too.

    Args:
        app: The application.

    Raises:
        SystemExit: At its end, with its exit code.
    """
    try:
        code = typer.main.get_command(app)(standalone_mode=False)
    except typer.Abort:
        raise SystemExit(1) from None
    except _REFUSAL as error:
        said = error.format_message().rstrip(".")
        # by its name: versions of Typer have the class in different places
        if type(error).__name__ == "NoArgsIsHelpError":  # no command was named: the help
            error.show()
        else:
            asked = getattr(error, "ctx", None)
            hint = f"; see {asked.command_path} --help" if asked else ""
            print(one_line(masked_text(f"error: {said}{hint}")), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def run_script(function: Callable[..., object]) -> None:
    """Run a study's main function as a command, with the error handling of `run_command`.

    Args:
        function: The function whose annotated parameters are the options.

    Raises:
        SystemExit: The study failed; see `run_command`.
    """
    script = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    script.command()(with_output(function))
    run_command(lambda: run_app(script))
