"""Slices of time on tracks: what a timeline holds, whether it is written to a file or drawn.

A sheet has processes (such as ranks), each with tracks (such as a stream of kernels), on which
slices follow one another. Arrows join slices, counters change over time. Slices that would overlap
on their track move to further lanes of it, so that no reader has to guess which nests in which.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moesim.errors import CapacityError

Array = np.ndarray
#: slices of a sheet; viewers get slow beyond
MOST_SLICES = 200_000
#: seconds by which slices may overlap through rounding
_ROUNDING_S = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A span of time on a track.

    Attributes:
        process: Name of the process.
        track: Name of the track within it.
        name: What is shown on the slice.
        category: What it is colored and summed by, such as a phase.
        begin_s: When it begins, in seconds.
        end_s: When it ends, in seconds.
        args: Further facts, by name with unit.
    """

    process: str
    track: str
    name: str
    category: str
    begin_s: float
    end_s: float
    args: dict[str, object] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counter:
    """A number that changes over time: each value holds until the next.

    Attributes:
        process: Name of the process.
        name: What is counted.
        unit: Its unit.
        time_s_P: ndarray of shape (P,): when it changes, ascending.
        value_P: ndarray of shape (P,): the values from then on.
    """

    process: str
    name: str
    unit: str
    time_s_P: Array
    value_P: Array


@dataclass(kw_only=True, eq=False)
class Sheet:
    """A timeline.

    Attributes:
        title: What it shows.
        slices: The slices.
        arrows: Chains of slices, each as indices into ``slices`` in order of time.
        counters: The counters.
        facts: What a reader must know: design, version, engine, units, what was left out.
    """

    title: str
    slices: list[Slice] = field(default_factory=list)
    arrows: list[tuple[int, ...]] = field(default_factory=list)
    counters: list[Counter] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def add(self, slice_: Slice) -> int:
        """Add a slice and return its index.

        Raises:
            CapacityError: The sheet is full.
        """
        if len(self.slices) >= MOST_SLICES:
            raise CapacityError(f"trace: expected at most {MOST_SLICES:,} slices, got more")
        self.slices.append(slice_)
        return len(self.slices) - 1

    def join(self, other: "Sheet", after_s: float = 0.0) -> None:
        """Add everything of another sheet but its title and facts, some seconds later."""
        first = len(self.slices)
        for one in other.slices:
            self.add(replace(one, begin_s=one.begin_s + after_s, end_s=one.end_s + after_s))
        self.arrows += [tuple(first + at for at in chain) for chain in other.arrows]
        self.counters += [replace(c, time_s_P=c.time_s_P + after_s) for c in other.counters]

    @property
    def end_s(self) -> float:
        """When the last slice ends, in seconds."""
        return max((one.end_s for one in self.slices), default=0.0)

    def of(self, process: str, track: str) -> list[Slice]:
        """Return the slices of one track in order of time."""
        found = [one for one in self.slices if (one.process, one.track) == (process, track)]
        return sorted(found, key=lambda one: one.begin_s)

    def seconds_by_category(self, process: str, track: str) -> dict[str, float]:
        """Return category -> seconds of one track."""
        found: dict[str, float] = defaultdict(float)
        for one in self.of(process, track):
            found[one.category] += one.seconds
        return dict(found)

    def in_lanes(self) -> "Sheet":
        """Return the sheet with slices that overlap on their track moved to further lanes of it."""
        lane_of = lanes(self.slices)
        slices = [
            one if not lane else replace(one, track=f"{one.track} ({lane + 1})")
            for one, lane in zip(self.slices, lane_of, strict=True)
        ]
        return Sheet(
            title=self.title,
            slices=slices,
            arrows=self.arrows,
            counters=self.counters,
            facts=self.facts,
        )


def lanes(slices: Sequence[Slice]) -> list[int]:
    """Return the first lane of its track in which each slice overlaps none before it."""
    ends: dict[tuple[str, str], list[float]] = defaultdict(list)
    found = [0] * len(slices)
    for at in sorted(range(len(slices)), key=lambda i: (slices[i].begin_s, slices[i].end_s)):
        one = slices[at]
        free = ends[one.process, one.track]
        fits = (i for i, end_s in enumerate(free) if end_s <= one.begin_s + _ROUNDING_S)
        found[at] = next(fits, len(free))
        if found[at] == len(free):
            free.append(0.0)
        free[found[at]] = one.end_s
    return found


def stepped(
    begin_s_I: Array, end_s_I: Array, value_I: Array, *, most: int = 256
) -> tuple[Array, Array]:
    """Return the sum of I values over time, each of which holds for a span.

    Args:
        begin_s_I: ndarray of shape (I,): when each value begins.
        end_s_I: ndarray of shape (I,): when it ends.
        value_I: ndarray of shape (I,): the values.
        most: Changes that are kept; more of them are averaged over equal spans, which keeps the
            integral.

    Returns:
        Times, ascending, and the sum from each on: two ndarrays of shape (P,), the last value 0.
    """
    time_s, where = np.unique(np.concatenate([begin_s_I, end_s_I]), return_inverse=True)
    change = np.bincount(where, np.concatenate([value_I, -value_I]), len(time_s))
    total = np.cumsum(change)
    if len(time_s):
        total[-1] = 0.0
    if len(time_s) <= most:
        return time_s, total
    integral = np.concatenate([[0.0], np.cumsum(total[:-1] * np.diff(time_s))])
    edges = np.linspace(time_s[0], time_s[-1], most)
    mean = np.diff(np.interp(edges, time_s, integral)) / np.diff(edges)
    return edges, np.append(mean, 0.0)


def processes(slices: Iterable[Slice]) -> list[str]:
    """Return the names of processes in order of their first slice in the list."""
    return list(dict.fromkeys(one.process for one in slices))
