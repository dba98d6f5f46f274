"""The durations of consecutive decode steps of one batch, from a few of them.

While a batch stays as it is, only its context grows, by the same tokens in every step. The first,
the middle and the last step of a stretch are computed; if the middle one lies on the line between
the others, up to the tolerance, every step between them is taken from the two lines through the
three, otherwise both halves are treated in the same way.

Error bound: where durations are convex or concave in the context within such a piece, they lie, in
each half, between its line and the prolonged line of the other half. The gap between these is 0 at
the middle and at most twice the middle's distance from the line of the whole piece at the end, so
the mean error of a half is at most this distance: the tolerance times the middle step.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable


class Stretch:
    """Consecutive decode steps.

    Args:
        step_s: A function of the index of a step: its seconds.
        steps: Number of steps.
        tolerance: Relative error that is allowed.
    """

    __slots__ = ("_begin", "_node", "_step_s", "steps")

    def __init__(self, step_s: Callable[[int], float], steps: int, tolerance: float) -> None:
        self.steps = steps
        found = _nodes(step_s, steps, tolerance)
        #: indices of the computed steps, and their durations
        self._node = sorted(found)
        self._step_s = [found[i] for i in self._node]
        #: time at which each computed step begins
        self._begin = [0.0]
        for left, right, first_s, last_s in self._lines():
            self._begin.append(self._begin[-1] + _sum(right - left, first_s, last_s, right - left))

    def _lines(self) -> list[tuple[int, int, float, float]]:
        node, step_s = self._node, self._step_s
        return list(zip(node, node[1:], step_s, step_s[1:], strict=False))

    def seconds(self, steps: int) -> float:
        """Return the seconds of the first steps together."""
        if steps >= self.steps:
            return self._begin[-1] + self._step_s[-1]
        at = bisect_right(self._node, steps) - 1
        if steps == self._node[at]:
            return self._begin[at]
        width = self._node[at + 1] - self._node[at]
        count = steps - self._node[at]
        return self._begin[at] + _sum(count, self._step_s[at], self._step_s[at + 1], width)

    def steps_by(self, seconds: float) -> int:
        """Return the number of steps that have begun before a time: all of these will be run."""
        return bisect_left(range(self.steps), seconds, key=self.seconds)

    def pieces(self, first: int, last: int) -> list[tuple[float, float, int]]:
        """Return the durations of the steps from ``first`` to before ``last``.

        Returns:
            Runs of steps: the duration of the first, of the last, and how many there are. Between
            them the duration grows evenly.
        """
        runs = []
        for left, right, first_s, last_s in self._lines():
            low, high = max(left, first), min(right, last)
            if low < high:
                slope = (last_s - first_s) / (right - left)
                runs.append(
                    (
                        first_s + slope * (low - left),
                        first_s + slope * (high - 1 - left),
                        high - low,
                    )
                )
        if first < self.steps == last:
            runs.append((self._step_s[-1], self._step_s[-1], 1))
        return runs


def _sum(count: int, first_s: float, last_s: float, width: int) -> float:
    """Return the sum of the first values of a line that goes from one to another in a width."""
    return count * first_s + (last_s - first_s) / width * count * (count - 1) / 2


def _nodes(step_s: Callable[[int], float], steps: int, tolerance: float) -> dict[int, float]:
    """Return the durations of as many steps as the tolerance asks for, by index."""
    known = {0: step_s(0)}
    if steps == 1:
        return known
    known[steps - 1] = step_s(steps - 1)
    open_pieces = [(0, steps - 1)]
    while open_pieces:
        left, right = open_pieces.pop()
        if right - left < 2:
            continue
        middle = (left + right) // 2
        known[middle] = step_s(middle)
        share = (middle - left) / (right - left)
        on_line = known[left] + share * (known[right] - known[left])
        if abs(known[middle] - on_line) > tolerance * known[middle]:
            open_pieces += [(left, middle), (middle, right)]
    return known
