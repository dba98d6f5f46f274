"""A program is a set of ops that demand rate-limited resources and wait for one another. It knows
nothing of MoE.

An op has a demand vector (bytes or FLOPs on some resources), a latency, a release time, the ops it
waits for and a fair unit. ``start = max(release, ends of the ops it waits for)``. First the latency
elapses, during which the op holds nothing; then the demand is served. An op that runs alone takes
``max_r demand_r / capacity_r``, the roofline.

Demands are a sparse matrix of ops x resources. Traffic whose bytes are a product (tokens of the
sender x share of the receiver) would fill N x N entries with only 2 N numbers. Such demands may
stay *factored*; engines that need single entries (`flow`, `event`) expand them, which is refused in
advance if they would not fit in memory.

Shape legend: N ops, R resources, nnz demand entries. Every op has a larger index than the ops it
waits for, which makes a program acyclic by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import numpy as np

from moesim.limits import check_request
from moesim.units import GIB

Array = np.ndarray
#: bytes of one sparse demand entry while it is built and run
ENTRY_BYTES = 40.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Names:
    """Names of many similar things, stored without a string for each: runs of
    ``name[0], name[1], ...``, or one bare ``name``.

    Attributes:
        runs: (name, count, whether the names contain an index) of each run.
    """

    runs: tuple[tuple[str, int, bool], ...]

    def kinds(self) -> tuple[tuple[str, int], ...]:
        """Return (name without index, count) of each run."""
        return tuple((name, count) for name, count, _ in self.runs)

    def expand(self) -> tuple[str, ...]:
        """Return every name."""
        return tuple(
            chain.from_iterable(
                (f"{name}[{i}]" for i in range(count)) if numbered else (name,) * count
                for name, count, numbered in self.runs
            )
        )


class Block(Protocol):
    """Demands that stay factored; see `moesim.program.factored`."""

    @property
    def ops_I(self) -> Array:
        """The index of each op."""

    @property
    def resources_J(self) -> Array:
        """The index of each resource."""

    def demand_J(self) -> Array:
        """Return the total demand on each resource of the block: ndarray of shape (J,)."""

    def largest_s_I(self, capacity_R: Array) -> Array:
        """Return the seconds of the largest entry of each op: ndarray of shape (I,)."""

    def entries(self) -> tuple[Array, Array, Array]:
        """Return (op, resource, amount) of every entry."""

    def expanded_bytes(self) -> float:
        """Return the memory that `entries` needs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Demands, latencies and dependencies that are ready to run.

    Attributes:
        capacity_R: Units per second of each resource, all > 0.
        resources: Names of the resources.
        demand_ptr: ndarray of shape (N + 1,): the demands of op i are entries
            ``demand_ptr[i]:demand_ptr[i + 1]``.
        demand_resource: Resource of each entry.
        demand_amount: Amount of each entry (bytes or FLOPs), all > 0.
        factored: Further demands, stored as factors.
        latency_s_N: Time that elapses before an op's demand is served.
        release_s_N: Earliest start of each op.
        fair_unit_s_N: Fairness weight. Ops that share a resource get bandwidth in proportion to
            solo_time / fair_unit; with fair_unit = solo_time, all progress at the same relative
            speed.
        dep_ptr: ndarray of shape (N + 1,): op i waits for ``dep_index[dep_ptr[i]:dep_ptr[i + 1]]``.
        dep_index: The ops that are waited for.
        ops: Names of the ops, for timelines.
        phase_N: ndarray of shape (N,): index of the phase of each op.
        phase_names: Name of each phase.
    """

    capacity_R: Array
    resources: Names
    demand_ptr: Array
    demand_resource: Array
    demand_amount: Array
    factored: tuple[Block, ...] = ()
    latency_s_N: Array
    release_s_N: Array
    fair_unit_s_N: Array
    dep_ptr: Array
    dep_index: Array
    ops: Names
    phase_N: Array
    phase_names: tuple[str, ...]

    @property
    def num_ops(self) -> int:
        """The number of ops N."""
        return len(self.latency_s_N)

    @property
    def labels_N(self) -> tuple[str, ...]:
        """The label of every op."""
        return self.ops.expand()

    @property
    def phases_N(self) -> tuple[str, ...]:
        """The phase name of every op."""
        return tuple(self.phase_names[p] for p in self.phase_N)

    @property
    def resource_names(self) -> tuple[str, ...]:
        """The name of every resource."""
        return self.resources.expand()

    def demand_s(self) -> Array:
        """Return the seconds that each sparse entry takes alone on its resource: ndarray of shape
        (nnz,).
        """
        return self.demand_amount / self.capacity_R[self.demand_resource]

    def solo_s_N(self) -> Array:
        """Return the service time of each op that runs alone, without its latency: the largest of
        its demands in seconds.
        """
        solo = row_largest(self.demand_ptr, self.demand_s())
        for block in self.factored:
            solo[block.ops_I] = np.maximum(solo[block.ops_I], block.largest_s_I(self.capacity_R))
        return solo

    def demand_R(self) -> Array:
        """Return the total demand on each resource in its own unit (bytes or FLOPs)."""
        # bincount returns integers for an empty array, even with weights
        total = np.bincount(self.demand_resource, self.demand_amount, len(self.capacity_R)).astype(
            np.float64
        )
        for block in self.factored:
            np.add.at(total, block.resources_J, block.demand_J())
        return total

    def busy_s_R(self) -> Array:
        """Return the seconds of work on each resource, which no engine may change."""
        return self.demand_R() / self.capacity_R

    def op_of_entry(self) -> Array:
        """Return the op of each sparse demand entry: ndarray of shape (nnz,)."""
        return np.repeat(np.arange(self.num_ops), np.diff(self.demand_ptr))

    def expanded(self, *, memory_bytes: float = 8 * GIB) -> "Program":
        """Return the same program with every demand as a sparse entry.

        Raises:
            CapacityError: The entries would take more than ``memory_bytes``; nothing is built.
        """
        if not self.factored:
            return self
        need = ENTRY_BYTES * len(self.demand_amount) + sum(
            block.expanded_bytes() for block in self.factored
        )
        check_request(
            f"program: {self.num_ops} ops, expanded,",
            memory_bytes=need,
            most_bytes=memory_bytes,
            advice="use engine bound, which needs no expansion",
        )
        parts = [
            (self.op_of_entry(), self.demand_resource, self.demand_amount),
            *(b.entries() for b in self.factored),
        ]
        op, resource, amount = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((resource, op))
        op, resource, amount = op[order], resource[order], amount[order]
        # two blocks, one per level of the fabric, may have the same entry: add them up
        first = np.flatnonzero(
            np.concatenate([[True], (np.diff(op) != 0) | (np.diff(resource) != 0)])
        )
        counts = np.bincount(op[first], minlength=self.num_ops)
        return replace(
            self,
            factored=(),
            demand_ptr=pointers(counts),
            demand_resource=resource[first],
            demand_amount=np.add.reduceat(amount, first),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """The start and end of each op of a program.

    Attributes:
        start_s_N: Start of each op (its latency included).
        end_s_N: End of each op.
        busy_s_R: Seconds of work each resource served.
        engine: Name of the engine that made the timeline.
        makespan_s: End of the last op, or the lower bound.
        events: How often the clock advanced: op starts and ends (flow) or chunks (event); 0 for a
            closed form.
        exact: False for a bound, whose times are the earliest possible ones and not a schedule.
    """

    start_s_N: Array
    end_s_N: Array
    busy_s_R: Array
    engine: str
    makespan_s: float
    events: int = 0
    exact: bool = True


def pointers(counts: Array | Sequence[int]) -> Array:
    """Return the row pointers of a CSR matrix from its row lengths: ndarray of shape (N + 1,),
    int64.
    """
    out = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def row_largest(ptr: Array, values: Array) -> Array:
    """Return the largest value (>= 0) of each row of a CSR matrix, 0 for an empty row: ndarray of
    shape (N,).
    """
    out = np.zeros(len(ptr) - 1)
    filled = np.flatnonzero(np.diff(ptr) > 0)
    if len(filled):
        out[filled] = np.maximum.reduceat(values, ptr[filled])
    return out
