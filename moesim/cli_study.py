"""``moesim study run | status | worker | export``: search a space, look at a search, join one, take its winners out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import UnknownNameError

study_app = typer.Typer(no_args_is_help=True, help="Search designs: run a study, look at it, join it.")
_Storage = Annotated[str | None, typer.Option(
    help="Storage that several processes share, such as postgresql://USER:PASSWORD@HOST/NAME; default: the output "
         "folder's journal.")]
_Executor = Annotated[str | None, typer.Option(help="dask://HOST:PORT: evaluate on a Dask cluster.")]
_Workers = Annotated[int, typer.Option(help="Processes that evaluate.")]


@study_app.command()
def run(
    file: Annotated[Path, typer.Argument(help="TOML file with cluster, objectives, [workload] and [space].")],
    trials: Annotated[int, typer.Option(help="Trials in all, those of earlier runs included.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of search and routing.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("studies/out/study"),
    storage: _Storage = None,
    workers: _Workers = 1,
    executor: _Executor = None,
    sampler: Annotated[str, typer.Option(help="auto, random, tpe, nsga2 or gp.")] = "auto",
    screen: Annotated[int, typer.Option(help="Points that the bound engine looks at first; 0: none.", min=0)] = 0,
    confirm: Annotated[int, typer.Option(help="Winners to simulate again with the event engine.", min=0)] = 8,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the storage holds.")] = False,
    warm_start: Annotated[bool, typer.Option(
        "--warm-start", help="Try published models that are points of the space first.")] = False,
) -> None:
    """Search a space described in a TOML file; writes trials.csv, pareto.csv, importance.csv and winners.csv."""
    from moesim.search.known import known_points
    from moesim.search.studyfile import load_study_file

    described = load_study_file(file, seed)
    known = known_points(described.space, described.cluster) if warm_start else []
    _run(described.space, described.cluster, described.workload, objectives=described.objectives,
         constraints=described.constraints, economics=described.economics, num_trials=trials, seed=seed, out=out,
         storage=storage or out, num_workers=workers, executor=executor, sampler=sampler, screen=screen,
         confirm=confirm, fresh=fresh, enqueue=known)


def _run(*args: Any, out: Path, screen: int, confirm: int, **options: Any) -> None:
    from moesim.report.tables import writable_folder, write_csv
    from moesim.report.terminal import say
    from moesim.search.watch import confirmed_rows, say_fidelity, watched_study, write_study

    writable_folder(out)
    found = watched_study(*args, screen=screen, **options)
    write_study(found, out)
    if screen:
        say_fidelity(found)
    if confirm:
        rows = confirmed_rows(found, confirm)
        write_csv(out / "winners.csv", rows)
        say(f"{len(rows)} winners simulated again with the event engine -> {out}/winners.csv")


@study_app.command()
def worker(
    storage: Annotated[str, typer.Option(help="URL of the storage that the study began in.")],
    trials: Annotated[int, typer.Option(help="Trials at which to stop, those of all processes together.")] = 500,
    member: Annotated[int, typer.Option(help="Number of this process, another for each; default: drawn.")] = 0,
    workers: _Workers = 1,
    executor: _Executor = None,
) -> None:
    """Join a study that another process or machine began in a shared storage: nothing but its URL is needed."""
    import secrets

    from moesim.report.terminal import say
    from moesim.search.join import joined_options
    from moesim.search.watch import counts_of, watched_study

    args, options = joined_options(storage)
    found = watched_study(*args, **options, num_trials=trials, storage=storage, num_workers=workers, executor=executor,
                          member=member or secrets.randbelow(1 << 20) + 1)
    say(f"{len(found.trials)} trials in the storage: "
        + ", ".join(f"{count} {state}" for state, count in counts_of(found.trials).items() if count))


@study_app.command()
def status(
    where: Annotated[str, typer.Argument(help="Output folder of a study, or the URL of its storage.")],
) -> None:
    """What a study has found so far; others may be writing to it."""
    from moesim.report.terminal import print_table
    from moesim.search.join import status_rows

    print_table(f"Study in {where.rpartition('@')[2]}", status_rows(where), ["what", "value"])


@study_app.command()
def export(
    where: Annotated[str, typer.Argument(help="Output folder of a study, or the URL of its storage.")],
    layout: Annotated[str, typer.Option("--format", help="placement-json, sglang or vllm.")] = "placement-json",
    rank: Annotated[int, typer.Option(help="Winner, a row of pareto.csv.")] = 0,
    model: Annotated[str, typer.Option(help="Checkpoint named in the command.")] = "$MODEL",
    out: Annotated[Path, typer.Option(help="Map to write.")] = Path("placement.json"),
) -> None:
    """Write a winner's physical-to-logical map; for sglang and vllm also print the command that starts them so."""
    from moesim.placement.files import write_text
    from moesim.report.terminal import say
    from moesim.search.export import FORMATS, launch_lines, winner_of, winner_text
    from moesim.search.join import load_study

    if layout not in FORMATS:
        raise UnknownNameError("export format", layout, FORMATS)
    winner = winner_of(load_study(where), rank)
    lines = [] if layout == "placement-json" else launch_lines(winner, layout, str(out), model)
    write_text(out, winner_text(winner, layout))
    for line in lines:
        print(line)
    say(f"wrote {out}: {winner.num_layers} layers of {winner.placement.num_slots} slots on "
        f"{winner.placement.num_ranks} ranks, {winner.candidate.label}")
