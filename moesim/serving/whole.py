"""Serve a whole model on a cluster: TTFT, TPOT, throughput, memory, energy and cost.

The step engine says how long steps take, the serving engine's record what its host adds and how it
schedules (`moesim.serving.pools`), and the request loop makes latencies of them. Copies of the
model fill the cluster, and share the requests. Or one pool of devices computes the prompts and
another decodes, with designs of their own.
"""

from collections.abc import Sequence

from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad, Step
from moesim.hardware import Cluster
from moesim.serving.loop import (
    RequestTraffic,
    ServingResult,
    serve,
    serve_disaggregated,
)
from moesim.serving.loop.watching import StepWatch
from moesim.serving.pools import ServedPool, ServingKnobs, pool_of
from moesim.serving.result import WholeResult
from moesim.serving.split import split_pools
from moesim.simulation.steps.simulate import UNEVEN, simulate_step
from moesim.simulation.steps.times import StepTable


def serve_model(
    served: ServedModel,
    cluster: Cluster,
    traffic: RequestTraffic,
    *,
    knobs: ServingKnobs | None = None,
    load: ExpertLoad = UNEVEN,
    table: StepTable | None = None,
    watch: StepWatch | None = None,
) -> WholeResult:
    """Serve requests with as many copies of a model as the cluster holds.

    Args:
        served: The design.
        cluster: The hardware.
        traffic: The requests, which the copies share.
        knobs: What is not left to the engine.
        load: How tokens choose experts.
        table: Times of the design's steps, if another run has made some.
        watch: Takes the steps that the servers have run; None for nobody.

    Raises:
        CapacityError: The weights do not fit, or leave no room for a single request.
        ConfigError: The layout does not fit the cluster, or a setting is invalid.
    """
    pool = pool_of(served, cluster, traffic, knobs=knobs, load=load, table=table)
    loop = serve(pool.table, pool.config, traffic, watch=watch)
    return _result(cluster, traffic, (pool,), loop, load)


def serve_split(
    prefill: ServedModel,
    decode: ServedModel,
    cluster: Cluster,
    traffic: RequestTraffic,
    *,
    prefill_copies: int = 1,
    knobs: ServingKnobs | None = None,
    load: ExpertLoad = UNEVEN,
    tables: tuple[StepTable, StepTable] | None = None,
    watch: StepWatch | None = None,
) -> WholeResult:
    """Serve requests with one pool of devices that computes prompts and one that decodes
    (prefill-decode disaggregation).

    The cache of a prompt travels from the devices of its attention rank to those of another, over
    their NICs, or over the links of a domain that holds both pools.

    Args:
        prefill: The design that computes prompts.
        decode: The design that decodes, with as many copies as the other devices hold.
        cluster: The hardware that both share.
        traffic: The requests.
        prefill_copies: Number of copies that compute prompts.
        knobs: What is not left to the engine.
        load: How tokens choose experts.
        tables: Times of the steps of both designs, if another run has made some.
        watch: Takes the steps that the servers have run; None for nobody.

    Raises:
        CapacityError: The weights do not fit, or leave no room for a single request.
        ConfigError: The pools do not fit the cluster, or a setting is invalid.
    """
    split = split_pools(
        prefill,
        decode,
        cluster,
        traffic,
        prefill_copies=prefill_copies,
        knobs=knobs,
        load=load,
        tables=tables,
    )
    before, after = split.pools
    loop = serve_disaggregated(before.table, after.table, split.config, traffic, watch=watch)
    return _result(cluster, traffic, split.pools, loop, load)


def _result(
    cluster: Cluster,
    traffic: RequestTraffic,
    pools: tuple[ServedPool, ...],
    loop: ServingResult,
    load: ExpertLoad,
) -> WholeResult:
    before, after = pools[0], pools[-1]
    batch = max(float(str(loop.row()["mean_batch"])), 1.0)
    count = len(loop.requests)
    isl, osl = (sum(getattr(r, name) for r in loop.requests) / count for name in ("isl", "osl"))
    drafts = after.config.draft_length + 1
    decoding = Step(sequences=batch, context=isl + osl / 2.0, tokens_per_sequence=drafts)
    prompt = Step(prefills=1.0, new_tokens=min(isl, before.config.chunk))
    return WholeResult(
        cluster=cluster,
        traffic=traffic,
        pools=pools,
        loop=loop,
        decode=simulate_step(after.served, after.cluster, decoding, load=load),
        prefill=simulate_step(before.served, before.cluster, prompt, load=load),
    )


def front_of(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Return the rows that no other beats in output tokens per second both of a device and of a
    user, the fastest for a device first.

    Args:
        rows: Rows of `WholeResult.row`.
    """

    def rates(row: dict[str, object]) -> tuple[float, float]:
        names = ("output_tokens_per_s_per_device", "output_tokens_per_s_per_user")
        device, user = (float(str(row[name] or 0.0)) for name in names)
        return device, user

    found: list[dict[str, object]] = []
    for row in sorted(rows, key=rates, reverse=True):
        if not found or rates(row)[1] > rates(found[-1])[1]:
            found.append(row)
    return found


__all__ = ["WholeResult", "front_of", "serve_model", "serve_split"]
