"""The facade: candidate, cluster and workload in, `Result` out."""

import hashlib
from functools import lru_cache

import numpy as np

from moesim.candidate import Candidate, Parallelism, Workload
from moesim.costs.calibration import load_calibration
from moesim.costs.experts import slot_widths, typical_tile
from moesim.costs.memory import MemoryNeed, check_memory, memory_need
from moesim.costs.primitives import kernels_for
from moesim.engines import run
from moesim.errors import CapacityError
from moesim.lowering import Traffic, lower_layer, spread_tokens
from moesim.model import Gate
from moesim.placement import Placement, place
from moesim.program import Program, Timeline
from moesim.result import Result
from moesim.routing import Routing, RoutingSpec, route
from moesim.topology import Cluster, check_devices
from moesim.version import VERSION

#: Interval of phases without measured rows behind them (gate, permute, reduce, shared): assumed, a factor of 1.5.
ASSUMED_INTERVAL = (1 / 1.5, 1.5)
#: recipe -> class of measured kernels that its calibration rests on; the others rest on none
_MEASURED_AS = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8_block"}


@lru_cache(maxsize=64)
def _routing(spec: str, gate: Gate, num_experts: int, top_k: int, tokens: int, devices: int, seed: int,
             left: bytes | None) -> Routing:
    return route(RoutingSpec.parse(spec), gate, num_experts=num_experts, top_k=top_k,
                 num_tokens_S=np.full(devices, tokens), seed=seed,
                 left_E=None if left is None else np.frombuffer(left, dtype=bool))


@lru_cache(maxsize=4096)
def _traffic(spec: str, gate: Gate, num_experts: int, top_k: int, tokens: int, devices: int, seed: int,
             parallelism: Parallelism, strategy: str, replicas: int, capacity_factor: float | None,
             widths: tuple[int, ...] | None) -> tuple[Placement, Traffic]:
    width_E = np.array(widths or [1])
    left = None if width_E.all() else (width_E > 0).tobytes()
    routing = _routing(spec, gate, num_experts, top_k, tokens, devices, seed, left)
    # work is rows x width
    placement = place(strategy, routing.num_tokens_E() * width_E, parallelism.ep, replicas)
    return placement, spread_tokens(routing, placement, parallelism, capacity_factor)


def traffic_of(candidate: Candidate, cluster: Cluster, workload: Workload) -> tuple[Placement, Traffic]:
    """Placement and traffic of a candidate: cached, since a search asks for the same routing again and again.

    Raises:
        ConfigError: Parallelism that does not use the cluster's devices, or slots that do not divide over the ranks.
    """
    layer = candidate.layer
    check_devices(cluster, candidate.parallelism.num_devices, "parallelism: ep x tp")
    return _traffic(workload.routing, layer.gate, layer.num_experts, layer.top_k, workload.num_tokens_per_device,
                    cluster.num_devices, workload.seed, candidate.parallelism, candidate.placement,
                    candidate.num_replicas, layer.capacity_factor, layer.widths_key)


def lower(candidate: Candidate, cluster: Cluster, workload: Workload) -> Program:
    """The program of one forward pass: for engines, timelines and tests."""
    _, traffic = traffic_of(candidate, cluster, workload)
    tokens_S = np.full(cluster.num_devices, workload.num_tokens_per_device)
    return lower_layer(candidate, cluster, traffic, tokens_S, kernels_for(cluster.profile))


def memory_of(candidate: Candidate, cluster: Cluster, workload: Workload) -> tuple[MemoryNeed, int] | None:
    """Memory of the fullest device and its number; None without a dense part."""
    if candidate.dense_part is None:
        return None
    placement, traffic = traffic_of(candidate, cluster, workload)
    widths_DL = slot_widths(candidate.layer, placement, candidate.parallelism.tp)
    rows_D, held_D = traffic.counts_DL.sum(axis=1).tolist(), widths_DL.sum(axis=1).tolist()
    row_widths_D = (traffic.counts_DL * widths_DL).sum(axis=1).tolist()
    tokens_D = traffic.tokens_D.tolist()
    needs = [memory_need(candidate.layer, candidate.dense_part, held_width=held_D[d], kv_tokens=workload.kv_tokens,
                         rows=rows_D[d], row_widths=row_widths_D[d], tokens=tokens_D[d])
             for d in range(cluster.num_devices)]
    device = max(range(len(needs)), key=lambda d: needs[d].total_bytes)
    return needs[device], device


def simulate(candidate: Candidate, cluster: Cluster, workload: Workload, *, engine: str = "flow",
             must_fit: bool = True) -> Result:
    """Simulate one forward pass of the candidate's MoE layer.

    Args:
        candidate: The design.
        cluster: Where it runs; ep x tp must be its number of devices.
        workload: Tokens and routing.
        engine: ``bound``, ``flow`` or ``event``.
        must_fit: Refuse a candidate (with a dense part) whose model does not fit in memory.

    Raises:
        ConfigError: Sizes that do not go together, in one line.
        CapacityError: The model does not fit: which device, how many GiB over.
    """
    _, traffic = traffic_of(candidate, cluster, workload)
    need = memory_of(candidate, cluster, workload)
    if must_fit and need is not None:
        check_memory(need[0], cluster.profile.usable_bytes, need[1])
    program = lower(candidate, cluster, workload)
    timeline = run(program, engine)
    phases = critical_phases(program, timeline)
    low, high, level, digest = _trust(candidate, cluster, phases)
    tokens = cluster.num_devices * workload.num_tokens_per_device
    time = timeline.makespan_s
    duration = timeline.end_s_N - timeline.start_s_N
    experts = [i for i, phase in enumerate(program.phases_N) if phase == "experts"]
    return Result(
        candidate=candidate,
        cluster=cluster.name,
        layer_time_s=time,
        layer_time_low_s=time * low,
        layer_time_high_s=time * high,
        tokens_per_s=tokens / time,
        tokens_per_s_per_device=workload.num_tokens_per_device / time,
        phase_time_s=phases,
        experts_time_s=float(duration[experts].max()),
        bottleneck=max(phases, key=lambda name: phases[name]),
        utilisation=_utilisation(program, timeline),
        load_imbalance=traffic.load_imbalance,
        dropped_token_fraction=traffic.dropped_fraction,
        peak_memory_bytes=need[0].total_bytes if need else None,
        evidence="simulated",
        calibration=level,
        engine=engine,
        seed=workload.seed,
        version=VERSION,
        profile_hash=digest,
        tile=str(typical_tile(traffic.counts_DL, candidate.layer.precision.activations)),
    )


def critical_phases(program: Program, timeline: Timeline) -> dict[str, float]:
    """Time of each phase along the critical path: walk back from the last end, always to the latest dependency.

    Returns:
        Phase -> seconds; waits are counted to the op that waited, so the values sum to the makespan.
    """
    end, share = timeline.end_s_N, dict.fromkeys(program.phases_N, 0.0)
    op, until = int(end.argmax()), timeline.makespan_s
    while True:
        waited = program.dep_index[program.dep_ptr[op] : program.dep_ptr[op + 1]]
        before = int(waited[end[waited].argmax()]) if len(waited) else -1
        since = float(end[before]) if before >= 0 else 0.0
        share[program.phases_N[op]] += until - since
        if before < 0:
            return share
        op, until = before, since


def _utilisation(program: Program, timeline: Timeline) -> dict[str, float]:
    """Busiest of each kind of resource: work over makespan."""
    out: dict[str, float] = {}
    for name, busy in zip(program.resource_names, timeline.busy_s_R.tolist(), strict=True):
        kind = name.partition("[")[0]
        out[kind] = max(out.get(kind, 0.0), busy / timeline.makespan_s)
    return out


def calibration_digests(cluster: Cluster) -> list[str]:
    """Hashes of the calibration files that prices on this cluster rest on."""
    profile = cluster.profile
    found = [] if profile.execution == "serial" else [load_calibration(profile.calibration, profile).digest]
    if cluster.num_devices > 1:
        found.append(load_calibration("nccl-alltoall", profile).digest)
    return found


def basis_digest(cluster: Cluster) -> str:
    """Hash over everything a price on this cluster rests on: cluster, device and calibration files."""
    return hashlib.sha256("".join([cluster.digest, *calibration_digests(cluster)]).encode()).hexdigest()[:12]


def _trust(candidate: Candidate, cluster: Cluster, phases: dict[str, float]) -> tuple[float, float, str, str]:
    """(low, high, level, hash): the interval's factors, the weaker calibration, and what it all rests on."""
    profile = cluster.profile
    intervals, levels = {}, []
    if profile.execution == "serial":
        levels.append("calibrated")
    else:
        kernels = load_calibration(profile.calibration, profile)
        spread = "epn" if candidate.parallelism.ep > 1 else "ep1"
        measured_as = _MEASURED_AS.get(candidate.layer.precision.name, "unmeasured")
        intervals["experts"] = kernels.interval(f"{measured_as}-{spread}")
        # a calibration without residuals was fitted to nothing: its efficiencies are assumed
        levels.append(kernels.level if measured_as != "unmeasured" and kernels.residuals else "none")
    if cluster.num_devices > 1:
        transfers = load_calibration("nccl-alltoall", profile)
        intervals["dispatch"] = intervals["combine"] = transfers.interval("alltoall")
        levels.append(transfers.level)
    total = sum(phases.values())
    low = sum(t * intervals.get(name, ASSUMED_INTERVAL)[0] for name, t in phases.items()) / total
    high = sum(t * intervals.get(name, ASSUMED_INTERVAL)[1] for name, t in phases.items()) / total
    level = min(levels, key=("none", "spec_sheet", "few_shot", "calibrated").index)
    return low, high, level, basis_digest(cluster)


__all__ = ["CapacityError", "Result", "critical_phases", "lower", "memory_of", "simulate", "traffic_of"]
