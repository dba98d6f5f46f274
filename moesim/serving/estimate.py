"""Estimate what a whole model does without following requests: its steady state in closed form.

A search tries thousands of designs. Each is as a request loop would leave it after many requests
(`moesim.serving.steady`), from a few steps whose programs the bound engine runs: alone on their
streams, they take as long as by the fluid model up to contention, within 1 % where schedules are
serial. Winners go through `moesim.serving.whole.serve_model`.
"""

from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad
from moesim.hardware import Cluster
from moesim.serving.loop import RequestTraffic
from moesim.serving.pools import ServedPool, ServingKnobs, pool_of
from moesim.serving.split import split_pools
from moesim.serving.steady import steady_state
from moesim.serving.steady_result import SteadyResult
from moesim.serving.steady_split import steady_split
from moesim.serving.whole import WholeResult
from moesim.simulation.steps.simulate import UNEVEN
from moesim.simulation.steps.times import StepGrid, StepTable

#: steps of powers of two; what lies between is linear
_WIDE = StepGrid(steps_by="bound", per_octave=1, joined=True)


def quick_table(served: ServedModel, cluster: Cluster, load: ExpertLoad = UNEVEN) -> StepTable:
    """Return the times of a design's steps by the bound engine, on a wide grid.

    Args:
        served: The design.
        cluster: The hardware.
        load: How tokens choose experts.
    """
    return StepTable(served, cluster, load=load, grid=_WIDE)


def estimate_model(
    served: ServedModel,
    cluster: Cluster,
    traffic: RequestTraffic,
    *,
    knobs: ServingKnobs | None = None,
    load: ExpertLoad = UNEVEN,
    table: StepTable | None = None,
) -> WholeResult:
    """Return the steady state of a closed loop served by as many copies as the cluster holds.

    Args:
        served: The design.
        cluster: The hardware.
        traffic: The requests, which the copies share.
        knobs: What is not left to the engine.
        load: How tokens choose experts.
        table: Times of the design's steps, if another run has made some.

    Raises:
        CapacityError: The weights do not fit, or leave no room for a single request.
        ConfigError: The layout does not fit the cluster, the traffic is no closed loop, or a
            setting is invalid.
    """
    table = table or quick_table(served, cluster, load)
    pool = pool_of(served, cluster, traffic, knobs=knobs, load=load, table=table)
    steady = steady_state(table, pool.config, traffic)
    return _result(cluster, traffic, (pool,), steady, steady.batch)


def estimate_split(
    prefill: ServedModel,
    decode: ServedModel,
    cluster: Cluster,
    traffic: RequestTraffic,
    *,
    prefill_copies: int = 1,
    knobs: ServingKnobs | None = None,
    load: ExpertLoad = UNEVEN,
    tables: tuple[StepTable, StepTable] | None = None,
) -> WholeResult:
    """Return the steady state of a closed loop served by a pool that computes prompts and one that
    decodes, see `moesim.serving.whole.serve_split`.

    Args:
        prefill: The design that computes prompts.
        decode: The design that decodes, with as many copies as the other devices hold.
        cluster: The hardware that both share.
        traffic: The requests.
        prefill_copies: Number of copies that compute prompts.
        knobs: What is not left to the engine.
        load: How tokens choose experts.
        tables: Times of the steps of both designs, if another run has made some.

    Raises:
        CapacityError: The weights do not fit, or leave no room for a single request.
        ConfigError: The pools do not fit the cluster, the traffic is no closed loop of answers of
            several tokens, or a setting is invalid.
    """
    tables = tables or (quick_table(prefill, cluster, load), quick_table(decode, cluster, load))
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
    steady = steady_split(tables[0], tables[1], split.config, traffic)
    return _result(cluster, traffic, split.pools, steady, steady.mean_batch)


def _result(
    cluster: Cluster,
    traffic: RequestTraffic,
    pools: tuple[ServedPool, ...],
    steady: SteadyResult,
    batch: float,
) -> WholeResult:
    before, after = pools[0], pools[-1]
    return WholeResult(
        cluster=cluster,
        traffic=traffic,
        pools=pools,
        loop=steady,
        decode=after.table.near(
            sequences=max(round(batch), 1), tokens_per_sequence=1 + after.config.draft_length
        ),
        prefill=before.table.near(
            prefill_tokens=min(round(steady.isl * max(batch, 1.0)), before.config.chunk)
        ),
    )
