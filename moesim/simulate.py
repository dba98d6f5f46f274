"""The facade: candidate, cluster and workload in, `Result` out."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from moesim.candidate import Candidate, Parallelism, Workload
from moesim.costs.comm.choose import exchange_kernel
from moesim.costs.experts import slot_widths, typical_tile
from moesim.costs.memory import MemoryNeed, check_memory, memory_need
from moesim.effects import GateEffects, padded
from moesim.engines import run
from moesim.errors import CapacityError, ConfigError
from moesim.model import Gate
from moesim.placement import Placement, Setting, place
from moesim.program import Program, Timeline
from moesim.ranks import setting_of, settled
from moesim.result import Result
from moesim.routing import Routing, RoutingSpec, route
from moesim.routing.capacity import places, rerouted
from moesim.topology import Cluster, check_devices
from moesim.trust import basis_digest, granularity_of, trust_of
from moesim.units import MB
from moesim.version import VERSION

if TYPE_CHECKING:
    from moesim.lowering.traffic import Traffic

@lru_cache(maxsize=64)
def _routing(spec: str, gate: Gate, num_experts: int, top_k: int, tokens: int, devices: int, seed: int,
             left: bytes | None) -> Routing:
    return route(RoutingSpec.parse(spec), gate, num_experts=num_experts, top_k=top_k,
                 num_tokens_S=np.full(devices, tokens), seed=seed,
                 left_E=None if left is None else np.frombuffer(left, dtype=bool))


@lru_cache(maxsize=64)
def _load_E(*key: object) -> np.ndarray:
    """Choices of each expert, of a routing by its key."""
    return _routing(*key).num_tokens_E()


@lru_cache(maxsize=64)
def _parts(spec: str, gate: Gate, num_experts: int, top_k: int, tokens: int, devices: int, seed: int,
           left: bytes | None, capacity_factor: float | None, reroute: bool, parts: int) -> tuple[Routing, ...]:
    """Choices of every micro-batch, those of full experts re-routed where a layer does so."""
    routing = _routing(spec, gate, num_experts, top_k, tokens, devices, seed, left)
    found = tuple(routing.part(m, parts) for m in range(parts))
    if capacity_factor is None or not reroute:
        return found
    left_E = None if left is None else np.frombuffer(left, dtype=bool)
    return tuple(rerouted(part, capacity_factor, gate, left_E) for part in found)


@lru_cache(maxsize=4096)
def _batches(spec: str, gate: Gate, num_experts: int, top_k: int, tokens: int, devices: int, seed: int,
             parallelism: Parallelism, strategy: str, replicas: int, capacity_factor: float | None,
             overflow: str, pads: bool, widths: tuple[int, ...] | None, per_domain: int, parts: int, setting: Setting,
             given: Placement | None) -> "tuple[Placement, tuple[Traffic, ...]]":
    from moesim.lowering.traffic import spread_tokens

    width_E = np.array(widths or [1])
    left = None if width_E.all() else (width_E > 0).tobytes()
    routing = _routing(spec, gate, num_experts, top_k, tokens, devices, seed, left)
    # work is rows x width
    load_E = _load_E(spec, gate, num_experts, top_k, tokens, devices, seed, left)
    placement = given or place(strategy, load_E * width_E, parallelism.ep, replicas, setting=setting,
                               routing=routing)
    num_left = int((width_E > 0).sum()) if widths else None
    batches = []
    for part in _parts(spec, gate, num_experts, top_k, tokens, devices, seed, left, capacity_factor,
                       overflow == "reroute", parts):
        traffic = spread_tokens(*settled(part, placement, parallelism.tp, capacity_factor), parallelism,
                                capacity_factor, devices_per_domain=per_domain, num_left=num_left)
        if pads and capacity_factor is not None:
            capacity = places(capacity_factor, part.expert_ids_TK.size, num_left or num_experts)
            traffic = padded(traffic, placement, parallelism.tp, capacity, per_domain, width_E > 0 if widths else None)
        batches.append(traffic)
    return placement, tuple(batches)


def batches_of(candidate: Candidate, cluster: Cluster, workload: Workload, num_batches: int = 1,
               given: Placement | None = None) -> "tuple[Placement, tuple[Traffic, ...]]":
    """Placement, and the traffic of every micro-batch: cached, since a search asks for the same routing often.

    Args:
        candidate: Whose placement is planned by its strategy,
        cluster: Where,
        workload: For what.
        num_batches: Micro-batches.
        given: A placement instead of the planned one.

    Raises:
        ConfigError: Parallelism that does not use the cluster's devices, slots that do not divide over the ranks,
            more micro-batches than tokens, or a given placement of other ranks or experts.
    """
    layer = candidate.layer
    check_devices(cluster, candidate.parallelism.num_devices, "parallelism: ep x tp")
    if num_batches > workload.num_tokens_per_device:
        raise ConfigError(f"schedule.num_micro_batches: expected at most the {workload.num_tokens_per_device} tokens "
                          f"of a device, got {num_batches}")
    if given is not None and (given.num_ranks, given.num_experts) != (candidate.parallelism.ep, layer.num_experts):
        raise ConfigError(f"placement: expected {layer.num_experts} experts on {candidate.parallelism.ep} ranks, got "
                          f"{given.num_experts} on {given.num_ranks}")
    return _batches(workload.routing, layer.gate, layer.num_experts, layer.top_k, workload.num_tokens_per_device,
                    cluster.num_devices, workload.seed, candidate.parallelism, candidate.placement,
                    candidate.num_replicas, layer.capacity_factor, layer.overflow, layer.padded, layer.widths_key,
                    cluster.devices_per_domain,
                    num_batches, setting_of(candidate, cluster, workload), given)


def _choices(candidate: Candidate, cluster: Cluster, workload: Workload) -> Routing:
    """Choices of the whole batch, as its traffic has them."""
    layer = candidate.layer
    left = None if layer.widths_key is None or all(layer.widths_key) else (layer.width_E() > 0).tobytes()
    return _parts(workload.routing, layer.gate, layer.num_experts, layer.top_k, workload.num_tokens_per_device,
                  cluster.num_devices, workload.seed, left, layer.capacity_factor, layer.overflow == "reroute", 1)[0]


def traffic_of(candidate: Candidate, cluster: Cluster, workload: Workload,
               given: Placement | None = None) -> "tuple[Placement, Traffic]":
    """Placement and traffic of a candidate's whole batch.

    Raises:
        ConfigError: As `batches_of`.
    """
    placement, batches = batches_of(candidate, cluster, workload, given=given)
    return placement, batches[0]


def lower(candidate: Candidate, cluster: Cluster, workload: Workload, given: Placement | None = None) -> Program:
    """The program of one forward pass: for engines, timelines and tests."""
    # numba is loaded when used: `import moesim` stays light
    from moesim.lowering.layer import lower_layer

    placement, batches = batches_of(candidate, cluster, workload, candidate.schedule.num_micro_batches, given)
    layer = candidate.layer
    schedule = candidate.schedule
    kernel = exchange_kernel(cluster, schedule.dispatch, schedule.num_comm_sms) if cluster.num_devices > 1 else None
    widths = None if layer.widths_key is None else slot_widths(layer, placement, candidate.parallelism.tp)
    return lower_layer(candidate, cluster, batches, kernel, widths_DL=widths)


def exchange_of(candidate: Candidate, cluster: Cluster, workload: Workload) -> list[dict[str, object]]:
    """What dispatch and combine move, and what holds them back.

    Returns:
        A row for each direction: exchange, copies per token (own rank included), MB in or out of the busiest device,
        near and far, SMs that the kernel holds, the limiting stage of most devices; none for one device.
    """
    if cluster.num_devices == 1:
        return []
    from moesim.lowering.exchange import Priced

    schedule, layer = candidate.schedule, candidate.layer
    _, (traffic,) = batches_of(candidate, cluster, workload)
    name = schedule.dispatch or cluster.file.dispatch
    priced = Priced.of(layer, traffic, exchange_kernel(cluster, name, schedule.num_comm_sms), cluster, dispatch=name,
                       num_experts=traffic.counts_DL.shape[1] * candidate.parallelism.ep)
    near_out, near_in, far_out, far_in = priced.movement.near_far_D
    rows = []
    for direction, price in priced.prices.items():
        stages, counts = np.unique(price.limiting_D, return_counts=True)
        size = priced.copy_bytes[direction]
        rows.append({"direction": direction, "exchange": name,
                     "copies_per_token": float(priced.movement.copies_S.sum() / traffic.num_tokens_S.sum()),
                     "near_mb": float(np.maximum(near_out, near_in).max()) * size / MB,
                     "far_mb": float(np.maximum(far_out, far_in).max()) * size / MB,
                     "num_sms": price.num_sms, "limited_by": str(stages[counts.argmax()])})
    return rows


def memory_of(candidate: Candidate, cluster: Cluster, workload: Workload,
              given: Placement | None = None) -> tuple[MemoryNeed, int] | None:
    """Memory of the fullest device, that with the least left, and its number; None without a dense part."""
    if candidate.dense_part is None:
        return None
    placement, traffic = traffic_of(candidate, cluster, workload, given)
    widths_DL = slot_widths(candidate.layer, placement, candidate.parallelism.tp)
    counts_DL = traffic.counts_DL
    needs = memory_need(candidate.layer, candidate.dense_part, held_width=widths_DL.sum(axis=1),
                        kv_tokens=workload.kv_tokens, rows=counts_DL.sum(axis=1),
                        row_widths=(counts_DL * widths_DL).sum(axis=1), tokens=np.asarray(traffic.tokens_D))
    device = int((needs.total_bytes - usable_bytes(cluster)).argmax())
    return needs.of_device(device), device


def usable_bytes(cluster: Cluster) -> np.ndarray:
    """Memory of each device that a model may use: ndarray of shape (D,)."""
    return np.repeat([profile.usable_bytes for profile, _ in cluster.groups], [count for _, count in cluster.groups])


def simulate(candidate: Candidate, cluster: Cluster, workload: Workload, *, engine: str = "flow",
             must_fit: bool = True, placement: Placement | None = None) -> Result:
    """Simulate one forward pass of the candidate's MoE layer.

    Args:
        candidate: The design.
        cluster: Where it runs; ep x tp must be its number of devices.
        workload: Tokens and routing.
        engine: ``bound``, ``flow`` or ``event``.
        must_fit: Refuse a candidate (with a dense part) whose model does not fit in memory.
        placement: Slots as they are, such as those planned on an earlier window or read from a serving engine's map;
            by default what the candidate's strategy plans on this workload.

    Raises:
        ConfigError: Sizes that do not go together, in one line.
        CapacityError: The model does not fit: which device, how many GiB over.
    """
    _, traffic = traffic_of(candidate, cluster, workload, placement)
    need = memory_of(candidate, cluster, workload, placement)
    if must_fit and need is not None:
        check_memory(need[0], float(usable_bytes(cluster)[need[1]]), need[1])
    program = lower(candidate, cluster, workload, placement)
    timeline = run(program, engine)
    phases = critical_phases(program, timeline)
    low, high, level = trust_of(candidate, cluster, phases)
    tokens = cluster.num_devices * workload.num_tokens_per_device
    time = timeline.makespan_s
    experts = program.phase_N == program.phase_names.index("experts")
    return Result(
        candidate=candidate,
        cluster=cluster.name,
        layer_time_s=time,
        layer_time_low_s=time * low,
        layer_time_high_s=time * high,
        tokens_per_s=tokens / time,
        tokens_per_s_per_device=workload.num_tokens_per_device / time,
        phase_time_s=phases,
        experts_time_s=float((timeline.end_s_N - timeline.start_s_N)[experts].max()),
        bottleneck=max(phases, key=lambda name: phases[name]),
        utilisation=_utilisation(program, timeline),
        mean_utilisation=mean_utilisation(program, timeline.busy_s_R, timeline.makespan_s),
        load_imbalance=traffic.load_imbalance,
        dropped_token_fraction=traffic.dropped_fraction,
        peak_memory_bytes=float(need[0].total_bytes) if need else None,
        memory_over_bytes=float(need[0].total_bytes - usable_bytes(cluster)[need[1]]) if need else None,
        evidence="simulated",
        calibration=level,
        engine=engine,
        workload=workload,
        version=VERSION,
        profile_hash=basis_digest(cluster, candidate.schedule.dispatch),
        tile=str(typical_tile(traffic.counts_DL, candidate.layer.precision.activations))
        if cluster.profile.execution == "waves" else "",
        granularity=granularity_of(cluster, candidate.schedule),
        effects=GateEffects.of(candidate.layer.gate, _choices(candidate, cluster, workload), traffic,
                               candidate.parallelism.tp),
    )


def critical_phases(program: Program, timeline: Timeline) -> dict[str, float]:
    """Time of each phase along the critical path: walk back from the last end, always to the latest dependency.

    Returns:
        Phase -> seconds; waits are counted to the op that waited, so the values sum to the makespan.
    """
    end, share = timeline.end_s_N, dict.fromkeys(program.phase_names, 0.0)
    op, until = int(end.argmax()), timeline.makespan_s
    while True:
        waited = program.dep_index[program.dep_ptr[op] : program.dep_ptr[op + 1]]
        before = int(waited[end[waited].argmax()]) if len(waited) else -1
        since = float(end[before]) if before >= 0 else 0.0
        share[program.phase_names[program.phase_N[op]]] += until - since
        if before < 0:
            return share
        op, until = before, since


def _utilisation(program: Program, timeline: Timeline) -> dict[str, float]:
    """Busiest of each kind of resource: work over makespan."""
    out: dict[str, float] = {}
    first = 0
    for kind, count in program.resources.kinds():
        busiest = float(timeline.busy_s_R[first : first + count].max()) / timeline.makespan_s if count else 0.0
        out[kind] = max(out.get(kind, 0.0), busiest)
        first += count
    return out


def mean_utilisation(program: Program, busy_s_R: np.ndarray, makespan_s: float) -> dict[str, float]:
    """Work over makespan, of each kind of resource, the mean of all of that kind: what power is counted from."""
    busy: dict[str, float] = {}
    counts: dict[str, int] = {}
    first = 0
    for kind, count in program.resources.kinds():
        busy[kind] = busy.get(kind, 0.0) + float(busy_s_R[first : first + count].sum())
        counts[kind] = counts.get(kind, 0) + count
        first += count
    return {kind: busy[kind] / (counts[kind] * makespan_s) for kind in busy if counts[kind]}


__all__ = ["CapacityError", "Result", "batches_of", "critical_phases", "exchange_of", "lower", "mean_utilisation",
           "memory_of", "simulate", "traffic_of"]
