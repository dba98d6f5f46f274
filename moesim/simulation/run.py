"""Simulate one design on one workload: prepare it, check its memory, lower it, run it, and say how
far to trust the result.
"""

from typing import TypedDict, Unpack

import numpy as np

from moesim.costs.comm.choose import exchange_kernel
from moesim.costs.devices.primitives import kernels_for
from moesim.costs.phases.experts import slot_widths
from moesim.costs.shape import ExpertShape
from moesim.design.candidate import Candidate, Workload
from moesim.engines.run import run
from moesim.files import toml
from moesim.hardware import Cluster
from moesim.lowering.layer import lower_layer
from moesim.lowering.priced import Priced
from moesim.placement import Placement
from moesim.program import Program
from moesim.simulation.effects import GateEffects, StorageEffects
from moesim.simulation.memory import check_least_memory, memory_of
from moesim.simulation.phases import (
    busiest_utilisation,
    critical_phases,
    experts_time_s,
    mean_utilisation,
)
from moesim.simulation.prepare import Prepared, prepare
from moesim.simulation.result import Result
from moesim.simulation.trust import basis_digest, granularity_of, span_of, trust_of
from moesim.units import MB
from moesim.version import VERSION


class RunOptions(TypedDict, total=False):
    """How a prepared design is simulated.

    Attributes:
        engine: ``bound``, ``flow``, ``event`` or ``event_compiled``; by default ``flow``.
        must_fit: Whether to refuse a design (with a dense part) whose model does not fit in memory;
            by default True.
    """

    engine: str
    must_fit: bool


@toml.same_files()
def simulate(
    candidate: Candidate,
    cluster: Cluster,
    workload: Workload,
    *,
    placement: Placement | None = None,
    **options: Unpack[RunOptions],
) -> Result:
    """Simulate one forward pass of the candidate's MoE layer.

    Args:
        candidate: The design to simulate.
        cluster: The hardware it runs on; ep x tp must be its number of devices.
        workload: The tokens and their routing.
        placement: A given placement, such as one planned on an earlier window or read from a
            serving engine's map; by default the candidate's strategy plans one on this workload.
        **options: The engine, and whether the model must fit, see `RunOptions`.

    Raises:
        ConfigError: Sizes do not go together; the message is one line.
        CapacityError: The model does not fit; the message says how many GiB it is over, on the
            fullest device, or on the mean one where no placement would do. Or the request would
            take more memory or time than one run may.
    """
    if placement is None and options.get("must_fit", True):
        check_least_memory(candidate, cluster, workload)
    return simulate_prepared(prepare(candidate, cluster, workload, placement=placement), **options)


def simulate_prepared(prepared: Prepared, *, engine: str = "flow", must_fit: bool = True) -> Result:
    """Simulate a design that is prepared already: `simulate` without its first step.

    Args:
        prepared: The design, its workload and its traffic.
        engine: Name of the engine, see `RunOptions`.
        must_fit: Whether to refuse a model that does not fit in memory.

        Raises:
            CapacityError: The model does not fit; the message names the device and how many GiB it
                is over.
    """
    candidate, cluster, workload = prepared.candidate, prepared.cluster, prepared.workload
    traffic = prepared.traffic
    fullest = memory_of(prepared)
    if must_fit and fullest is not None:
        fullest.check()
    program = lower(prepared)
    bound = run(program, "bound")
    bound_s = bound.makespan_s
    timeline = bound if engine == "bound" else run(program, engine, scale_s=bound_s)
    phases = critical_phases(program, timeline)
    grades, level = trust_of(candidate, cluster, prepared.kernels)
    low, high = span_of(grades, phases)
    time_s = timeline.makespan_s
    waves = cluster.profile.execution == "waves"
    return Result(
        candidate=candidate,
        cluster=cluster.name,
        layer_time_s=time_s,
        layer_time_low_s=time_s * low,
        layer_time_high_s=time_s * high,
        tokens_per_s=cluster.num_devices * workload.num_tokens_per_device / time_s,
        tokens_per_s_per_device=workload.num_tokens_per_device / time_s,
        phase_time_s=phases,
        experts_time_s=experts_time_s(program, timeline),
        bottleneck=max(phases, key=lambda name: phases[name]),
        utilisation=busiest_utilisation(program, timeline),
        mean_utilisation=mean_utilisation(program, timeline.busy_s_R, time_s),
        load_imbalance=traffic.load_imbalance,
        dropped_token_fraction=traffic.dropped_fraction,
        peak_memory_bytes=None if fullest is None else fullest.total_bytes,
        memory_over_bytes=None if fullest is None else fullest.over_bytes,
        evidence="simulated",
        calibration=level,
        bound_s=bound_s,
        engine=engine,
        workload=workload,
        version=VERSION,
        profile_hash=basis_digest(cluster, cluster.exchange(candidate.schedule)),
        kernels=prepared.kernels,
        grades=grades,
        tile=_tile_name(prepared) if waves else "",
        granularity=granularity_of(cluster, candidate.schedule, expected=prepared.is_expected),
        effects=GateEffects.of(
            candidate.layer.gate, prepared.choices, traffic, candidate.parallelism.tp
        ),
        storage=StorageEffects.of(prepared.stored),
    )


def _tile_name(prepared: Prepared) -> str:
    """Return the up projection's tile on the first kind of device."""
    candidate, kernels = prepared.built, kernels_for(prepared.cluster.profile)
    shape = ExpertShape.of(candidate.layer, candidate.parallelism.tp)
    return kernels.tile_name(shape, prepared.traffic.counts_DL)


def lower(prepared: Prepared) -> Program:
    """Lower one forward pass to a program: for engines, timelines and tests."""
    candidate, cluster, schedule = prepared.built, prepared.cluster, prepared.built.schedule
    kernel = None
    if cluster.num_devices > 1:
        kernel = exchange_kernel(cluster, cluster.exchange(schedule), schedule.num_comm_sms)
    widths = (
        slot_widths(candidate.layer, prepared.placement, candidate.parallelism.tp)
        if candidate.layer.widths_differ
        else None
    )
    return lower_layer(
        candidate,
        cluster,
        prepared.batches,
        kernel,
        widths_DL=widths,
        stored=prepared.stored,
    )


def exchange_of(prepared: Prepared) -> list[dict[str, object]]:
    """Return what dispatch and combine of the whole batch move, and what limits them.

    Returns:
        A row for each direction: exchange, copies per token (own rank included), MB into or out of
        the busiest device, near and far, SMs that the kernel holds, and the stage that limits most
        devices. There are no rows for a single device.
    """
    candidate, cluster, traffic = prepared.candidate, prepared.cluster, prepared.traffic
    if cluster.num_devices == 1:
        return []
    schedule, layer = candidate.schedule, candidate.layer
    exchange = cluster.exchange(schedule)
    priced = Priced.of(
        layer,
        traffic,
        exchange_kernel(cluster, exchange, schedule.num_comm_sms),
        cluster,
        exchange=exchange,
        num_experts=traffic.counts_DL.shape[1] * candidate.parallelism.ep,
    )
    near_out, near_in, far_out, far_in = priced.movement.near_far_D
    rows = []
    for direction, price in priced.prices.items():
        stages, counts = np.unique(price.limiting_D, return_counts=True)
        size = priced.copy_bytes[direction]
        rows.append(
            {
                "direction": direction,
                "exchange": exchange.name,
                "copies_per_token": float(
                    priced.movement.copies_S.sum() / traffic.num_tokens_S.sum()
                ),
                "near_mb": float(np.maximum(near_out, near_in).max()) * size / MB,
                "far_mb": float(np.maximum(far_out, far_in).max()) * size / MB,
                "num_sms": price.num_sms,
                "limited_by": str(stages[counts.argmax()]),
            }
        )
    return rows
