"""Say in which order each device of a pipeline computes its micro-batches.

A part is a run of layers; part c is on stage c modulo pp. A pass is the forward (F), the backward
through activations (B) or through weights (W) of a micro-batch on a part. A device computes units
of passes in order: one pass, a whole backward (B and W), or a forward beside a backward.

- ``1f1b``: as many forward passes as there are stages after, then one forward and one backward in
  turn (PipeDream-Flush, arXiv 2006.09503).
- ``interleaved``: the same over virtual stages, in groups of pp micro-batches (Megatron-LM, arXiv
  2104.04473).
- ``zero_bubble``: ZB-H1 (Qi et al. 2023, arXiv 2401.10241). Stage i puts off the first i passes
  through weights, which fill the end.
- ``dualpipe``: micro-batches enter at both ends, each device holds two parts, and forward passes
  run beside backward passes of the other direction (DeepSeek-V3, arXiv 2412.19437).

A forward that runs beside a backward must not be waited for by it in the same turn: with
overlapped exchanges, ``1f1b`` warms up twice as far.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from moesim.design.training.plan import Pipeline

PassKind = Literal["F", "B", "W"]


class Pass(NamedTuple):
    """A pass of a micro-batch through a part."""

    kind: PassKind
    part: int
    batch: int


#: what a device computes at once
Unit = tuple[Pass, ...]


class Shape(NamedTuple):
    """A pipeline: stages, virtual stages of each, micro-batches, and whether passes overlap."""

    pp: int
    vp: int
    batches: int
    overlaps: bool


@lru_cache(maxsize=2)
def orders_of(pipeline: Pipeline, shape: Shape) -> list[list[Unit]]:
    """Return the units of every stage in order. They are kept for the next caller, and must not be
    changed.

    Args:
        pipeline: The schedule.
        shape: Its sizes, which the schedule must divide (`moesim.design.training`).
    """
    if pipeline == "dualpipe":
        return [_dual(stage, shape) for stage in range(shape.pp)]
    if pipeline == "zero_bubble":
        return [_zero_bubble(stage, shape) for stage in range(shape.pp)]
    make = _interleaved if pipeline == "interleaved" else _plain
    return [make(stage, shape) for stage in range(shape.pp)]


def _forward(part: int, batch: int) -> Unit:
    return (Pass("F", part, batch),)


def _backward(part: int, batch: int) -> Unit:
    return (Pass("B", part, batch), Pass("W", part, batch))


def _in_turn(
    forward: Callable[[int], Unit],
    backward: Callable[[int], Unit],
    count: int,
    warm: int,
    beside: bool,
) -> list[Unit]:
    """Return ``warm`` forward passes, then forward and backward in turn or side by side, then the
    backward passes that are left.
    """
    warm = min(warm, count)
    found = [forward(k) for k in range(warm)]
    for k in range(count - warm):
        pair = (forward(warm + k), backward(k))
        found += [pair[0] + pair[1]] if beside else list(pair)
    return found + [backward(k) for k in range(count - warm, count)]


def _plain(stage: int, shape: Shape) -> list[Unit]:
    after = shape.pp - 1 - stage
    return _in_turn(
        lambda k: _forward(stage, k),
        lambda k: _backward(stage, k),
        shape.batches,
        2 * after + 1 if shape.overlaps else after,
        shape.overlaps,
    )


def _interleaved(stage: int, shape: Shape) -> list[Unit]:
    pp, vp = shape.pp, shape.vp

    def at(k: int) -> tuple[int, int]:
        """Return the virtual stage and the micro-batch of the k-th forward pass."""
        group, inside = divmod(k, pp * vp)
        return inside // pp, group * pp + inside % pp

    def forward(k: int) -> Unit:
        chunk, batch = at(k)
        return _forward(chunk * pp + stage, batch)

    def backward(k: int) -> Unit:
        chunk, batch = at(k)
        return _backward((vp - 1 - chunk) * pp + stage, batch)

    warm = 2 * (pp - 1 - stage) + (vp - 1) * pp + shape.overlaps
    return _in_turn(forward, backward, shape.batches * vp, warm, shape.overlaps)


def _zero_bubble(stage: int, shape: Shape) -> list[Unit]:
    count, late = shape.batches, stage
    warm = min(shape.pp - 1 - stage, count)
    found = [_forward(stage, k) for k in range(warm)]
    weights = 0
    for k in range(count):
        if warm + k < count:
            found.append(_forward(stage, warm + k))
        found.append((Pass("B", stage, k),))
        if k >= late:
            found.append((Pass("W", stage, weights),))
            weights += 1
    return found + [(Pass("W", stage, k),) for k in range(weights, count)]


class _Dual:
    """The units of one device of DualPipe, and how far each direction is."""

    def __init__(self, stage: int, shape: Shape) -> None:
        # the second half of the devices sees the directions the other way around
        self.own = 0 if stage < shape.pp // 2 else 1
        self.parts = (stage, shape.pp - 1 - stage)
        self.half = shape.batches // 2
        self.done = {("F", 0): 0, ("F", 1): 0, ("B", 0): 0, ("B", 1): 0}
        self.late: list[Pass] = []
        self.units: list[Unit] = []

    def _next(self, kind: Literal["F", "B"], way: int) -> Pass:
        # seen from this device: way 0 enters at its own end
        real = way ^ self.own
        batch = self.done[kind, real]
        self.done[kind, real] += 1
        return Pass(kind, self.parts[real], real * self.half + batch)

    def forward(self, way: int) -> None:
        self.units.append((self._next("F", way),))

    def backward(self, way: int, *, whole: bool = True) -> None:
        back = self._next("B", way)
        if whole:
            self.units.append((back, back._replace(kind="W")))
        else:
            self.units.append((back,))
            self.late.append(back._replace(kind="W"))

    def both(self, ahead: int, back: int) -> None:
        one, other = self._next("F", ahead), self._next("B", back)
        self.units.append((one, other, other._replace(kind="W")))

    def weights(self) -> None:
        self.units.append((self.late.pop(0),))


def _dual(stage: int, shape: Shape) -> list[Unit]:
    """Return the eight stretches of DualPipe's schedule for one device."""
    rank, half = min(stage, shape.pp - 1 - stage), shape.pp // 2
    inner = half - rank - 1
    device = _Dual(stage, shape)
    for _ in range(2 * inner):
        device.forward(0)
    for _ in range(rank + 1):
        device.forward(0)
        device.forward(1)
    for _ in range(inner):
        device.backward(1, whole=False)
        device.weights()
        device.forward(1)
    for k in range(shape.batches // 2 - shape.pp + rank + 1):
        if k == 0 and inner == 0:
            # the devices in the middle would wait for each other
            device.forward(0)
            device.backward(1)
        else:
            device.both(0, 1)
        device.both(1, 0)
    for _ in range(inner):
        device.backward(1)
        device.both(1, 0)
    for k in range(2 * (rank + 1)):
        device.backward(1 - k % 2, whole=k < rank + 1)
    for _ in range(inner):
        device.weights()
        device.backward(0, whole=False)
    for _ in range(rank + 1):
        device.weights()
    return device.units


#: part -> micro-batches that a device keeps of it at a moment
Kept = tuple[tuple[int, int], ...]


def kept_counts(units: list[Unit]) -> list[Kept]:
    """Return what a device keeps at the moments at which it may keep most, each once.

    Activations are kept from the begin of a forward pass until its pass through weights has ended.

    Args:
        units: The units of the device in order.
    """
    now: dict[int, int] = {}
    found: dict[Kept, None] = {}
    for unit in units:
        ahead = False
        for one in unit:
            if one.kind == "F":
                now[one.part] = now.get(one.part, 0) + 1
                ahead = True
        if ahead:
            found[tuple(sorted(now.items()))] = None
        for one in unit:
            if one.kind == "W":
                now[one.part] -= 1
    return list(found)


def kept_at_once(counts: list[Kept], weight: Callable[[int], float]) -> float:
    """Return the most activations that a device keeps at once.

    Args:
        counts: What it keeps, as `kept_counts` returns it.
        weight: Function from a part to what a micro-batch keeps of it.
    """
    return max((sum(n * weight(part) for part, n in kept) for kept in counts), default=0.0)
