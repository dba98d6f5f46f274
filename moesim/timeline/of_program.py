"""Make a sheet of a program that ran: slices of ranks, arrows along tokens, counters of ports and
memory, and the critical path.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from moesim.report.slices import Counter, Sheet, Slice, stepped
from moesim.simulation.phases import critical_segments
from moesim.timeline.program_slices import EXCHANGES, OpGroup, Placed, RanProgram, rank_name
from moesim.units import US

Array = np.ndarray
#: process and track of the critical path
CRITICAL = ("critical path", "phases")
#: slices of a program, of which a file may hold three
_MOST_OF_PROGRAM = 60_000
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
    """The part of a program's time that is shown; slices that cross its ends are cut there.

    Attributes:
        begin_s: When it begins, which becomes 0.
        end_s: When it ends.
    """

    begin_s: float
    end_s: float

    def cut(self, slice_: Slice) -> Slice | None:
        """Return what a slice has of it; None for nothing."""
        begin = max(slice_.begin_s, self.begin_s) - self.begin_s
        end = min(slice_.end_s, self.end_s) - self.begin_s
        if not end > begin:
            return None
        args = slice_.args
        if end - begin < slice_.seconds * (1.0 - 1e-9):
            args = {**args, "cut_of_us": round(slice_.seconds / US, 4)}
        return replace(slice_, begin_s=begin, end_s=end, args=args)


def sheet_of(ran: RanProgram, title: str, part: ShownPart | None = None) -> Sheet:
    """Return the timeline of a program.

    Args:
        ran: The program with its timeline.
        title: What it shows.
        part: The part that is shown; by default all of it.
    """
    part = part or ShownPart(0.0, ran.timeline.makespan_s)
    sheet = Sheet(title=title)
    groups = ran.groups_within(part.begin_s, part.end_s)
    # two sides of an exchange, and several ops of a phase in a layer
    per_rank = sum(max(2, len(ops) // ran.num_devices) for ops in groups.values()) + 1
    shown = min(ran.num_devices, max((_MOST_OF_PROGRAM - ran.program.num_ops) // per_rank, 1))
    devices = np.arange(shown)
    for slice_ in _critical(ran):
        if (cut := part.cut(slice_)) is not None:
            sheet.add(cut)
    placed = sorted(
        (
            replace(one, slice_=cut)
            for one in ran.placed(groups, devices)
            if (cut := part.cut(one.slice_)) is not None
        ),
        key=lambda one: (one.device, one.slice_.begin_s),
    )
    where = {(one.key, one.device, one.side): sheet.add(one.slice_) for one in placed}
    chains = (_in_order(found, sheet.slices) for found in _arrows(ran, groups, where, placed))
    # experts may compute several times between two exchanges
    sheet.arrows = list(dict.fromkeys(chain for chain in chains if len(chain) > 1))
    sheet.counters = list(_counters(ran, devices[:_COUNTED], part))
    sheet.facts = {
        "ranks_shown": shown,
        "ranks": ran.num_devices,
        "ranks_with_counters": min(shown, _COUNTED),
        "units": "ts and dur: us. *_us: time alone on a resource. bytes: received. Counters: % of "
        "the data sheet's rate, each op spread evenly over its service.",
        "ports_told_apart": ran.expanded is not None,
    }
    return sheet


def _critical(ran: RanProgram) -> Iterator[Slice]:
    """Yield the critical path, from its end to its begin."""
    process, track = CRITICAL
    for phase, begin, end in critical_segments(ran.program, ran.timeline):
        if end > begin:
            yield Slice(
                process=process,
                track=track,
                name=phase,
                category=phase,
                begin_s=begin,
                end_s=end,
                args={"phase": phase, "exposed_communication": phase in EXCHANGES},
            )


# --- arrows ---


def _arrows(
    ran: RanProgram,
    groups: Mapping[OpGroup, Array],
    where: Mapping[tuple[OpGroup, int, str], int],
    placed: list[Placed],
) -> Iterator[tuple[int, ...]]:
    """Yield the way of tokens through each rank: sent by the rank that sends it most, received,
    computed, returned, and added up where they came from.
    """
    experts = [one for one in placed if one.key.phase == "experts"]
    senders = {key: _largest_sender(ran, key) for key in groups if key.phase == "dispatch"}
    for one in experts:
        key = one.key
        legs = {
            phase: [k for k in groups if (k.phase, k.batch, k.turn) == (phase, key.batch, key.turn)]
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
    lands_N = np.full(ran.program.num_ops, -1)
    lands_N[op[memory >= 0]] = memory[memory >= 0]
    receiver = lands_N[op]
    fits = (out >= 0) & (receiver >= 0) & (out != receiver)
    sent = np.zeros((ran.num_devices, ran.num_devices))
    np.add.at(sent, (receiver[fits], out[fits]), amount[fits])
    return {d: int(row.argmax()) for d, row in enumerate(sent) if row.any()}


# --- counters ---


def _counters(ran: RanProgram, devices: Array, part: ShownPart) -> Iterator[Counter]:
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
            # of many entries, only those of devices that are counted
            kept = np.flatnonzero((owner >= 0) & (owner <= devices[-1]) & (service_s[op] > 0))
            for device in devices.tolist():
                mine = kept[owner[kept] == device]
                if len(mine):
                    # of a torus, the mean over the links of a device
                    share = busy[mine] / service_s[op[mine]] / (part_R == device).sum()
                    yield _counter(ran, label, device, (op[mine], share, service_s), part)


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
    part: ShownPart,
) -> Counter:
    op, share, service_s = demands
    end = ran.timeline.end_s_N[op]
    begin = end - service_s[op]
    begin, end = (np.clip(t, part.begin_s, part.end_s) - part.begin_s for t in (begin, end))
    time_s, value = stepped(begin, end, 100.0 * share)
    return Counter(process=rank_name(device), name=name, unit="%", time_s_P=time_s, value_P=value)
