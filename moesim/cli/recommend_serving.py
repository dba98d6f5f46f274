"""``moesim recommend`` of a whole model: what to serve it with, for requests and limits."""

from typing import TYPE_CHECKING

from moesim.cli.options import model_of
from moesim.cli.recommend_options import RecommendOptions
from moesim.errors import ConfigError

if TYPE_CHECKING:
    from moesim.advice.serving import ServingTask

#: options of the question about MoE layers, with their defaults
_OF_LAYERS = {
    "phase": None,
    "tokens": None,
    "kv_tokens": None,
    "layers_latency_ms": None,
    "export": None,
    "compare": None,
}


def asks_for_serving(given: RecommendOptions) -> bool:
    """Return whether the options ask about the whole model.

    Raises:
        ConfigError: They ask about its MoE layers, too.
    """
    named = {
        "isl": given.isl,
        "osl": given.osl,
        "slo": given.slo,
        "concurrency": given.concurrency,
        "latency_ms": given.latency_ms,
        "engine": given.engine,
    }
    asked = [name for name, value in named.items() if value is not None]
    other = [name for name, usual in _OF_LAYERS.items() if getattr(given, name) != usual]
    if asked and other:
        raise ConfigError(
            f"recommend: expected options of the whole model, such as {_option(asked[0])}, or of "
            f"its MoE layers, such as {_option(other[0])}, got both"
        )
    return bool(asked)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def recommend_whole(given: RecommendOptions) -> None:
    """Print and write what to serve a model with."""
    from moesim.advice.answer import advice_answer
    from moesim.advice.serving import recommend_serving
    from moesim.advice.serving_text import DIVIDED, SHOWN, lines_of_advice
    from moesim.engines.ahead import compile_ahead
    from moesim.report.answer import print_answer
    from moesim.report.document import record, shown
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say, tell
    from moesim.search.pareto import spread
    from moesim.serving.text import INDENT

    if given.out is not None:
        check_writable(given.out, make_folder=True)
    task = _task(given)
    compile_ahead()
    found = recommend_serving(task)
    for line in lines_of_advice(found):
        tell(line, indent=INDENT)
    if given.show and found.others:
        others = [_named(row) for row in found.others]
        print_table("Other layouts within the limits", others, SHOWN, limit=given.show)
    # one table is enough for a first look
    if given.show and (shown().details or shown().document is not None):
        if found.divided:
            title = "Pools for prompts beside pools that decode"
            print_table(title, found.divided, DIVIDED, limit=2)
        front = [_named(row) for row in spread(found.front, given.show)]
        print_table("No estimate is better for device and user", front, SHOWN)
    if given.out is not None:
        best = found.best.row(task.economics)
        rows = [("recommended", best), *(("other layout", row) for row in found.others)]
        rows += [("divided", row) for row in found.divided]
        rows += [("front", row) for row in found.front]
        write_csv(given.out, [{"what": what, **row} for what, row in rows])
        say(f"wrote {given.out}")
    record({"best": found.best.row(task.economics)})
    print_answer(advice_answer(found))


def _named(row: dict[str, object]) -> dict[str, object]:
    """Return a row with its layout and engine as one name."""
    pools = "P/D " if row["prefill_layout"] else ""
    return {"design": f"{pools}{row['layout']} {row['serving_engine']}"} | row


def _task(given: RecommendOptions) -> "ServingTask":
    from moesim.advice.serving import USUAL_SLO, ServingTask
    from moesim.design.served import ENGINES, ServedModel
    from moesim.design.step import ExpertLoad
    from moesim.hardware import load_cluster
    from moesim.hardware.economics import load_economics
    from moesim.hardware.sizing import sized
    from moesim.model import Precision
    from moesim.serving.formats import dense_format_of, precision_on
    from moesim.serving.limits import Limit, parse_limits
    from moesim.serving.loop import RequestTraffic

    assert given.cluster is not None, "checked by the command"
    cluster = sized(load_cluster(given.cluster), given.gpus)
    model = model_of(given.model, given.lenient)
    limits = parse_limits(given.slo) if given.slo is not None else ()
    if given.latency_ms is not None:
        if not 0 < given.latency_ms < float("inf"):
            raise ConfigError(f"latency_ms: expected a number > 0, got {given.latency_ms:g}")
        limits += (Limit("tpot_mean_ms", given.latency_ms),)
    if not limits and given.concurrency is None:
        limits = parse_limits(USUAL_SLO)
    return ServingTask(
        served=ServedModel(
            name=model.name,
            spec=model.spec,
            precision=Precision.named(precision_on(model, cluster.profile, given.precision)),
            dense_format=dense_format_of(model),
            kernels=given.kernels,
        ),
        cluster=cluster,
        traffic=RequestTraffic(
            concurrency=given.concurrency or 1,
            isl=given.isl or 1024,
            osl=given.osl or 1024,
            seed=given.seed,
        ),
        limits=limits,
        engines=ENGINES if given.engine is None else tuple(given.engine.split(",")),
        economics=load_economics(given.economics),
        objective=given.objective,  # type: ignore[arg-type]  # checked by the task
        clients=given.concurrency is not None,
        load=ExpertLoad(routing=given.routing, seed=given.seed),
    )


__all__ = ["asks_for_serving", "recommend_whole"]
