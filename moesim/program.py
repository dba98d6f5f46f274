"""A program: ops that demand rate-limited resources, wait for one another, and know nothing of MoE.

An op is a demand vector (bytes or FLOPs on some resources), a latency, a release time, the ops it waits for and a
fair unit. ``start = max(release, ends of what it waits for)``; the latency elapses first, holding nothing; then the
demand is served. Alone, an op takes ``max_r demand_r / capacity_r``: the roofline.

Shape legend: N ops, R resources, nnz demand entries. Ops are numbered so that every dependency has a smaller number,
which makes a program acyclic by construction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moesim.errors import ConfigError

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Demands, latencies and dependencies, ready to run.

    Attributes:
        capacity_R: Units per second of each resource, all > 0.
        resource_names: Names of the resources, for reports.
        demand_ptr: ndarray of shape (N + 1,): op i's demands are entries ``demand_ptr[i]:demand_ptr[i + 1]``.
        demand_resource: Resource of each entry.
        demand_amount: Amount of each entry (bytes or FLOPs), all > 0.
        latency_s_N: Time that elapses before an op's demand is served.
        release_s_N: Earliest start.
        fair_unit_s_N: Share weight: of ops that meet at a resource, each is served in proportion to 1 / fair unit of
            its solo time; equal to the solo time, every op progresses at one relative rate.
        dep_ptr: ndarray of shape (N + 1,): op i waits for ``dep_index[dep_ptr[i]:dep_ptr[i + 1]]``.
        dep_index: The ops waited for.
        labels_N: What each op is, for timelines.
        phases_N: Name of the phase each op belongs to, for summaries.
    """

    capacity_R: Array
    resource_names: Sequence[str]
    demand_ptr: Array
    demand_resource: Array
    demand_amount: Array
    latency_s_N: Array
    release_s_N: Array
    fair_unit_s_N: Array
    dep_ptr: Array
    dep_index: Array
    labels_N: Sequence[str]
    phases_N: Sequence[str]

    @property
    def num_ops(self) -> int:
        """Number of ops N."""
        return len(self.latency_s_N)

    def demand_s(self) -> Array:
        """Seconds each demand entry takes alone on its resource: ndarray of shape (nnz,)."""
        return self.demand_amount / self.capacity_R[self.demand_resource]

    def solo_s_N(self) -> Array:
        """Service time of each op alone, without its latency: the largest of its demands in seconds."""
        solo = np.zeros(self.num_ops)
        np.maximum.at(solo, self._op_of_entry(), self.demand_s())
        return solo

    def busy_s_R(self) -> Array:
        """Seconds of work on each resource; what no engine may change."""
        # counting nothing gives integers, whatever the weights
        return np.bincount(self.demand_resource, self.demand_s(), len(self.capacity_R)).astype(np.float64)

    def demand_R(self) -> Array:
        """Total demand on each resource in its own unit (bytes or FLOPs)."""
        return np.bincount(self.demand_resource, self.demand_amount, len(self.capacity_R)).astype(np.float64)

    def _op_of_entry(self) -> Array:
        return np.repeat(np.arange(self.num_ops), np.diff(self.demand_ptr))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """When each op of a program ran.

    Attributes:
        start_s_N: Start of each op (its latency included).
        end_s_N: End of each op.
        busy_s_R: Seconds of work each resource served.
        engine: Engine that made it.
        exact: False for a bound, whose times are earliest times and not a schedule.
    """

    start_s_N: Array
    end_s_N: Array
    busy_s_R: Array
    engine: str
    makespan_s: float
    exact: bool = True


@dataclass(slots=True)
class ProgramBuilder:
    """Collects resources and ops, checks them, and freezes them into a `Program`."""

    _capacity: list[float] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _resource: list[Sequence[int] | Array] = field(default_factory=list)
    _amount: list[Sequence[float] | Array] = field(default_factory=list)
    _latency: list[float] = field(default_factory=list)
    _release: list[float] = field(default_factory=list)
    _flow_bytes: list[float] = field(default_factory=list)
    _deps: list[Sequence[int]] = field(default_factory=list)
    _labels: list[str] = field(default_factory=list)
    _phases: list[str] = field(default_factory=list)

    def resource(self, name: str, capacity: float) -> int:
        """Add a resource of ``capacity`` units per second; returns its number.

        Raises:
            ConfigError: A capacity that is not a finite number > 0.
        """
        if not 0 < capacity < math.inf:
            raise ConfigError(f"resource {name}: expected a finite capacity > 0, got {capacity!r}")
        self._capacity.append(float(capacity))
        self._names.append(name)
        return len(self._capacity) - 1

    def op(
        self,
        label: str,
        *,
        resources: Sequence[int] | Array = (),
        amounts: Sequence[float] | Array = (),
        latency_s: float = 0.0,
        release_s: float = 0.0,
        after: Sequence[int] = (),
        bytes_per_flow: float = 0.0,
        phase: str = "",
    ) -> int:
        """Add an op; returns its number.

        Args:
            label: What it is.
            resources: Resources it demands, each once.
            amounts: How much of each; zeros are dropped. Checked by `build`.
            latency_s: Elapses before the demand is served.
            release_s: Earliest start.
            after: Ops it waits for, added before.
            bytes_per_flow: For communication: bytes at its largest port over its source-destination pairs. Every
                flow then gets equal bytes per second at a port it shares. 0 for compute.
            phase: Name of the phase it belongs to.

        Raises:
            ConfigError: A negative or non-finite latency or release, or an unknown dependency (demands: see `build`).
        """
        number = len(self._latency)
        if len(resources) != len(amounts):
            raise ConfigError(f"op {label}: expected one amount per resource, got {len(amounts)} for {len(resources)}")
        if not (0 <= latency_s < math.inf and 0 <= release_s < math.inf):
            raise ConfigError(f"op {label}: expected latency and release >= 0, got {latency_s!r} and {release_s!r}")
        if not 0 <= bytes_per_flow < math.inf:
            raise ConfigError(f"op {label}: expected bytes per flow >= 0, got {bytes_per_flow!r}")
        if len(after) and not (min(after) >= 0 and max(after) < number):
            raise ConfigError(f"op {label}: expected dependencies among the {number} ops before it, got {list(after)}")
        self._resource.append(resources)
        self._amount.append(amounts)
        self._latency.append(float(latency_s))
        self._release.append(float(release_s))
        self._flow_bytes.append(float(bytes_per_flow))
        self._deps.append(tuple(after))
        self._labels.append(label)
        self._phases.append(phase)
        return number

    def build(self) -> Program:
        """Freeze into a `Program`; fair units are set so that communication ops share by bytes per flow.

        Raises:
            ConfigError: An op demands a negative or non-finite amount, an unknown resource, or one resource twice.
        """
        count = len(self._latency)
        capacity = np.array(self._capacity)
        size = np.array([len(r) for r in self._resource], dtype=np.int64)
        op = np.repeat(np.arange(count), size)
        resource = np.concatenate([np.empty(0, np.int64), *self._resource]).astype(np.int64)
        amount = np.concatenate([np.empty(0), *self._amount])
        self._check(op, resource, amount)
        keep = amount > 0
        op, resource, amount = op[keep], resource[keep], amount[keep]
        solo = np.zeros(count)
        np.maximum.at(solo, op, amount / capacity[resource])
        return Program(
            capacity_R=capacity,
            resource_names=tuple(self._names),
            demand_ptr=_pointers(np.bincount(op, minlength=count)),
            demand_resource=resource,
            demand_amount=amount,
            latency_s_N=np.array(self._latency),
            release_s_N=np.array(self._release),
            fair_unit_s_N=_fair_units(solo, np.array(self._flow_bytes)),
            dep_ptr=_pointers([len(d) for d in self._deps]),
            dep_index=np.array([i for d in self._deps for i in d], dtype=np.int64),
            labels_N=tuple(self._labels),
            phases_N=tuple(self._phases),
        )

    def _check(self, op: Array, resource: Array, amount: Array) -> None:
        """All demands at once: a check per op would cost more than the simulation of a small program."""
        known = len(self._capacity)
        twice = np.zeros(len(op), dtype=bool)
        key = op * max(known, 1) + resource
        order = np.argsort(key, kind="stable")
        twice[order[1:]] = np.diff(key[order]) == 0
        for wrong, rule in (
            (~((amount >= 0) & (amount < np.inf)), "a finite demand >= 0"),
            ((resource < 0) | (resource >= known), f"a resource below {known}"),
            (twice, "each resource once"),
        ):
            if wrong.any():
                e = int(wrong.argmax())
                raise ConfigError(
                    f"op {self._labels[op[e]]}: expected {rule}, got {amount[e]} of resource {resource[e]}"
                )


def _pointers(counts: Array | Sequence[int]) -> Array:
    """Row pointers of a CSR matrix: ndarray of shape (N + 1,)."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _fair_units(solo_s_N: Array, bytes_per_flow_N: Array) -> Array:
    """Fair units: the solo time, and for communication ``c * bytes per flow`` with c keeping the sum of units.

    Dominant-resource fairness (the solo time for all) throttles a transfer by a port it hardly uses; equal bytes per
    second and flow is what packet switches and round-robin NIC queues give.
    """
    flow = (bytes_per_flow_N > 0) & (solo_s_N > 0)
    unit = solo_s_N.copy()
    if flow.any():
        unit[flow] = bytes_per_flow_N[flow] * (solo_s_N[flow].sum() / bytes_per_flow_N[flow].sum())
    return unit
