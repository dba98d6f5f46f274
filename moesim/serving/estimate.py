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
from moesim.serving.pools import ServingKnobs, pool_of
from moesim.serving.steady import steady_state
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
    return WholeResult(
        cluster=cluster,
        traffic=traffic,
        pools=(pool,),
        loop=steady,
        decode=table.near(
            sequences=max(round(steady.batch), 1),
            tokens_per_sequence=1 + pool.config.draft_length,
        ),
        prefill=table.near(prefill_tokens=min(round(steady.isl * steady.batch), pool.config.chunk)),
    )
