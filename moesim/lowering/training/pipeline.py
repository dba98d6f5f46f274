"""Turn the orders of a pipeline into a program of units that wait for each other.

A forward pass waits for that of the part before, a backward pass for that of the part after; on the
last part it waits for the forward. Between stages the tokens take a hop, which delays the receiver
and holds neither device, since sends are asynchronous. The units of a device follow one another.

What waits for what depends on the schedule and its sizes alone, and is kept for designs that differ
in anything else.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from moesim.design.training.plan import Pipeline
from moesim.lowering.training.orders import (
    Kept,
    Pass,
    PassKind,
    Shape,
    Unit,
    kept_counts,
    orders_of,
)
from moesim.program import Program
from moesim.program.builder import ProgramBuilder, Waits

Array = np.ndarray
#: schedules of which the orders are kept at a time: a large one takes some MiB
_KEPT = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wiring:
    """A pipeline whose units have no times yet.

    Attributes:
        program: One op for each unit, and one for each hop.
        kinds: The distinct units, of micro-batch 0.
        kind_N: Index of each op's kind; -1 for a hop.
        device_N: The device of each op; of a hop the one that receives.
        last: The last op of every device.
        counts: How often every device computes each kind.
    """

    program: Program
    kinds: tuple[Unit, ...]
    kind_N: Array
    device_N: Array
    last: tuple[int, ...]
    counts: tuple[dict[Unit, int], ...]

    def timed(self, seconds: Callable[[Unit], float], hop_s: float) -> Program:
        """Return the program with times.

        Args:
            seconds: Function from a kind of unit to the time it takes.
            hop_s: Seconds between a part's end and the begin of the next part.
        """
        known = np.array([*(seconds(kind) for kind in self.kinds), hop_s])
        return replace(self.program, latency_s_N=known[self.kind_N])


@lru_cache(maxsize=_KEPT)
def kept_of(pipeline: Pipeline, shape: Shape) -> list[list[Kept]]:
    """Return what every device of a pipeline keeps at its fullest moments."""
    return [kept_counts(units) for units in orders_of(pipeline, shape)]


@lru_cache(maxsize=_KEPT)
def wired(pipeline: Pipeline, shape: Shape) -> Wiring:
    """Return a pipeline without times.

    Raises:
        AssertionError: Units wait for each other in a circle.
    """
    return wire(orders_of(pipeline, shape), shape.pp * shape.vp)


def wire(orders: Sequence[Sequence[Unit]], num_parts: int) -> Wiring:
    """Lower a pipeline, without times.

    Args:
        orders: The units of every device.
        num_parts: Number of parts of the model.

    Raises:
        AssertionError: Units wait for each other in a circle.
    """
    kinds: dict[tuple[tuple[PassKind, int], ...], int] = {}
    rows: list[tuple[int, list[int]]] = []
    devices: list[int] = []
    ended: dict[Pass, int] = {}
    last = [-1] * len(orders)
    counts: list[Counter[int]] = [Counter() for _ in orders]
    at = [0] * len(orders)
    moved = True
    while moved:
        moved = False
        for device, order in enumerate(orders):
            while at[device] < len(order):
                unit = order[at[device]]
                waits = _waits(unit, num_parts, ended)
                if waits is None:
                    break
                after = [last[device]] if last[device] >= 0 else []
                for op in waits:
                    # a hop is an op of its own, which the sender does not wait for
                    rows.append((-1, [op]))
                    after.append(len(rows) - 1)
                kind = tuple([(one[0], one[1]) for one in unit])
                number = kinds.setdefault(kind, len(kinds))
                rows.append((number, after))
                devices += [device] * (len(rows) - len(devices))
                last[device] = len(rows) - 1
                counts[device][number] += 1
                for one in unit:
                    ended[one] = last[device]
                at[device] += 1
                moved = True
    assert all(n == len(order) for n, order in zip(at, orders, strict=True)), (
        "units wait in circles"
    )
    units = [tuple(Pass(name, part, 0) for name, part in kind) for kind in kinds]
    return Wiring(
        program=_program([after for _, after in rows]),
        kinds=tuple(units),
        kind_N=np.array([kind for kind, _ in rows], dtype=np.int64),
        device_N=np.array(devices, dtype=np.int64),
        last=tuple(last),
        counts=tuple({units[kind]: n for kind, n in one.items()} for one in counts),
    )


def _waits(unit: Unit, num_parts: int, ended: dict[Pass, int]) -> list[int] | None:
    """Return the ops on other parts that a unit waits for; None if one is not there yet."""
    found = []
    for one in unit:
        if one.kind == "W":
            continue
        step = -1 if one.kind == "F" else 1
        part = one.part + step
        if part == num_parts:
            # the loss: the device's own forward pass, which its order has put before
            if Pass("F", one.part, one.batch) not in ended:
                return None
            continue
        if part < 0:
            continue
        before = ended.get(Pass(one.kind, part, one.batch))
        if before is None:
            return None
        found.append(before)
    return found


def _program(afters: Sequence[list[int]]) -> Program:
    builder = ProgramBuilder()
    counts = [len(after) for after in afters]
    builder.ops(
        "unit",
        len(afters),
        after=Waits(
            np.array([op for after in afters for op in after], dtype=np.int64),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ),
        own_batch=True,
        phase="unit",
    )
    return builder.build()
