"""``moesim operate``: days of training or serving with failures, and growth over months."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import TraceOut, check_trace, takes, write_trace_of
from moesim.errors import ConfigError
from moesim.limits import MOST_SEEDS

if TYPE_CHECKING:
    from moesim.operations.plan_file import PlanFile
    from moesim.operations.text import Line

_INDENT = 12
_POINTS = {
    "way": "checkpoints, copies, spares",
    "samples_per_device_hour": "samples/dev-h",
    "ettr": "ETTR",
    "lost_steps": "lost steps",
    "interruptions": "stops",
}
_STAGES = {
    "month": "month",
    "num_experts": "experts",
    "devices": "devices",
    "memory_gib": "GiB/dev",
    "moved_gib": "moved GiB",
    "downtime_s": "down s",
    "loss": "loss",
    "loss_low": "low",
    "loss_high": "high",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperateOptions:
    """The options of moesim operate."""

    plan: Annotated[
        Path, typer.Option(help="TOML file with [job], [serving] or [growth], and [failures].")
    ]
    seed: Annotated[int, typer.Option(help="Seed of the failures.", min=0)] = 0
    seeds: Annotated[int, typer.Option(help="Seeds, from --seed on.", min=1, max=MOST_SEEDS)] = 1
    search: Annotated[
        int, typer.Option(help="Ways to run the job that are tried; 0: the plan alone.", min=0)
    ] = 0
    out: Annotated[Path | None, typer.Option(help="Folder for CSV files and figures.")] = None
    trace: TraceOut = None


@takes(OperateOptions)
def operate(given: OperateOptions) -> None:
    """Operate a job for days: failures, checkpoints, copies of experts, spares; or let it grow."""
    from moesim.files.output import check_folder
    from moesim.operations.plan_file import read_plan

    plan = read_plan(given.plan)
    if given.search and plan.job is None:
        raise ConfigError(f"--search: expected a plan with [job], got {given.plan.name}")
    if given.trace is not None and (given.search or plan.growth is not None):
        raise ConfigError("--trace: expected days of one plan with [job] or [serving], got others")
    check_trace(given.trace)
    if given.out is not None:
        check_folder(given.out)
    if plan.growth is not None:
        _grow(given, plan)
    elif plan.serving is not None:
        _serve(given, plan)
    elif given.search:
        _search(given, plan)
    else:
        _train(given, plan)


def _train(given: OperateOptions, plan: "PlanFile") -> None:
    from dataclasses import replace

    from moesim.operations.answer import days_answer
    from moesim.operations.failure_draws import check_runs
    from moesim.operations.plan import named, planned_training
    from moesim.operations.replication import ReplicationPolicy
    from moesim.operations.text import days_lines, setting_lines
    from moesim.operations.training_days import simulate_days
    from moesim.report.answer import print_answer

    where = given.plan.name
    setting = planned_training(plan, where)
    with named(where):
        check_runs(setting.causes, setting.job.topology, setting.days, given.seeds)
        _say(setting_lines(setting))
        seeds = range(given.seed, given.seed + given.seeds)
        draws = {seed: setting.draws(seed) for seed in seeds}
        results = [simulate_days(setting, seed, draws[seed]) for seed in seeds]
    _say(days_lines(setting, results))
    if setting.replication.degree:
        without = replace(setting, replication=ReplicationPolicy())
        ratios = [simulate_days(without, seed, draws[seed]).ettr for seed in seeds]
        _say([("no copies", f"ETTR {sum(ratios) / len(ratios):.4f} with the same failures")])
    first = results[0]
    _write(
        given.out,
        {
            "days": [result.row() for result in results],
            "events": [event.row() for event in first.events],
            "downtime": first.downtime_rows(),
        },
        ("down_s", f"Days of training, seed {given.seed}: seconds that the job stood"),
    )
    if given.trace is not None:
        from moesim.timeline.days import days_sheet

        write_trace_of(given.trace, days_sheet(first))
    print_answer(days_answer(setting, results))


def _search(given: OperateOptions, plan: "PlanFile") -> None:
    from moesim.operations.answer import search_answer
    from moesim.operations.failure_draws import check_runs
    from moesim.operations.plan import named, planned_training
    from moesim.operations.plan_search import search_plan
    from moesim.operations.text import point_text, setting_lines
    from moesim.report.answer import print_answer
    from moesim.report.terminal import print_table

    where = given.plan.name
    setting = planned_training(plan, where)
    with named(where):
        runs = given.search * given.seeds
        check_runs(setting.causes, setting.job.topology, setting.days, runs)
        _say(setting_lines(setting))
        points = search_plan(setting, plan.search, given.search, seeds=given.seeds, seed=given.seed)
    rows = [point.row() for point in points]
    told = [{"way": _way(row)} | row for row in rows]
    print_table(f"The best of {len(points)} ways, same failures", told, _POINTS, limit=8)
    as_written = next(point for point in points if point.setting is setting)
    _say([("plan", point_text(as_written)), ("best", point_text(points[0]))])
    _write(given.out, {"points": rows}, None)
    print_answer(search_answer(points, as_written))


def _way(row: dict[str, Any]) -> str:
    """Return the choices of a way to run a job."""
    copies, every = row["replication_degree"], row["replication_interval_steps"]
    return ", ".join(
        [
            f"every {row['checkpoint_interval_s']:,.0f} s",
            f"{copies} x copied each {every} steps" if copies else "no copies",
            f"{row['spare_nodes']} spares",
            "elastic" if row["elastic"] else "waiting",
        ]
    )


def _serve(given: OperateOptions, plan: "PlanFile") -> None:
    from moesim.operations.answer import serving_days_answer
    from moesim.operations.failure_draws import check_runs
    from moesim.operations.plan import named
    from moesim.operations.plan_serving import planned_serving
    from moesim.operations.serving_days import simulate_serving_days
    from moesim.operations.text import serving_lines
    from moesim.report.answer import print_answer

    setting = planned_serving(plan, given.plan.name)
    with named(given.plan.name):
        check_runs(setting.causes, setting.topology, setting.days, given.seeds)
        seeds = range(given.seed, given.seed + given.seeds)
        results = [simulate_serving_days(setting, seed) for seed in seeds]
        _say(serving_lines(setting, results[0]))
    tables = {
        "days": [result.row() for result in results],
        "events": [event.row() for event in results[0].events],
    }
    title = f"Days of serving, seed {given.seed}: tokens/s after each event"
    _write(given.out, tables, ("tokens_per_s", title))
    if given.trace is not None:
        from moesim.timeline.days import serving_days_sheet

        write_trace_of(given.trace, serving_days_sheet(results[0]))
    print_answer(serving_days_answer(setting, results))


def _grow(given: OperateOptions, plan: "PlanFile") -> None:
    from moesim.operations.answer import growth_answer
    from moesim.operations.growth import grow, saved_device_hours
    from moesim.operations.plan import named
    from moesim.operations.plan_serving import planned_growth
    from moesim.report.answer import print_answer
    from moesim.report.terminal import print_table

    with named(given.plan.name):
        stages = grow(planned_growth(plan, given.plan.name))
    rows = [stage.row() for stage in stages]
    print_table(f"Growth of {plan.growth.model if plan.growth else ''}", rows, _STAGES)
    saved = 100 * saved_device_hours(stages)
    _say([("saved", f"{saved:.1f} % of the device-hours of the last stage from the beginning")])
    _write(given.out, {"stages": rows}, None)
    print_answer(growth_answer(stages))


def _say(lines: "list[Line]") -> None:
    from moesim.report.terminal import tell

    for word, text in lines:
        tell(f"{word:<{_INDENT}}{text}", indent=_INDENT)


def _write(
    folder: Path | None, tables: dict[str, list[dict[str, object]]], drawn: tuple[str, str] | None
) -> None:
    """Write tables, and the timeline of their events with a column and a title."""
    from moesim.report.document import record
    from moesim.report.plots.fidelity import write_html
    from moesim.report.plots.operations import timeline
    from moesim.report.tables import write_csv
    from moesim.report.terminal import say

    record(tables)
    if folder is None:
        return
    for name, rows in tables.items():
        write_csv(folder / f"{name}.csv", rows)
    names = [f"{name}.csv" for name in tables]
    if drawn is not None:
        column, title = drawn
        chart = timeline(tables["events"], height=column, title=title)
        write_html(folder / "timeline.html", chart)
        names.append("timeline.html")
    say(f"wrote {', '.join(names)} in {folder}")
