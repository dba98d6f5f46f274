"""``moesim recommend``: what to serve a model with, or with what parallelism, placement, replicas
and format to run its MoE layers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.cli.options import model_of, say_notes, takes
from moesim.cli.recommend_options import RecommendOptions
from moesim.cli.recommend_serving import asks_for_serving, recommend_whole
from moesim.errors import ConfigError, MoesimError

if TYPE_CHECKING:
    from moesim.advice.recommendation import Recommendation

#: columns of the table of alternatives, in 80 characters
_SHOWN = {
    "candidate": "design",
    "layer_time_us": "layer us",
    "group": "group",
    "peak_memory_gib": "GiB",
    "grade": "grade",
}
#: columns of the table of clusters
_OFFERED = {
    "cluster": "cluster",
    "devices": "devices",
    "usd_per_hour": "USD/h",
    "moe_layers_tokens_per_s": "tokens/s",
    "moe_layers_usd_per_million_tokens": "USD/M",
    "moe_layers_joules_per_token": "J/token",
    "grade": "grade",
}


@takes(RecommendOptions)
def recommend(given: RecommendOptions) -> None:
    """Recommend what to serve a model with (--isl, --osl, --slo, --concurrency, --latency-ms), or
    parallelism, placement, replicas and format of its MoE layers.
    """
    if (given.cluster is None) == (given.compare is None):
        raise ConfigError("recommend: expected either --cluster or --compare")
    if given.compare is None and given.budget_usd_per_hour is not None:
        raise ConfigError("budget_usd_per_hour: expected --compare with it; --gpus sizes a cluster")
    if given.export is not None and (given.out is None or given.compare is not None):
        raise ConfigError("export: expected --cluster and --out, the folder to write")
    if asks_for_serving(given):
        recommend_whole(given)
    elif given.compare is not None:
        _compare(given)
    else:
        _recommend(given)


def _asked(given: RecommendOptions) -> dict[str, Any]:
    """Return the arguments that a recommendation and a comparison share."""
    from moesim.hardware.libraries import AUTO

    kernels = given.kernels
    if given.export is not None and kernels == AUTO:
        kernels = f"{AUTO}:{given.export}"
    return {
        "phase": given.phase or "prefill",
        "tokens": given.tokens,
        "kv_tokens": given.kv_tokens,
        "routing": given.routing,
        "layers_latency_ms": given.layers_latency_ms,
        "precision": given.precision,
        "kernels": kernels,
        "objective": given.objective,
        "economics": given.economics,
        "seed": given.seed,
    }


def _recommend(given: RecommendOptions) -> None:
    from moesim.advice.answer import recommendation_answer
    from moesim.advice.recommend import recommend as run
    from moesim.advice.text import lines_of
    from moesim.engines.ahead import compile_ahead
    from moesim.model.hf_config import load_model
    from moesim.report.answer import print_answer
    from moesim.report.document import record
    from moesim.report.tables import check_writable, writable_folder, write_csv
    from moesim.report.terminal import print_table, say, tell

    assert given.cluster is not None, "checked by the command"
    if given.out is not None and given.export is None:
        check_writable(given.out, make_folder=True)
    elif given.out is not None:
        writable_folder(given.out)
    model = load_model(given.model, given.lenient)
    compile_ahead()
    try:
        found = run(model, given.cluster, gpus=given.gpus, **_asked(given))
    except MoesimError:
        say_notes(model)  # a recommendation itself prints them
        raise
    rows, lines = found.rows(), list(lines_of(found))
    title = (
        f"{found.model.name} on {found.cluster.name}, {found.cluster.num_devices} devices: "
        f"{found.best.candidate.label}"
    )
    for line in (title, *lines):
        tell(line, indent=15)
    record({"best": rows[0]})
    if given.show and rows[1:]:
        others = [
            row | {"candidate": f"{row['candidate']} {row['kernels']}".strip()} for row in rows[1:]
        ]
        title = "Alternatives (group 0: none is better for certain)"
        print_table(title, others, _SHOWN, limit=given.show)
    if given.export is not None:
        assert given.out is not None, "checked by the command"
        for path in _export(found, given, [title, *lines]):
            say(f"wrote {path}")
    elif given.out is not None:
        write_csv(given.out, rows)
        say(f"wrote {given.out}")
    print_answer(recommendation_answer(found))


def _export(found: "Recommendation", given: RecommendOptions, lines: list[str]) -> list[Path]:
    """Write what starts the recommended design in a serving engine."""
    from moesim.serving.bundle import write_bundle
    from moesim.serving.launch import Deployment
    from moesim.simulation.prepare import prepare

    assert given.export is not None, "checked by the command"
    assert given.out is not None, "likewise"
    if given.export not in found.engines:
        raise ConfigError(
            f"export: expected an engine that launches {found.best.candidate.label} with "
            f"{found.best.result.kernels or 'the kernels of the device'}, which are "
            f"{', '.join(found.engines) or 'none'}, got {given.export}"
        )
    best, dense = found.best, found.model.dense_part
    deployed = Deployment(
        candidate=best.candidate,
        cluster=found.cluster,
        placement=prepare(best.candidate, found.cluster, found.workload).placement,
        row=best.row(),
        num_layers=dense.num_moe_layers,
    )
    return write_bundle(
        given.out,
        deployed,
        given.export,
        dense_layers=dense.num_layers - dense.num_moe_layers,
        model=given.checkpoint,
        about=lines,
    )


def _compare(given: RecommendOptions) -> None:
    from moesim.advice.answer import comparison_answer
    from moesim.advice.compare import COLUMNS, compare
    from moesim.report.answer import print_answer
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say, tell

    assert given.compare is not None, "checked by the command"
    if given.out is not None:
        check_writable(given.out, make_folder=True)
    names = [name.strip() for name in given.compare.split(",")]
    model = model_of(given.model, given.lenient)
    offers = compare(model, names, budget_usd_per_hour=given.budget_usd_per_hour, **_asked(given))
    rows = [offer.row() for offer in offers]
    print_table(f"{given.model}, MoE layers only, {given.phase or 'prefill'}", rows, _OFFERED)
    for row in rows:
        beside = f"{row['copies']} side by side: " if row["copies"] > 1 else ""
        tell(
            f"{row['cluster']:18} "
            + (beside + row["candidate"] if row["candidate"] else "no design: " + row["why_not"])
        )
    if given.out is not None:
        write_csv(given.out, rows, COLUMNS)
        say(f"wrote {given.out}")
    print_answer(comparison_answer(offers))
