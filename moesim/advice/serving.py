"""Recommend how to serve a whole model: layout, clients, engine, exchange, placement, schedule.

Every layout in which engines serve the model on the cluster is estimated for every engine
(`moesim.serving.estimate`) with ever more clients, until a limit breaks, requests wait for room, or
more add nothing. The best are then varied: other placements and numbers of redundant experts, two
micro-batches, an exchange by all-gather. Then pools for prompts and for decoding are tried beside
these (`moesim.advice.divided`). The best design of all goes through the request loop, with fewer
clients where a limit on a percentile asks for that, and so does the best of the other kind of pools
if its estimate is near.

Formats stay those that the model is published in, since others change its answers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from moesim.advice.clients import Tried
from moesim.advice.divided import try_divided
from moesim.advice.serving_task import ServingTask
from moesim.design.schedule import Schedule
from moesim.design.served import ServedModel
from moesim.serving.layouts import divided, engine_layouts, fitting, placed
from moesim.serving.whole import WholeResult, front_of

#: layouts that are varied
_VARIED = 4
#: ratio of estimates below which the request loop is not asked which is better
_NEAR = 0.8
#: limits of a question without any: what readers of a chat take for prompt and fluent (assumed)
USUAL_SLO = "ttft_mean<=5s,tpot_mean<=50ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingAdvice:
    """What is recommended.

    Attributes:
        task: What was asked.
        best: The best design, through the request loop.
        estimated: The same in its steady state.
        others: Rows of the best of every other layout that keeps the limits, best first.
        rival: The best colocated design where pools are divided, or the reverse, through the
            request loop if its estimate is near; None if none keeps the limits.
        divided: Rows of the best designs with a pool for prompts and one for decoding that keep the
            limits, best first.
        num_divided: Number of pairs of pools that were tried.
        front: Rows that no other beats in tokens per second both of a device and of a user.
        num_tried: Number of estimates.
        refused: Layout -> why it is not recommended whatever the clients, of those whose weights
            fit.
    """

    task: ServingTask
    best: WholeResult
    estimated: WholeResult
    others: list[dict[str, object]]
    rival: WholeResult | None
    divided: list[dict[str, object]]
    num_divided: int
    front: list[dict[str, object]]
    num_tried: int
    refused: dict[str, str]

    @property
    def doubt(self) -> str:
        """Why the engine may not load the best design, which no figure of it shows; "" if nothing
        is known.
        """
        return next((p.served.cut_block for p in self.best.pools if p.served.cut_block), "")


def recommend_serving(task: ServingTask) -> ServingAdvice:
    """Recommend how to serve a model.

    Raises:
        CapacityError: The weights fit in no layout.
        ConfigError: No layout divides the model, or nothing keeps the limits; the text says the
            design that comes nearest.
    """
    search = Tried(task)
    for design in _fitting(task):
        search.try_design(design)
    for found in search.best_of_layouts()[:_VARIED]:
        for design in _variants(found.served):
            search.try_design(design, near=found)
    try_divided(search)
    ranked = search.best_of_layouts()
    divided_first = sorted(search.divided, key=search.worth, reverse=True)
    if not (ranked or divided_first):
        raise search.nothing()
    best, estimated, rival = _decided(search, [*ranked[:1], *divided_first[:1]])
    return ServingAdvice(
        task=task,
        best=best,
        estimated=estimated,
        others=[result.row(task.economics) for result in ranked if result is not estimated],
        rival=rival,
        divided=[result.row(task.economics) for result in divided_first],
        num_divided=len(search.divided) + len(search.divided_refused),
        front=front_of([result.row(task.economics) for result in search.tried]),
        num_tried=len(search.tried),
        refused={
            layout: why
            for layout, why in search.refused.items()
            if layout not in {str(result.served.layout) for result in search.kept}
        },
    )


def _decided(
    search: Tried, found: list[WholeResult]
) -> tuple[WholeResult, WholeResult, WholeResult | None]:
    """Return the best of one or two estimates through the request loop, its estimate, and the other
    one.
    """
    most = max(abs(search.worth(one)) for one in found)
    least = min(abs(search.worth(one)) for one in found)
    first = max(found, key=search.worth)
    followed = [
        (search.confirmed(one) if one is first or least >= _NEAR * most else one, one)
        for one in found
    ]
    tried = [pair for pair in followed if pair[0] is not pair[1]]
    best = max(tried, key=lambda pair: (search.task.keeps(pair[0]), search.worth(pair[0])))
    rival = next((pair[0] for pair in followed if pair is not best), None)
    return *best, rival


def _fitting(task: ServingTask) -> list[ServedModel]:
    """Return the design in every layout and for every engine, where its weights fit.

    Raises:
        CapacityError: They fit in none; the text says by how many GiB the best one misses.
        ConfigError: No layout divides the model.
    """
    designs = [
        placed(design)
        for engine in task.engines
        for design in divided(replace(task.served, engine=engine), engine_layouts(task.cluster))
    ]
    return fitting(designs, task.cluster)


def _variants(served: ServedModel) -> Iterator[ServedModel]:
    """Yield the designs that differ from one in placement or schedule."""
    ep, moe = served.layout.ep, served.spec.moe
    if moe is None or ep == 1:
        return
    least = -moe.num_experts % ep
    for placement, replicas in (("contiguous", 0), ("eplb", least), ("eplb", least + 2 * ep)):
        if placement == "eplb" or not least:
            yield replace(served, placement=placement, num_replicas=replicas)
    if served.layout.exchanges_tokens:
        yield replace(served, schedule=Schedule(num_micro_batches=2))
        yield replace(served, schedule=Schedule(exchange="all_gather"))


__all__ = ["USUAL_SLO", "ServingAdvice", "ServingTask", "recommend_serving"]
