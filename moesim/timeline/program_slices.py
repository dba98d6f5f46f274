"""Turn a program that ran into slices: what each device computed, sent and received, and when.

An op of a phase is a slice on its device's compute track; copies from the host are on a track of
their own. An exchange has an op per receiver, per sender or per pair, as it was lowered: a device's
slice on its send track lasts from the begin of the first op that uses its outgoing ports to the end
of the last, its slice on the receive track from the begin of the first op that writes to its memory
to the end of the last. Hops of an exchange that run side by side have tracks of their own.

Shape legend: D devices, N ops, R resources.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from moesim.errors import CapacityError
from moesim.hardware import Cluster
from moesim.hardware.fabric import PORTS, TORUS, Fabric, fabric_of
from moesim.program import Program, Timeline
from moesim.report.slices import Slice
from moesim.units import GIB, US

Array = np.ndarray
EXCHANGES = ("dispatch", "combine")
#: phases that copy from the host's memory
HOST = ("fetch", "prefetch")
_CLASS = re.compile(r"_\d+$")
#: memory that the demands of factored traffic may take once they are expanded
_MOST_BYTES = 1 * GIB


@dataclass(frozen=True, slots=True)
class OpGroup:
    """What a group of ops does.

    Attributes:
        phase: Its phase.
        leg: The hop of an exchange; empty for the only one, and for other phases.
        batch: The micro-batch, as the ops' names say it; empty for the only one.
        layer: Index of the layer.
        turn: How many exchanges the micro-batch had ended before, as where a backward pass begins
            with the forward pass once more.
    """

    phase: str
    leg: str
    batch: str
    layer: int
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A slice with what it came from.

    Attributes:
        slice_: The slice.
        key: The group of ops.
        device: The device.
        side: ``compute``, ``send``, ``receive`` or ``host``.
    """

    slice_: Slice
    key: OpGroup
    device: int
    side: str


#: (key, device) -> further facts for the arguments of a slice
Facts = Callable[[OpGroup, int], Mapping[str, object]]


def _nothing(key: OpGroup, device: int) -> Mapping[str, object]:
    return {}


def rank_name(device: int) -> str:
    """Return the name of a device's process."""
    return f"rank {device}"


@dataclass(frozen=True, kw_only=True, eq=False)
class RanProgram:
    """A program with its timeline.

    Attributes:
        program: The program, on the devices of a cluster.
        timeline: When its ops ran.
        cluster: The cluster.
        layer_N: ndarray of shape (N,): index of the layer of each op; None for a single layer.
        names: Phase -> name of its slices; by default the phase.
        facts: Further arguments of a slice.
    """

    program: Program
    timeline: Timeline
    cluster: Cluster
    layer_N: Array | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    facts: Facts = _nothing

    @cached_property
    def expanded(self) -> Program | None:
        """The program with every demand as an entry; None if that takes too much memory."""
        try:
            return self.program.expanded(memory_bytes=_MOST_BYTES)
        except CapacityError:
            return None

    @property
    def num_devices(self) -> int:
        """The number of devices D."""
        return self.cluster.num_devices

    @cached_property
    def ports(self) -> "PortOwners":
        """The devices that the resources belong to."""
        return PortOwners.of(self.program, self.cluster)

    @cached_property
    def groups(self) -> dict[OpGroup, Array]:
        """OpGroup -> indices of its ops, without those that only join others."""
        works_N = (self._work().demand_ptr[1:] > self._work().demand_ptr[:-1]) | (
            self.program.latency_s_N > 0
        )
        for block in self._work().factored:
            works_N[block.ops_I] = True
        found: dict[OpGroup, list[Array]] = {}
        # of each micro-batch, its turn and whether its exchange is on the way back
        turns: dict[str, tuple[int, bool]] = {}
        first = 0
        for label, count in self.program.ops.kinds():
            ops = np.arange(first, first + count)
            first += count
            if works_N[ops].any():
                found.setdefault(self._key(label, int(ops[0]), turns), []).append(ops)
        return {key: np.concatenate(parts) for key, parts in found.items()}

    def _work(self) -> Program:
        return self.expanded or self.program

    def _key(self, label: str, op: int, turns: dict[str, tuple[int, bool]]) -> OpGroup:
        phase = self.program.phase_names[self.program.phase_N[op]]
        name, _, batch = label.partition("@")
        leg = ""
        if phase in EXCHANGES:
            leg = _CLASS.sub("", name.removeprefix(phase)).removeprefix("_")
        turn, returns = turns.get(batch, (0, False))
        if phase in EXCHANGES:
            turn += returns and phase == "dispatch"
            turns[batch] = turn, phase == "combine"
        layer = 0 if self.layer_N is None else int(self.layer_N[op])
        return OpGroup(phase, leg, batch, layer, turn)

    def groups_within(self, begin_s: float, end_s: float) -> dict[OpGroup, Array]:
        """Return the groups of which some op runs within a span."""
        start, end = self.timeline.start_s_N, self.timeline.end_s_N
        return {
            key: ops
            for key, ops in self.groups.items()
            if ((start[ops] < end_s) & (end[ops] > begin_s)).any()
        }

    def placed(self, groups: Mapping[OpGroup, Array], devices: Array) -> Iterator[Placed]:
        """Yield the slices of some devices, group by group.

        Args:
            groups: The groups.
            devices: ndarray: indices of the devices.
        """
        for key, ops in groups.items():
            if key.phase in EXCHANGES:
                yield from self._exchanged(key, ops, devices)
            else:
                yield from self._computed(key, ops, devices)

    # --- compute and copies from the host: op i is on device i ---

    def _computed(self, key: OpGroup, ops: Array, devices: Array) -> Iterator[Placed]:
        start, end = self.timeline.start_s_N[ops], self.timeline.end_s_N[ops]
        side = "host" if key.phase in HOST else "compute"
        for device in devices.tolist():
            for at in range(device, len(ops), self.num_devices):
                if end[at] > start[at]:
                    facts = self.demand_of(int(ops[at]))
                    yield self._slice(key, device, side, (start[at], end[at]), facts)

    def demand_of(self, op: int) -> dict[str, object]:
        """Return what an op demands: seconds of each kind of resource, and what bounds it."""
        program = self._work()
        entries = slice(program.demand_ptr[op], program.demand_ptr[op + 1])
        seconds = (
            program.demand_amount[entries] / program.capacity_R[program.demand_resource[entries]]
        )
        shares = {"latency": float(program.latency_s_N[op])}
        for kind, one in zip(
            self.ports.kind_R[program.demand_resource[entries]].tolist(),
            seconds.tolist(),
            strict=True,
        ):
            shares[kind] = max(shares.get(kind, 0.0), one)
        bound = max(shares, key=lambda name: shares[name])
        return {
            **{f"{name}_us": round(s / US, 4) for name, s in shares.items()},
            "bound_by": bound,
        }

    def _slice(
        self,
        key: OpGroup,
        device: int,
        side: str,
        span_s: tuple[float, float],
        found: Mapping[str, object],
    ) -> Placed:
        track = {"send": "send", "receive": "receive", "host": "host copies"}.get(side, "compute")
        name = self.names.get(key.phase, key.phase)
        batch = {"micro_batch": key.batch} if key.batch else {}
        return Placed(
            slice_=Slice(
                process=rank_name(device),
                track=f"{track} {key.leg}".rstrip(),
                name=name,
                category=key.phase,
                begin_s=float(span_s[0]),
                end_s=float(span_s[1]),
                args={
                    "phase": key.phase,
                    "layer": key.layer,
                    **batch,
                    **found,
                    **self.facts(key, device),
                },
            ),
            key=key,
            device=device,
            side=side,
        )

    # --- exchanges: whose ports and memory the ops use ---

    def entries_of(self, ops: Array) -> tuple[Array, Array, Array]:
        """Return (op, resource, amount) of every demand of some ops; empty where traffic is too
        large to be told apart.
        """
        program = self.expanded
        if program is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        lengths = np.diff(program.demand_ptr)[ops]
        at = np.repeat(program.demand_ptr[ops] - np.cumsum(lengths) + lengths, lengths)
        at = at + np.arange(lengths.sum())
        return np.repeat(ops, lengths), program.demand_resource[at], program.demand_amount[at]

    def _exchanged(self, key: OpGroup, ops: Array, devices: Array) -> Iterator[Placed]:
        op, resource, amount = self.entries_of(ops)
        bounds = self._bounds(op, resource, amount)
        for side, owner_R in (("send", self.ports.out_R), ("receive", self.ports.memory_R)):
            owner = owner_R[resource]
            mine = owner >= 0
            spans, moved, most = self._spans(op[mine], owner[mine], amount[mine], bounds)
            for device in devices.tolist():
                begin_s, end_s = spans[:, device]
                if not end_s > begin_s:
                    continue
                facts: dict[str, object] = {"bound_by": most[device]}
                if side == "receive":
                    facts["bytes"] = round(float(moved[device]))
                yield self._slice(key, device, side, (begin_s, end_s), facts)

    def _spans(
        self, op: Array, owner: Array, amount: Array, bounds: Mapping[int, str]
    ) -> tuple[Array, Array, dict[int, str]]:
        """Return the begin and end of each device's part, the amounts, and what bounds the op that
        ends last.
        """
        begin, end = np.full(self.num_devices, np.inf), np.zeros(self.num_devices)
        np.minimum.at(begin, owner, self.timeline.start_s_N[op])
        np.maximum.at(end, owner, self.timeline.end_s_N[op])
        order = np.argsort(self.timeline.end_s_N[op], kind="stable")
        # of repeated devices the last op stays, which ends last
        last = np.full(self.num_devices, -1)
        last[owner[order]] = op[order]
        most = {d: bounds[i] for d, i in enumerate(last.tolist()) if i >= 0}
        return np.stack([begin, end]), np.bincount(owner, amount, self.num_devices), most

    def _bounds(self, op: Array, resource: Array, amount: Array) -> dict[int, str]:
        """Return what bounds each op of an exchange: its latency, or its busiest resource."""
        seconds = amount / self.program.capacity_R[resource]
        order = np.lexsort((seconds, op))
        last = np.flatnonzero(np.append(np.diff(op[order]) != 0, True)) if len(op) else order
        found = {}
        for at in order[last].tolist():
            one = int(op[at])
            slow = self.program.latency_s_N[one] > seconds[at]
            found[one] = "latency" if slow else str(self.ports.kind_R[resource[at]])
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PortOwners:
    """Whose the resources of a program are.

    Attributes:
        kind_R: ndarray of shape (R,): name of the kind of each resource, such as ``sm``.
        out_R: ndarray of shape (R,): the device whose outgoing port or link a resource is; -1 for
            none.
        in_R: ndarray of shape (R,): the device whose incoming port it is; -1 for none.
        memory_R: ndarray of shape (R,): the device whose memory it is; -1 for none.
    """

    kind_R: Array
    out_R: Array
    in_R: Array
    memory_R: Array

    @classmethod
    def of(cls, program: Program, cluster: Cluster) -> "PortOwners":
        """Return the owners of the resources of a program of a cluster's devices."""
        kinds = program.resources.kinds()
        kind_R = np.repeat([name for name, _ in kinds], [count for _, count in kinds])
        out_R, in_R, memory_R = (np.full(len(kind_R), -1) for _ in range(3))
        memory_R[kind_R == "hbm"] = np.arange(cluster.num_devices)
        if cluster.num_devices > 1:
            fabric = fabric_of(cluster)
            if tuple(name for name, _ in fabric.runs) == tuple(
                n for n, _ in kinds[: len(fabric.runs)]
            ):
                cls._fill(fabric, cluster, out_R, in_R)
        return cls(kind_R=kind_R, out_R=out_R, in_R=in_R, memory_R=memory_R)

    @staticmethod
    def _fill(fabric: Fabric, cluster: Cluster, out_R: Array, in_R: Array) -> None:
        tables = fabric.tables
        width = 1
        if tables.near_kind == TORUS:
            width = tables.next_LX.shape[1]
        elif tables.near_kind != PORTS:
            width = cluster.devices_per_domain
        for device in range(cluster.num_devices):
            near, far = int(tables.near_out_D[device]), int(tables.far_out_D[device])
            if near >= 0:
                out_R[near : near + width] = device
            if far >= 0:
                out_R[far] = device
            for port in (int(tables.near_in_D[device]), int(tables.far_in_D[device])):
                if port >= 0:
                    in_R[port] = device
