"""What a server with expert parallelism can do with some of its ranks, and what losing some costs.

Every rank has as many expert slots as when the server started, so that fewer ranks hold fewer
redundant experts; below one slot per expert nothing can be served. Ranks that are left serve as
many sequences each as before; what lost ranks served has to be computed again.

Losing ranks stops the server: failures are noticed and communicators rebuilt (``rebuild_s``, one
number of the serving engine), then experts are placed anew on the ranks that are left. An expert
that another rank holds travels over the network, one that only lost ranks held comes from host
memory. SGLang's elastic expert parallelism stops for 6.2 s after one lost rank of 32 and for 6.8 s
after 16 (LMSYS, 2026-03-25); the 5.7 s that plans assume make the first of them.

Shape legend: W ranks, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from moesim.design.served import ServedModel
from moesim.design.step import Layout, Step
from moesim.engines.run import run
from moesim.errors import ConfigError, require
from moesim.hardware import Cluster
from moesim.hardware.sizing import sized
from moesim.lowering.alltoall import exchange_program
from moesim.placement import Placement, place
from moesim.simulation.steps.simulate import simulate_step

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPool:
    """A server of one copy of a model on all ranks of a cluster.

    Attributes:
        served: The design on all ranks, with its redundant experts.
        cluster: The cluster; one rank per device.
        sequences_per_rank: Sequences that a rank decodes at once.
        context_tokens: Tokens that each attends to.
        rebuild_s: Seconds from a failure until communicators are rebuilt.
        host_bytes_per_s: Bytes of a second that a device reads from host memory.

    Raises:
        ConfigError: Ranks are not as many as devices, or the model has no experts.
    """

    served: ServedModel
    cluster: Cluster
    sequences_per_rank: float
    context_tokens: float
    rebuild_s: float = 5.7
    host_bytes_per_s: float = 25e9

    def __post_init__(self) -> None:
        layout, count = self.served.layout, self.cluster.num_devices
        require(
            layout.ep == layout.dp == count,
            "serving",
            f"an expert rank on each of {count} devices",
            str(layout),
        )
        require(self.served.spec.moe is not None, "serving.model", "experts", self.served.name)
        require(self.sequences_per_rank > 0, "serving", "sequences > 0", self.sequences_per_rank)

    @property
    def num_experts(self) -> int:
        """The experts of a layer."""
        moe = self.served.spec.moe
        assert moe is not None
        return moe.num_experts

    @property
    def slots_per_rank(self) -> int:
        """The expert slots of a rank."""
        return (self.num_experts + self.served.num_replicas) // self.cluster.num_devices

    @property
    def fewest_ranks(self) -> int:
        """The ranks whose slots hold every expert."""
        return -(-self.num_experts // self.slots_per_rank)

    def tokens_per_s(self, ranks: int) -> float:
        """Return the tokens per second of so many ranks; between whole nodes on a straight line.

        Args:
            ranks: Ranks that are left.
        """
        if ranks < self.fewest_ranks:
            return 0.0
        return float(np.interp(ranks, *_rates(self)))

    def pause_s(self, lost: Sequence[int], before: Sequence[int] | None = None) -> float:
        """Return the seconds in which the server stands after losing ranks.

        Args:
            lost: The ranks.
            before: Ranks that served until then; by default all.
        """
        there = list(range(self.cluster.num_devices)) if before is None else sorted(before)
        left = [rank for rank in there if rank not in set(lost)]
        if len(left) < self.fewest_ranks:
            raise ConfigError(
                f"serving: expected at least {self.fewest_ranks} ranks, whose slots hold "
                f"{self.num_experts} experts, got {len(left)}"
            )
        return self.rebuild_s + _moved_s(self, len(there), tuple(there.index(r) for r in left))


def _placed(pool: ServingPool, ranks: int) -> Placement:
    replicas = pool.slots_per_rank * ranks - pool.num_experts
    return place("eplb", np.ones(pool.num_experts), ranks, replicas)


@lru_cache(maxsize=1024)
def _moved_s(pool: ServingPool, ranks: int, left: tuple[int, ...]) -> float:
    """Return the seconds in which experts reach their new places, by network and from hosts.

    The new ranks take the names with which most experts stay where they are.
    """
    from scipy.optimize import linear_sum_assignment

    old_WE = _held(_placed(pool, ranks))[list(left)]
    new_WE = _held(_placed(pool, len(left)))
    stay_WW = (old_WE.astype(float) @ new_WE.T).astype(float)
    new_WE = new_WE[linear_sum_assignment(stay_WW, maximize=True)[1]]
    size = _expert_bytes(pool.served)
    count = pool.cluster.num_devices
    bytes_SD, from_host_W = np.zeros((count, count)), np.zeros(len(left))
    sent_W = np.zeros(len(left))
    for rank, expert in np.argwhere(new_WE & ~old_WE):
        sources = np.flatnonzero(old_WE[:, expert])
        if len(sources):
            source = sources[np.argmin(sent_W[sources])]
            sent_W[source] += size
            bytes_SD[left[source], left[rank]] += size
        else:
            from_host_W[rank] += size
    travel_s = (
        run(exchange_program(pool.cluster, bytes_SD), "flow").makespan_s if sent_W.any() else 0.0
    )
    return max(travel_s, float(from_host_W.max()) / pool.host_bytes_per_s)


def _held(placement: Placement) -> Array:
    """Return which rank holds which expert: ndarray of shape (W, E)."""
    held_WE = np.zeros((placement.num_ranks, placement.num_experts), dtype=bool)
    held_WE[placement.rank_of_slot_P, placement.expert_of_slot_P] = True
    return held_WE


def _expert_bytes(served: ServedModel) -> float:
    """Return the bytes of one expert's weights, of all layers."""
    layers = [block.moe for block in served.spec.blocks if block.moe is not None]
    found = 0.0
    for moe in layers:
        layer = served.layer(moe)
        found += float(np.mean(layer.width_E())) * layer.bytes_per_width
    return found


@lru_cache(maxsize=64)
def _rates(pool: ServingPool) -> tuple[list[int], list[float]]:
    """Return ranks of whole nodes, ascending, and their tokens per second."""
    node = min(pool.cluster.devices_per_domain, pool.cluster.num_devices)
    nodes = pool.cluster.num_devices // node
    fewest = -(-pool.fewest_ranks // node)
    # five sizes are enough: the time of a step hardly depends on it
    sizes = sorted({round(n) for n in np.linspace(fewest, nodes, 5)})
    return [n * node for n in sizes], [_rate(pool, n * node) for n in sizes]


def _rate(pool: ServingPool, ranks: int) -> float:
    served = replace(
        pool.served,
        layout=Layout(dp=ranks, ep=ranks),
        num_replicas=pool.slots_per_rank * ranks - pool.num_experts,
    )
    step = Step(sequences=pool.sequences_per_rank, context=pool.context_tokens)
    result = simulate_step(served, sized(pool.cluster, ranks), step)
    return pool.sequences_per_rank * ranks / result.time_s
