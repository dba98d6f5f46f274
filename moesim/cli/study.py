"""``moesim study run | status | worker | export``: search a space, inspect a search, join one, and
export its winners.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import takes
from moesim.cli.script import Sampler
from moesim.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from moesim.search.study import Study

study_app = typer.Typer(
    no_args_is_help=True, help="Search designs: run a study, look at it, join it."
)
_Storage = Annotated[
    str | None,
    typer.Option(
        help="Storage that several processes share, such as "
        "postgresql://USER:PASSWORD@HOST/NAME; default: the output folder's journal."
    ),
]
_Executor = Annotated[
    str | None, typer.Option(help="dask://HOST:PORT: evaluate on a Dask cluster.")
]
_Workers = Annotated[int, typer.Option(help="Processes that evaluate.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRunOptions:
    """The options of moesim study run."""

    file: Annotated[
        Path, typer.Argument(help="TOML file with cluster, objectives, \\[workload] and \\[space].")
    ]
    trials: Annotated[int, typer.Option(help="Trials in all, those of earlier runs included.")] = (
        500
    )
    seed: Annotated[int, typer.Option(help="Seed of search and routing.")] = 0
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("studies/out/study")
    storage: _Storage = None
    workers: _Workers = 1
    executor: _Executor = None
    sampler: Sampler = "auto"
    screen: Annotated[
        int, typer.Option(help="Points that the bound engine looks at first; 0: none.", min=0)
    ] = 0
    confirm: Annotated[
        int, typer.Option(help="Winners to simulate again with the event engine.", min=0)
    ] = 8
    lenient: Annotated[
        bool,
        typer.Option(
            "--lenient",
            help="Read the file of dense_part even where keys contradict or are not understood.",
        ),
    ] = False
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the storage holds.")] = False
    warm_start: Annotated[
        bool,
        typer.Option(
            "--warm-start", help="Try published models that are points of the space first."
        ),
    ] = False


@study_app.command()
@takes(StudyRunOptions)
def run(given: StudyRunOptions) -> None:
    """Search a space described in a TOML file; writes trials, pareto, importance and winners .csv,
    and the page report.html.
    """
    from moesim.files.output import check_folder
    from moesim.page.write import write_report
    from moesim.report.answer import print_answer
    from moesim.report.terminal import say
    from moesim.search.session.findings import show_findings
    from moesim.search.session.known import known_points
    from moesim.search.session.studyfile import load_study_file
    from moesim.search.session.watch import watched_study

    described = load_study_file(given.file, given.seed, lenient=given.lenient)
    for note in described.space.notes():
        say(f"assumed: {note}")
    known = known_points(described.space, described.cluster) if given.warm_start else []
    check_folder(given.out)
    found = watched_study(
        described.space,
        described.cluster,
        described.workload,
        objectives=described.objectives,
        constraints=described.constraints,
        economics=described.economics,
        num_trials=given.trials,
        seed=given.seed,
        storage=given.storage or given.out,
        num_workers=given.workers,
        executor=given.executor,
        sampler=given.sampler,
        screen=given.screen,
        fresh=given.fresh,
        enqueue=known,
    )
    show_findings(found, given.out, limit=given.confirm, title=given.file.stem)
    print_answer(write_report(given.out, found, storage=given.storage).answer)


@study_app.command()
def worker(
    storage: Annotated[str, typer.Option(help="URL of the storage that the study began in.")],
    trials: Annotated[
        int, typer.Option(help="Trials at which to stop, those of all processes together.")
    ] = 500,
    member: Annotated[
        int, typer.Option(help="Number of this process, another for each; default: drawn.")
    ] = 0,
    workers: _Workers = 1,
    executor: _Executor = None,
) -> None:
    """Join a study that another process or machine began in a shared storage; only its URL is
    needed.
    """
    import secrets

    from moesim.report.terminal import say
    from moesim.search.session.join import joined_options
    from moesim.search.session.watch import counts_of, watched_study

    args, options = joined_options(storage)
    found = watched_study(
        *args,
        **options,
        num_trials=trials,
        storage=storage,
        num_workers=workers,
        executor=executor,
        member=member or secrets.randbelow(1 << 20) + 1,
    )
    say(
        f"{len(found.trials)} trials in the storage: "
        + ", ".join(f"{count} {state}" for state, count in counts_of(found.trials).items() if count)
    )


@study_app.command()
def status(
    where: Annotated[
        str, typer.Argument(help="Output folder of a study, or the URL of its storage.")
    ],
) -> None:
    """Show what a study has found so far; other processes may still be writing to it."""
    from moesim.report.answer import print_answer
    from moesim.report.terminal import print_table
    from moesim.search.session.answer import study_answer
    from moesim.search.session.join import load_study, status_rows

    study = load_study(where)
    print_table(f"Study in {where.rpartition('@')[2]}", status_rows(study), ["what", "value"])
    print_answer(study_answer(study))


@study_app.command()
def export(
    where: Annotated[
        str, typer.Argument(help="Output folder of a study, or the URL of its storage.")
    ],
    layout: Annotated[
        str | None,
        typer.Option("--format", help="Of a map: placement-json (the default), sglang or vllm."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Winner, a row of pareto.csv.")] = 0,
    model: Annotated[str, typer.Option(help="Checkpoint named in the command.")] = "$MODEL",
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: placement.json, launch.sh or train.toml."),
    ] = None,
) -> None:
    """Write a winner's expert map, with the command for sglang and vllm; of a whole model the
    commands that serve it; of a training run the options of moesim train.
    """
    from moesim.search.evaluate import Problem
    from moesim.search.serving_problem import ServingProblem
    from moesim.search.session.export import FORMATS
    from moesim.search.session.join import load_study

    if layout is not None and layout not in FORMATS:
        raise UnknownNameError("export format", layout, FORMATS)
    study = load_study(where)
    if isinstance(study.problem, Problem):
        _export_map(study, layout or "placement-json", rank, model, out or Path("placement.json"))
        return
    if layout is not None:
        raise ConfigError(
            f"format: expected none, since whole models have no map of experts to write, got "
            f"{layout}"
        )
    if isinstance(study.problem, ServingProblem):
        _export_serving(study, rank, model, out or Path("launch.sh"))
    else:
        _export_training(study, rank, out or Path("train.toml"))


def _export_serving(study: "Study", rank: int, model: str, out: Path) -> None:
    from moesim.placement.files import write_text
    from moesim.report.terminal import say, tell_command
    from moesim.search.session.export_whole import serving_text

    text = serving_text(study, rank, model)
    write_text(out, text)
    tell_command(text)
    say(f"wrote {out}")


def _export_training(study: "Study", rank: int, out: Path) -> None:
    from moesim.placement.files import write_text
    from moesim.report.terminal import say, tell_command
    from moesim.search.session.export_whole import (
        training_command,
        training_options,
        training_text,
    )

    options = training_options(study, rank)
    write_text(out, training_text(options))
    tell_command(training_command(options))
    say(f"wrote {out}")


def _export_map(study: "Study", layout: str, rank: int, model: str, out: Path) -> None:
    from moesim.placement.files import write_text
    from moesim.report.terminal import say, tell_command
    from moesim.search.session.export import launch_lines, winner_of, winner_text

    winner = winner_of(study, rank)
    lines = [] if layout == "placement-json" else launch_lines(winner, layout, str(out), model)
    write_text(out, winner_text(winner, layout))
    for line in lines:
        tell_command(line)
    say(
        f"wrote {out}: {winner.num_layers} layers of {winner.placement.num_slots} slots on "
        f"{winner.placement.num_ranks} ranks, {winner.candidate.label}"
    )
