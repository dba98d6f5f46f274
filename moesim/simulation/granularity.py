"""Compare one transfer per device with one transfer per pair: the same layer is lowered both ways.

At *device* granularity an exchange is one op per receiver (dispatch) or sender (combine). That is
fast, and blind to which senders meet at a port. At *pair* granularity every source and destination
is an op. `compare` runs the first exactly and the second chunk by chunk, on traffic that differs
from source to source as much as the traffic of models does:

- ``uniform`` and ``skewed`` (power law 1.2): every source has the same distribution of experts;
- ``sparse``: four tokens per device, one choice each, so that few pairs have anything to send;
- ``node_limited``: tokens keep to the experts of two domains (of two quarters of one domain);
- ``domain_per_source``: three quarters of a device's choices go to one domain, the topic of that
  device;
- ``staggered``: devices hold between 30 and 100 % of the tokens, so gates do not end together.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.costs.comm.choose import exchange_kernel
from moesim.design.candidate import Candidate, Parallelism
from moesim.design.schedule import Schedule
from moesim.engines.bound import run_bound
from moesim.engines.event_compiled import run_event_compiled
from moesim.engines.flow import run_flow
from moesim.hardware import Cluster, load_cluster
from moesim.lowering.layer import lower_layer
from moesim.lowering.traffic import spread_tokens
from moesim.model import MoELayer
from moesim.model.gate import Gate
from moesim.placement import place
from moesim.program import Program, Timeline
from moesim.routing import Routing, RoutingSpec, route
from moesim.units import US
from moesim.version import VERSION

Row = dict[str, Any]
LAYER = MoELayer(hidden_size=7168, expert_intermediate_size=2048, num_experts=256, top_k=8)
#: largest number of devices that the flow engine simulates within seconds at pair granularity
MOST_FLOW_DEVICES = 64
_CHUNKS = 4096
_SKEWED = "power_law:1.2"


def _even(spec: str, gate: Gate | None = None, top_k: int = LAYER.top_k, share: float = 1.0):
    """Return a function that routes a share of the tokens, with the same distribution for every
    source.
    """

    def make(devices: int, tokens: int, seed: int) -> Routing:
        return route(
            RoutingSpec.parse(spec),
            gate or Gate(),
            num_experts=LAYER.num_experts,
            top_k=top_k,
            num_tokens_S=np.full(devices, max(int(tokens * share), 4)),
            seed=seed,
        )

    return make


def _staggered(devices: int, tokens: int, seed: int) -> Routing:
    """Route between 30 and 100 % of the tokens on each device."""
    counts = np.random.default_rng([seed, devices]).uniform(0.3, 1.0, devices) * tokens
    return route(
        RoutingSpec.parse(_SKEWED),
        Gate(),
        num_experts=LAYER.num_experts,
        top_k=LAYER.top_k,
        num_tokens_S=counts.astype(np.int64) + 1,
        seed=seed,
    )


def _domain_per_source(devices: int, tokens: int, seed: int) -> Routing:
    """Give each device a topic, an eighth of all experts, with three quarters of its choices."""
    rng = np.random.default_rng([seed, devices, 7])
    experts, top_k, size = LAYER.num_experts, LAYER.top_k, LAYER.num_experts // 8
    weight_SE = np.full((devices, experts), 0.25 / experts)
    for s, topic in enumerate(rng.permutation(np.arange(devices) % 8)):
        weight_SE[s, topic * size : (topic + 1) * size] += 0.75 / size
    # Gumbel top-k: draws without replacement in proportion to weights
    ids = [
        np.argpartition(np.log(weight) + rng.gumbel(size=(tokens, experts)), -top_k, axis=1)[
            :, -top_k:
        ]
        for weight in weight_SE
    ]
    return Routing(
        expert_ids_TK=np.concatenate(ids).astype(np.int32),
        num_tokens_S=np.full(devices, tokens),
        num_experts=experts,
    )


_LIMITED = Gate(kind="group_limited", num_expert_groups=4, num_limited_groups=2)
#: name -> function that makes a routing from devices, tokens per device and seed
TRAFFIC: dict[str, Callable[[int, int, int], Routing]] = {
    "uniform": _even("uniform"),
    "skewed": _even(_SKEWED),
    "sparse": _even(_SKEWED, top_k=1, share=0.0),
    "node_limited": _even(_SKEWED, _LIMITED),
    "domain_per_source": _domain_per_source,
    "staggered": _staggered,
}


def lowered(cluster: Cluster, routing: Routing, schedule: Schedule) -> Program:
    """Return the program of the layer under a routing.

    Args:
        cluster: The hardware; every device is one expert-parallel rank.
        routing: The choices of all tokens.
        schedule: The exchange, its granularity and micro-batches.

    Raises:
        ConfigError: The exchange does not run on this cluster.
    """
    devices, parts = cluster.num_devices, schedule.num_micro_batches
    candidate = Candidate(layer=LAYER, parallelism=Parallelism(ep=devices), schedule=schedule)
    placement = place("contiguous", routing.num_tokens_E(), devices, 0)
    batches = [
        spread_tokens(
            routing.part(part, parts),
            placement,
            candidate.parallelism,
            devices_per_domain=cluster.devices_per_domain,
        )
        for part in range(parts)
    ]
    kernel = exchange_kernel(cluster, cluster.exchange(schedule))
    return lower_layer(candidate, cluster, batches, kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class GranularityCase:
    """One case that is simulated at both granularities.

    Attributes:
        topology: Kind of fabric, for the table.
        cluster: Name of the cluster.
        traffic: One of `TRAFFIC`.
        micro_batches: Micro-batches of the schedule.
        tokens: Tokens of a device.
        seed: Seed of the routing.
        engine: Engine of the pair program: ``flow``, or ``event_compiled`` with many chunks.
        exchange: Name of the exchange; None for the cluster's own.
    """

    topology: str
    cluster: str
    traffic: str
    micro_batches: int
    tokens: int
    seed: int
    engine: str
    exchange: str | None = None


def compare(case: GranularityCase) -> Row:
    """Simulate one case at both granularities.

    Args:
        case: The case to simulate.

        Raises:
        MoesimError: The case cannot be lowered.
    """
    cluster = load_cluster(case.cluster)
    routing = TRAFFIC[case.traffic](cluster.num_devices, case.tokens, case.seed)
    began = time.perf_counter()
    device, pair = (
        lowered(
            cluster,
            routing,
            Schedule(
                granularity=each, num_micro_batches=case.micro_batches, exchange=case.exchange
            ),
        )
        for each in ("device", "pair")
    )
    coarse = run_flow(device, tolerance_s=0.0)
    if case.engine == "flow":
        fine = run_flow(pair, tolerance_s=0.0)
    else:
        fine = run_event_compiled(pair, quantum_s=run_bound(pair).makespan_s / _CHUNKS)
    late = np.abs(_expert_starts(device, coarse) - _expert_starts(pair, fine)) / fine.makespan_s
    return {
        "topology": case.topology,
        "cluster": case.cluster,
        "num_devices": cluster.num_devices,
        "traffic": case.traffic,
        "micro_batches": case.micro_batches,
        "seed": case.seed,
        "device_us": coarse.makespan_s / US,
        "pair_us": fine.makespan_s / US,
        "error_percent": 100 * (coarse.makespan_s / fine.makespan_s - 1),
        "start_error_percent": 100 * float(late.mean()),
        "worst_start_error_percent": 100 * float(late.max()),
        "reference": case.engine,
        "wall_s": time.perf_counter() - began,
        "version": VERSION,
    }


def _expert_starts(program: Program, timeline: Timeline) -> np.ndarray:
    """Return when the experts of each device start, micro-batch by micro-batch."""
    return timeline.start_s_N[program.phase_N == program.phase_names.index("experts")]


def error_summary(rows: Sequence[Row]) -> list[Row]:
    """Return the mean and worst absolute error by topology and traffic, and over all traffic.

    Args:
        rows: Rows of `compare`.
    """
    table: list[Row] = []
    for topology in dict.fromkeys(row["topology"] for row in rows):
        of_topology = [row for row in rows if row["topology"] == topology]
        for traffic in [*dict.fromkeys(row["traffic"] for row in of_topology), "all"]:
            part = [row for row in of_topology if traffic in ("all", row["traffic"])]
            errors = np.abs([row["error_percent"] for row in part])
            starts = [row["start_error_percent"] for row in part]
            table.append(
                {
                    "topology": topology,
                    "traffic": traffic,
                    "cases": len(part),
                    "mean_error_percent": float(errors.mean()),
                    "worst_error_percent": float(errors.max()),
                    "mean_start_error_percent": float(np.mean(starts)),
                    "worst_start_error_percent": float(max(starts)),
                    "version": VERSION,
                }
            )
    return table
