"""A program: ops that demand rate-limited resources, wait for one another, and know nothing of MoE.

An op is a demand vector (bytes or FLOPs on some resources), a latency, a release time, the ops it
waits for and a fair unit. ``start = max(release, ends of what it waits for)``; the latency elapses
first, holding nothing; then the demand is served. Alone, an op takes
``max_r demand_r / capacity_r``: the roofline.

Demands are a sparse matrix, ops x resources. Traffic whose bytes are a product, tokens of the
sender x share of the receiver, would fill N x N of it with 2 N numbers: such demands may stay
*factored*, and engines that need single entries (`flow`, `event`) expand them, which is refused
beforehand where memory would not hold it.

Shape legend: N ops, R resources, nnz demand entries. Ops are numbered so that every dependency has
a smaller number, which makes a program acyclic by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import numpy as np

from moesim.errors import CapacityError
from moesim.units import GIB

Array = np.ndarray
#: bytes of one sparse demand entry while it is built and run
ENTRY_BYTES = 40.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Names:
    """Names of many like things without a string for each: runs of ``name[0], name[1], ...``, or
    one bare ``name``.

    Attributes:
        runs: (name, how many, whether they are numbered).
    """

    runs: tuple[tuple[str, int, bool], ...]

    def kinds(self) -> tuple[tuple[str, int], ...]:
        """(name without number, how many) of each run."""
        return tuple((name, count) for name, count, _ in self.runs)

    def expand(self) -> tuple[str, ...]:
        """Every name."""
        return tuple(
            chain.from_iterable(
                (f"{name}[{i}]" for i in range(count)) if numbered else (name,) * count
                for name, count, numbered in self.runs
            )
        )


class Block(Protocol):
    """Demands that are kept as a rule: see `moesim.program.factored`."""

    @property
    def ops_I(self) -> Array:
        """Ops."""

    @property
    def resources_J(self) -> Array:
        """Resources."""

    def demand_J(self) -> Array:
        """Total demand on each of its resources: ndarray of shape (J,)."""

    def largest_s_I(self, capacity_R: Array) -> Array:
        """Seconds of the largest entry of each op: ndarray of shape (I,)."""

    def entries(self) -> tuple[Array, Array, Array]:
        """(op, resource, amount) of every entry."""

    def expanded_bytes(self) -> float:
        """Memory that `entries` takes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Demands, latencies and dependencies, ready to run.

    Attributes:
        capacity_R: Units per second of each resource, all > 0.
        resources: Names of the resources.
        demand_ptr: ndarray of shape (N + 1,): op i's demands are entries
            ``demand_ptr[i]:demand_ptr[i + 1]``.
        demand_resource: Resource of each entry.
        demand_amount: Amount of each entry (bytes or FLOPs), all > 0.
        factored: Demands beyond these, as rules.
        latency_s_N: Time that elapses before an op's demand is served.
        release_s_N: Earliest start.
        fair_unit_s_N: Share weight: of ops that meet at a resource, each is served in proportion to
            1 / fair unit of its solo time; equal to the solo time, every op progresses at one
            relative rate.
        dep_ptr: ndarray of shape (N + 1,): op i waits for ``dep_index[dep_ptr[i]:dep_ptr[i + 1]]``.
        dep_index: The ops waited for.
        ops: Names of the ops, for timelines.
        phase_N: ndarray of shape (N,): number of the phase each op belongs to.
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
        """Number of ops N."""
        return len(self.latency_s_N)

    @property
    def labels_N(self) -> tuple[str, ...]:
        """Label of every op."""
        return self.ops.expand()

    @property
    def phases_N(self) -> tuple[str, ...]:
        """Name of every op's phase."""
        return tuple(self.phase_names[p] for p in self.phase_N)

    @property
    def resource_names(self) -> tuple[str, ...]:
        """Name of every resource."""
        return self.resources.expand()

    def demand_s(self) -> Array:
        """Seconds each sparse demand entry takes alone on its resource: ndarray of shape (nnz,)."""
        return self.demand_amount / self.capacity_R[self.demand_resource]

    def solo_s_N(self) -> Array:
        """Service time of each op alone, without its latency: the largest of its demands in
        seconds.
        """
        solo = row_largest(self.demand_ptr, self.demand_s())
        for block in self.factored:
            solo[block.ops_I] = np.maximum(solo[block.ops_I], block.largest_s_I(self.capacity_R))
        return solo

    def demand_R(self) -> Array:
        """Total demand on each resource in its own unit (bytes or FLOPs)."""
        # counting nothing gives integers, whatever the weights
        total = np.bincount(self.demand_resource, self.demand_amount, len(self.capacity_R)).astype(
            np.float64
        )
        for block in self.factored:
            np.add.at(total, block.resources_J, block.demand_J())
        return total

    def busy_s_R(self) -> Array:
        """Seconds of work on each resource; what no engine may change."""
        return self.demand_R() / self.capacity_R

    def op_of_entry(self) -> Array:
        """Op of each sparse demand entry: ndarray of shape (nnz,)."""
        return np.repeat(np.arange(self.num_ops), np.diff(self.demand_ptr))

    def expanded(self, *, memory_bytes: float = 8 * GIB) -> "Program":
        """The same program with every demand a sparse entry.

        Raises:
            CapacityError: That would take more than ``memory_bytes``; nothing is built.
        """
        if not self.factored:
            return self
        need = ENTRY_BYTES * len(self.demand_amount) + sum(
            block.expanded_bytes() for block in self.factored
        )
        if need > memory_bytes:
            raise CapacityError(
                f"program: {self.num_ops} ops would take {need / GIB:.1f} GiB expanded, more than "
                f"the {memory_bytes / GIB:.0f} GiB it may: use engine bound, which needs no "
                "expansion"
            )
        parts = [
            (self.op_of_entry(), self.demand_resource, self.demand_amount),
            *(b.entries() for b in self.factored),
        ]
        op, resource, amount = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((resource, op))
        op, resource, amount = op[order], resource[order], amount[order]
        # blocks may name an entry twice: a level of the fabric each
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
    """When each op of a program ran.

    Attributes:
        start_s_N: Start of each op (its latency included).
        end_s_N: End of each op.
        busy_s_R: Seconds of work each resource served.
        engine: Engine that made it.
        makespan_s: End of the last op, or the bound.
        events: Times the clock advanced: op starts and ends (flow) or chunks (event); 0 in closed
            form.
        exact: False for a bound, whose times are earliest times and not a schedule.
    """

    start_s_N: Array
    end_s_N: Array
    busy_s_R: Array
    engine: str
    makespan_s: float
    events: int = 0
    exact: bool = True


def pointers(counts: Array | Sequence[int]) -> Array:
    """Row pointers of a CSR matrix from its row lengths: ndarray of shape (N + 1,), int64."""
    out = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def row_largest(ptr: Array, values: Array) -> Array:
    """Largest value (>= 0) of each row of a CSR matrix, 0 for an empty one: ndarray of shape (N,).
    """
    out = np.zeros(len(ptr) - 1)
    filled = np.flatnonzero(np.diff(ptr) > 0)
    if len(filled):
        out[filled] = np.maximum.reduceat(values, ptr[filled])
    return out
