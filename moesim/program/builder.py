"""Collect resources and ops, check them, and freeze them into a `Program`.

Ops are added in batches of similar ops (one per device), since one call per op would cost more than
simulating a small program.

Shape legend: N ops, R resources; in a batch I ops with M demands each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from moesim.errors import ConfigError
from moesim.program.program import Block, Names, Program, pointers, row_largest

Array = np.ndarray
Numbers = float | Sequence[float] | Array
_NONE, _NO_AMOUNTS = np.zeros(0, dtype=np.int64), np.zeros(0)


class Demands(NamedTuple):
    """Demands of I ops on resources.

    Attributes:
        resources: ndarray of shape (I, M): the distinct resources that each op demands; a flat
            array if ``row_ptr`` is given.
        amounts: The amount demanded of each resource; zeros are dropped. `ProgramBuilder.build`
            checks them.
        row_ptr: ndarray of shape (I + 1,): the first entry of each op, if ops have different
            numbers of entries; None if all of them demand M resources.
    """

    resources: Array | None = None
    amounts: Array | None = None
    row_ptr: Array | None = None


class Waits(NamedTuple):
    """Ops that I ops wait for, where each may wait for a different number of ops.

    Attributes:
        ops: Flat array of the ops that are waited for.
        row_ptr: ndarray of shape (I + 1,): the first entry of each op; None if all of them wait for
            all of ``ops``.
    """

    ops: Array | None
    row_ptr: Array | None


@dataclass(slots=True)
class ProgramBuilder:
    """A program that is being built."""

    _capacity: list[Array] = field(default_factory=list)
    _resource_runs: list[tuple[str, int, bool]] = field(default_factory=list)
    _num_resources: int = 0
    _num_ops: int = 0
    _lengths: list[int | Array] = field(default_factory=list)
    _resource: list[Array] = field(default_factory=list)
    _amount: list[Array] = field(default_factory=list)
    _factored: list[Block] = field(default_factory=list)
    # of each batch one number for all of its ops, or one per op
    _latency: list[Numbers] = field(default_factory=list)
    _release: list[Numbers] = field(default_factory=list)
    _flow_bytes: list[Numbers] = field(default_factory=list)
    _num_deps: list[int | Array] = field(default_factory=list)
    _deps: list[Array] = field(default_factory=list)
    _op_runs: list[tuple[str, int, bool]] = field(default_factory=list)
    _own_batch: list[bool] = field(default_factory=list)
    _phase: list[int] = field(default_factory=list)
    _phase_number: dict[str, int] = field(default_factory=dict)

    def resource(self, name: str, capacity: float) -> int:
        """Add a resource of ``capacity`` units per second and return its index.

        Raises:
            ConfigError: A capacity is not a finite number > 0.
        """
        return int(self.resources(name, [capacity], numbered=False)[0])

    def resources(
        self, name: str, capacity: Sequence[float] | Array, *, numbered: bool = True
    ) -> Array:
        """Add a resource for each capacity, named ``name[0], name[1], ...``, and return their
        indices.

        Raises:
            ConfigError: A capacity is not a finite number > 0.
        """
        rates = np.asarray(capacity, dtype=np.float64)
        wrong = ~((rates > 0) & (rates < np.inf))
        if wrong.any():
            which = int(wrong.argmax())
            label = f"{name}[{which}]" if numbered else name
            raise ConfigError(
                f"resource {label}: expected a finite capacity > 0, got {rates[which].item()!r}"
            )
        first = self._num_resources
        self._capacity.append(rates)
        self._resource_runs.append((name, len(rates), numbered))
        self._num_resources += len(rates)
        return np.arange(first, self._num_resources)

    def op(
        self,
        label: str,
        *,
        resources: Sequence[int] | Array = (),
        amounts: Sequence[float] | Array = (),
        latency_s: float = 0.0,
        release_s: float = 0.0,
        after: Sequence[int] | Array = (),
        bytes_per_flow: float = 0.0,
        phase: str = "",
    ) -> int:
        """Add one op and return its index. Arguments are those of `ops`, but ``after`` is a list of
        ops.
        """
        if len(resources) != len(amounts):
            raise ConfigError(
                f"op {label}: expected one amount per resource, got {len(amounts)} for "
                f"{len(resources)}"
            )
        deps = np.asarray(after, dtype=np.int64).reshape(1, -1)
        demands = Demands(
            np.asarray(resources, dtype=np.int64).reshape(1, -1),
            np.asarray(amounts, dtype=np.float64).reshape(1, -1),
        )
        return int(
            self.ops(
                label,
                1,
                demands=demands,
                latency_s=latency_s,
                release_s=release_s,
                after=deps,
                bytes_per_flow=bytes_per_flow,
                phase=phase,
                numbered=False,
            )[0]
        )

    def ops(
        self,
        label: str,
        count: int,
        *,
        demands: Demands | None = None,
        latency_s: Numbers = 0.0,
        release_s: Numbers = 0.0,
        after: Array | Waits | None = None,
        bytes_per_flow: Numbers = 0.0,
        phase: str = "",
        numbered: bool = True,
        own_batch: bool = False,
    ) -> Array:
        """Add ``count`` similar ops, named ``label[0], label[1], ...``, and return their indices.

        Args:
            label: Common label of the ops.
            count: Number of ops I.
            demands: The demands of each op on resources; None if the ops demand nothing.
            latency_s: Time that elapses before the demand is served. This and the following numbers
                may be one for all ops or one per op.
            release_s: Earliest start of the ops.
            after: Ops to wait for, which must have been added before: ndarray of shape (K,) if all
                ops wait for the same ones, of shape (I, K) if each waits for its own, or `Waits` if
                they wait for different numbers of ops.
            bytes_per_flow: For communication, the bytes at the largest port of an op divided by its
                number of source-destination pairs. Every flow then gets equal bytes per second at a
                port that it shares. 0 for compute.
            phase: Name of the phase that the ops belong to.
            numbered: Whether the names contain an index.
            own_batch: Whether ops may wait for earlier ops of the same batch, such as the messages
                of one sender.

        `build` checks all of these at once.
        """
        first = self._num_ops
        waits = after if isinstance(after, Waits) else Waits(after, None)
        deps, num_deps = _rows(waits.ops, waits.row_ptr, count)
        resources, amounts, row_ptr = demands or Demands()
        flat, lengths = _rows(resources, row_ptr, count)
        self._resource.append(flat)
        self._amount.append(
            _NO_AMOUNTS if amounts is None else np.asarray(amounts, dtype=np.float64).ravel()
        )
        self._lengths.append(lengths)
        self._latency.append(latency_s)
        self._release.append(release_s)
        self._flow_bytes.append(bytes_per_flow)
        self._deps.append(deps)
        self._num_deps.append(num_deps)
        self._op_runs.append((label, count, numbered))
        self._own_batch.append(own_batch)
        self._phase.append(self._phase_number.setdefault(phase, len(self._phase_number)))
        self._num_ops += count
        return np.arange(first, self._num_ops)

    @property
    def num_ops(self) -> int:
        """The number of ops added so far, which is the index of the next op."""
        return self._num_ops

    def factored(self, block: Block) -> None:
        """Add demands that stay factored; see `moesim.program.factored`."""
        self._factored.append(block)

    def build(self) -> Program:
        """Freeze the ops into a `Program`. Fair units are set so that communication ops share by
        bytes per flow.

        Raises:
            ConfigError: An op demands a negative or non-finite amount, an unknown resource, or the
                same resource twice; a latency, release or number of bytes per flow is negative or
                not finite; or an op waits for one that was not added before it.
        """
        counts = [count for _, count, _ in self._op_runs]
        ptr = pointers(_column(self._lengths, counts, np.int64))
        resource, amount = _joined(self._resource, np.int64), _joined(self._amount, np.float64)
        self._check(ptr, resource, amount)
        latency, release, flow = (
            _column(column, counts, np.float64)
            for column in (self._latency, self._release, self._flow_bytes)
        )
        self._check_numbers(latency, release, flow)
        dep_ptr = pointers(_column(self._num_deps, counts, np.int64))
        deps, count_B = _joined(self._deps, np.int64), np.array(counts, dtype=np.int64)
        self._check_waits(dep_ptr, deps, count_B)
        keep = amount > 0
        if not keep.all():
            # dropping the zeros moves the beginning of every row
            ptr = pointers(keep)[ptr]
            resource, amount = resource[keep], amount[keep]
        capacity = _joined(self._capacity, np.float64)
        solo = row_largest(ptr, amount / capacity[resource])
        for block in self._factored:
            solo[block.ops_I] = np.maximum(solo[block.ops_I], block.largest_s_I(capacity))
        return Program(
            capacity_R=capacity,
            resources=Names(runs=tuple(self._resource_runs)),
            demand_ptr=ptr,
            demand_resource=resource,
            demand_amount=amount,
            factored=tuple(self._factored),
            latency_s_N=latency,
            release_s_N=release,
            fair_unit_s_N=_fair_units(solo, flow),
            dep_ptr=dep_ptr,
            dep_index=deps,
            ops=Names(runs=tuple(self._op_runs)),
            phase_N=np.repeat(np.array(self._phase, dtype=np.int64), count_B),
            phase_names=tuple(self._phase_number),
        )

    def _check_numbers(self, latency: Array, release: Array, flow: Array) -> None:
        if not (_sound(latency) and _sound(release)):
            op = int((~(_fine(latency) & _fine(release))).argmax())
            raise ConfigError(
                f"op {self._label(op)}: expected latency and release >= 0, got "
                f"{latency[op].item()!r} and {release[op].item()!r}"
            )
        if not _sound(flow):
            op = int((~_fine(flow)).argmax())
            raise ConfigError(
                f"op {self._label(op)}: expected bytes per flow >= 0, got {flow[op].item()!r}"
            )

    def _check_waits(self, ptr: Array, deps: Array, counts: Array) -> None:
        """Check that every op waits only for earlier ones, which keeps the program acyclic."""
        first = pointers(counts)[:-1]
        below = np.repeat(first, counts)
        for batch in np.flatnonzero(self._own_batch):
            ops = slice(first[batch], first[batch] + counts[batch])
            below[ops] = np.arange(ops.start, ops.stop)
        wrong = (deps < 0) | (deps >= np.repeat(below, np.diff(ptr)))
        if wrong.any():
            op = int(np.searchsorted(ptr, int(wrong.argmax()), side="right")) - 1
            before = first[np.searchsorted(first, op, side="right") - 1]
            raise ConfigError(
                f"op {self._label(op)}: expected dependencies among the {before} ops before it, "
                f"got {deps[ptr[op] : ptr[op + 1]].tolist()}"
            )

    def _check(self, ptr: Array, resource: Array, amount: Array) -> None:
        """Check all demands at once."""
        known = self._num_resources
        if not _sound(amount):
            wrong = int((~_fine(amount)).argmax())
            self._refuse(wrong, "a finite demand >= 0", ptr, resource, amount)
        if len(resource) and (resource.min() < 0 or resource.max() >= known):
            wrong = int(((resource < 0) | (resource >= known)).argmax())
            self._refuse(wrong, f"a resource below {known}", ptr, resource, amount)
        # rows whose resources ascend contain no resource twice, so they need no sorting
        ascending = np.ones(len(resource) + 1, dtype=bool)
        np.greater(resource[1:], resource[:-1], out=ascending[1:-1])
        ascending[ptr] = True  # a new row may begin with any resource
        if ascending.all():
            return
        op = np.repeat(np.arange(self._num_ops), np.diff(ptr))
        # equal keys are the same resource in the same op
        key = op * max(known, 1) + resource
        order = np.argsort(key, kind="stable")
        twice = np.zeros(len(op), dtype=bool)
        twice[order[1:]] = np.diff(key[order]) == 0
        if twice.any():
            self._refuse(int(twice.argmax()), "each resource once", ptr, resource, amount)

    def _refuse(self, entry: int, rule: str, ptr: Array, resource: Array, amount: Array) -> None:
        op = int(np.searchsorted(ptr, entry, side="right")) - 1
        raise ConfigError(
            f"op {self._label(op)}: expected {rule}, got {amount[entry]} of resource "
            f"{resource[entry]}"
        )

    def _label(self, op: int) -> str:
        return Names(runs=tuple(self._op_runs)).expand()[op]


def _column(values: Sequence[Numbers], counts: list[int], kind: type) -> Array:
    """Return one number per op as an ndarray of shape (N,), from those of each batch."""
    out: Array = np.empty(sum(counts), dtype=kind)
    end = 0
    for value, count in zip(values, counts, strict=True):
        begin, end = end, end + count
        out[begin:end] = value
    return out


def _sound(values: Array) -> bool:
    """Return whether all values are >= 0 and finite; a NaN fails both comparisons."""
    return not len(values) or bool(values.min() >= 0 and values.max() < math.inf)


def _fine(values: Array) -> Array:
    """Return which values are >= 0 and finite."""
    return (values >= 0) & (values < math.inf)


def _rows(values: Array | None, ptr: Array | None, count: int) -> tuple[Array, int | Array]:
    """Return (flat values, length of each of ``count`` rows) for a matrix, for one row that all
    share, or for rows of different lengths; one length if they are equal.
    """
    if values is None:
        return _NONE, 0
    array = np.asarray(values, dtype=np.int64)
    if ptr is not None:
        return array, np.diff(ptr)
    if array.ndim == 1:
        return np.tile(array, count), len(array)
    return array.ravel(), array.shape[1]


def _joined(parts: list[Array], dtype: type) -> Array:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype=dtype)


def _fair_units(solo_s_N: Array, bytes_per_flow_N: Array) -> Array:
    """Return the fair units: the solo time, or ``c * bytes per flow`` for communication, where c
    keeps the sum of these units.

    Dominant-resource fairness (the solo time for all ops) would throttle a transfer by a port that
    it hardly uses. Packet switches and round-robin NIC queues give every flow equal bytes per
    second.
    """
    flow = (bytes_per_flow_N > 0) & (solo_s_N > 0)
    unit = solo_s_N.copy()
    if flow.any():
        unit[flow] = bytes_per_flow_N[flow] * (solo_s_N[flow].sum() / bytes_per_flow_N[flow].sum())
    return unit
