"""Turn the orders of a pipeline into a program of units that wait for each other.

A forward pass waits for that of the part before, a backward pass for that of the part after; on the
last part it waits for the forward. Between stages the tokens take a hop, which delays the receiver
and holds neither device, since sends are asynchronous. The units of a device follow one another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.lowering.training.orders import Pass, Unit
from moesim.program import Program
from moesim.program.builder import ProgramBuilder, Waits

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoweredPipeline:
    """A pipeline as a program.

    Attributes:
        program: One op for each unit, and one for each hop.
        ops: Ops of the units of every device, in order.
        units: The units of every device.
    """

    program: Program
    ops: list[Array]
    units: list[list[Unit]]


def lower_pipeline(
    orders: list[list[Unit]],
    num_parts: int,
    seconds: Callable[[Unit], float],
    hop_s: float,
) -> LoweredPipeline:
    """Lower a pipeline.

    Args:
        orders: The units of every device.
        num_parts: Number of parts of the model.
        seconds: Function from a unit to the time it takes.
        hop_s: Seconds between a part's end and the begin of the next part.

    Raises:
        AssertionError: Units wait for each other in a circle.
    """
    rows: list[tuple[float, list[int]]] = []
    ended: dict[Pass, int] = {}
    ops: list[list[int]] = [[] for _ in orders]
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
                after = ops[device][-1:]
                for op in waits:
                    # a hop is an op of its own, which the sender does not wait for
                    rows.append((hop_s, [op]))
                    after = [*after, len(rows) - 1]
                rows.append((seconds(unit), after))
                ops[device].append(len(rows) - 1)
                ended.update(dict.fromkeys(unit, len(rows) - 1))
                at[device] += 1
                moved = True
    assert all(n == len(order) for n, order in zip(at, orders, strict=True)), (
        "units wait in circles"
    )
    return LoweredPipeline(program=_program(rows), ops=[np.array(one) for one in ops], units=orders)


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


def _program(rows: Sequence[tuple[float, list[int]]]) -> Program:
    builder = ProgramBuilder()
    counts = [len(after) for _, after in rows]
    builder.ops(
        "unit",
        len(rows),
        latency_s=np.array([seconds for seconds, _ in rows]),
        after=Waits(
            np.array([op for _, after in rows for op in after], dtype=np.int64),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        ),
        own_batch=True,
        phase="unit",
    )
    return builder.build()
