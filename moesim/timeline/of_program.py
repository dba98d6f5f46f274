"""Make a sheet of a program that ran: slices of ranks, arrows along tokens, counters of ports and
memory, and the critical path.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moesim.report.slices import MOST_SLICES, Counter, Sheet, Slice, stepped
from moesim.simulation.phases import critical_segments
from moesim.timeline.program_slices import EXCHANGES, OpGroup, Placed, RanProgram, rank_name

Array = np.ndarray
#: process and track of the critical path
CRITICAL = ("critical path", "phases")
#: devices with counters, and devices whose largest sender is looked for
_COUNTED, _TRACED = 64, 1024
#: counter -> kinds of resources and the owners among `PortOwners` that it sums
_COUNTERS = (
    ("compute busy", "sm", "device"),
    ("HBM busy", "hbm", "device"),
    ("link out busy", "", "out"),
    ("link in busy", "", "in"),
    ("host link busy", "host", "device"),
)


@dataclass(frozen=True, slots=True)
class ShownPart:
    """The part of a program that is shown.

    Attributes:
        layers: Indices of its layers; None for all.
        begin_s: When it begins, which becomes 0.
        end_s: When it ends.
    """

    layers: tuple[int, ...] | None
    begin_s: float
    end_s: float

    def holds(self, key: OpGroup) -> bool:
        """Return whether a group of ops belongs to it."""
        return self.layers is None or key.layer in self.layers


def sheet_of(ran: RanProgram, title: str, window: ShownPart | None = None) -> Sheet:
    """Return the timeline of a program.

    Args:
        ran: The program with its timeline.
        title: What it shows.
        window: The part that is shown; by default all of it.
    """
    window = window or ShownPart(None, 0.0, ran.timeline.makespan_s)
    sheet = Sheet(title=title)
    per_rank = 2 * sum(1 for key in ran.groups if window.holds(key)) + 1
    shown = min(ran.num_devices, max((MOST_SLICES - len(ran.groups)) // per_rank, 1))
    devices = np.arange(shown)
    where: dict[tuple[OpGroup, int, str], int] = {}
    for slice_ in _critical(ran, window):
        sheet.add(slice_)
    placed = [one for one in ran.placed(devices) if window.holds(one.key)]
    placed.sort(key=lambda one: (one.device, one.slice_.begin_s))
    for one in placed:
        where[one.key, one.device, one.side] = sheet.add(_moved(one, window))
    sheet.arrows = [
        chain
        for found in _arrows(ran, where, placed)
        if len(chain := _in_order(found, sheet.slices)) > 1
    ]
    sheet.counters = list(_counters(ran, devices[:_COUNTED], window))
    sheet.facts = {
        "ranks_shown": shown,
        "ranks": ran.num_devices,
        "ranks_with_counters": min(shown, _COUNTED),
        "units": "ts and dur: us. *_us: time alone on a resource. bytes: received. Counters: % of "
        "the data sheet's rate, each op spread evenly over its service.",
        "ports_told_apart": ran.expanded is not None,
    }
    return sheet


def _moved(one: Placed, window: ShownPart) -> Slice:
    old = one.slice_
    return Slice(
        process=old.process,
        track=old.track,
        name=old.name,
        category=old.category,
        begin_s=old.begin_s - window.begin_s,
        end_s=old.end_s - window.begin_s,
        args=old.args,
    )


def _critical(ran: RanProgram, window: ShownPart) -> Iterator[Slice]:
    """Yield the critical path within the window, from its end to its begin."""
    process, track = CRITICAL
    for phase, begin, end in critical_segments(ran.program, ran.timeline):
        begin, end = max(begin, window.begin_s), min(end, window.end_s)
        if end > begin:
            yield Slice(
                process=process,
                track=track,
                name=phase,
                category=phase,
                begin_s=begin - window.begin_s,
                end_s=end - window.begin_s,
                args={"phase": phase, "exposed_communication": phase in EXCHANGES},
            )


# --- arrows ---


def _arrows(
    ran: RanProgram, where: Mapping[tuple[OpGroup, int, str], int], placed: list[Placed]
) -> Iterator[tuple[int, ...]]:
    """Yield the way of tokens through each rank: sent by the rank that sends it most, received,
    computed, returned, and added up where they came from.
    """
    experts = [one for one in placed if one.key.phase == "experts"]
    senders = {key: _largest_sender(ran, key) for key in ran.groups if key.phase == "dispatch"}
    for one in experts:
        key = one.key
        legs = {
            phase: [
                k
                for k in ran.groups
                if (k.phase, k.batch, k.layer) == (phase, key.batch, key.layer)
            ]
            for phase in (*EXCHANGES, "reduce")
        }
        chain: list[int] = []
        sender = -1
        for dispatch in legs["dispatch"][-1:]:
            sender = int(senders[dispatch].get(one.device, -1))
            chain += _found(where, (dispatch, sender, "send"), (dispatch, one.device, "receive"))
        chain += _found(where, (key, one.device, "compute"))
        for combine in legs["combine"][:1]:
            chain += _found(where, (combine, one.device, "send"))
        for added in legs["reduce"]:
            home = sender if sender >= 0 else one.device
            chain += _found(where, (added, home, "compute"))
        yield tuple(chain)


def _in_order(chain: tuple[int, ...], slices: list[Slice]) -> tuple[int, ...]:
    """Return a chain without a sender that begins after the receiver: other ranks sent first."""
    if len(chain) > 1 and slices[chain[0]].begin_s > slices[chain[1]].begin_s:
        return chain[1:]
    return chain


def _found(
    where: Mapping[tuple[OpGroup, int, str], int], *keys: tuple[OpGroup, int, str]
) -> list[int]:
    return [where[key] for key in keys if key in where]


def _largest_sender(ran: RanProgram, key: OpGroup) -> dict[int, int]:
    """Return device -> the other device that sends it most, as far as ports tell."""
    if ran.num_devices > _TRACED:
        return {}
    op, resource, amount = ran.entries_of(ran.groups[key])
    out, memory = ran.ports.out_R[resource], ran.ports.memory_R[resource]
    # the memory in which an op's bytes land says who receives it
    lands = dict(zip(op[memory >= 0].tolist(), memory[memory >= 0].tolist(), strict=True))
    receiver = np.array([lands.get(i, -1) for i in op.tolist()])
    fits = (out >= 0) & (receiver >= 0) & (out != receiver)
    sent = np.zeros((ran.num_devices, ran.num_devices))
    np.add.at(sent, (receiver[fits], out[fits]), amount[fits])
    return {d: int(row.argmax()) for d, row in enumerate(sent) if row.any()}


# --- counters ---


def _counters(ran: RanProgram, devices: Array, window: ShownPart) -> Iterator[Counter]:
    program = ran.expanded
    if program is None:
        return
    op = program.op_of_entry()
    service_s = ran.timeline.end_s_N - ran.timeline.start_s_N - program.latency_s_N
    busy = program.demand_s()
    ports = ran.ports
    numbered = np.concatenate([np.arange(count) for _, count in program.resources.kinds()])
    for name, kind, owners in _COUNTERS:
        if owners == "device":
            owner_R = np.where(ports.kind_R == kind, numbered, -1)
        else:
            owner_R = ports.out_R if owners == "out" else ports.in_R
        for label, part_R in _by_kind(name, owner_R, ports.kind_R):
            owner = part_R[program.demand_resource]
            for device in devices.tolist():
                mine = (owner == device) & (service_s[op] > 0)
                if mine.any():
                    # of a torus, the mean over the links of a device
                    share = busy[mine] / service_s[op[mine]] / (part_R == device).sum()
                    yield _counter(ran, label, device, (op[mine], share, service_s), window)


def _by_kind(name: str, owner_R: Array, kind_R: Array) -> Iterator[tuple[str, Array]]:
    """Yield (name, owner of each resource) for each kind of resource: ports of links and of NICs
    are counted apart.
    """
    for kind in dict.fromkeys(kind_R[owner_R >= 0].tolist()):
        label = name if not kind.startswith("nic") else name.replace("link", "NIC")
        yield label, np.where(kind_R == kind, owner_R, -1)


def _counter(
    ran: RanProgram,
    name: str,
    device: int,
    demands: tuple[Array, Array, Array],
    window: ShownPart,
) -> Counter:
    op, share, service_s = demands
    end = ran.timeline.end_s_N[op]
    begin = end - service_s[op]
    begin, end = (np.clip(t, window.begin_s, window.end_s) - window.begin_s for t in (begin, end))
    time_s, value = stepped(begin, end, 100.0 * share)
    return Counter(process=rank_name(device), name=name, unit="%", time_s_P=time_s, value_P=value)
