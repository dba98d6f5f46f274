"""Shorten the layers of a model to a few that stand for all.

Layers repeat: 3 dense and 58 MoE layers, or windows and full attention in turn. A run of equal
patterns is lowered with its first few repetitions only; every further one takes as long as those
after the first took on average, measured at the marks between them in the simulated program. Each
repetition draws a routing of its own, so that the mean is over several layers' hot experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from moesim.model.spec import LayerKind

#: repetitions that are lowered: the first fills the pipeline, the others are the steady state
REPETITIONS = 3
_LONGEST_PATTERN = 16


@dataclass(frozen=True, slots=True)
class Run:
    """A pattern of layers and how often it follows itself."""

    pattern: tuple[LayerKind, ...]
    repeats: int
    most: int | None = REPETITIONS

    @property
    def lowered(self) -> int:
        """The repetitions that are lowered: at most so many, or all."""
        return self.repeats if self.most is None else min(self.repeats, self.most)


def runs_of(blocks: Sequence[LayerKind], most: int | None = REPETITIONS) -> list[Run]:
    """Return the layers as runs of patterns, each as long as possible and its pattern as short as
    possible.

    Args:
        blocks: The layers, in order.
        most: Repetitions of a pattern that are lowered at most; None for all.
    """
    found, at = [], 0
    while at < len(blocks):
        best = Run((blocks[at],), 1, most)
        for size in range(1, min(_LONGEST_PATTERN, (len(blocks) - at) // 2) + 1):
            pattern = tuple(blocks[at : at + size])
            repeats = 1
            while tuple(blocks[at + repeats * size : at + (repeats + 1) * size]) == pattern:
                repeats += 1
            if repeats > 1 and repeats * size > best.repeats * len(best.pattern):
                best = Run(pattern, repeats, most)
        found.append(best)
        at += best.repeats * len(best.pattern)
    return found


@dataclass(frozen=True, slots=True)
class Section:
    """A span of simulated time that stands for more than itself.

    Attributes:
        begin_s: Begin in the simulated program, in seconds.
        end_s: End there.
        weight: Seconds of the whole model for each second of it.
    """

    begin_s: float
    end_s: float
    weight: float


def stretches(runs: Sequence[Run], marks_s: Sequence[float], makespan_s: float) -> list[Section]:
    """Return the simulated time as stretches.

    Args:
        runs: The runs that were lowered, in order.
        marks_s: When each lowered repetition ended, in order, after when the first began.
        makespan_s: When the program ended.
    """
    found, at = [Section(0.0, marks_s[0], 1.0)], 0
    for run in runs:
        ends = marks_s[at : at + run.lowered + 1]
        at += run.lowered
        if run.repeats == run.lowered:
            found.append(Section(ends[0], ends[-1], 1.0))
            continue
        found.append(Section(ends[0], ends[1], 1.0))
        found.append(Section(ends[1], ends[-1], (run.repeats - 1.0) / (run.lowered - 1.0)))
    return [*found, Section(marks_s[-1], makespan_s, 1.0)]


def chain_error_s(runs: Sequence[Run], marks_s: Sequence[float]) -> float:
    """Return the standard error, in seconds, of the layers that `stretches` adds.

    The repetitions after the first are a sample of n with standard deviation s. R further ones are
    added with its mean, so that the error of the sample's mean counts R times, and each is as
    uneven as the sample: s sqrt(R^2 / n + R). Runs are independent.

    Args:
        runs: The runs that were lowered, in order.
        marks_s: When each lowered repetition ended, after when the first began.
    """
    variance, at = 0.0, 0
    for run in runs:
        ends = marks_s[at + 1 : at + run.lowered + 1]
        at += run.lowered
        further, count = run.repeats - run.lowered, run.lowered - 1
        if further <= 0 or count < 2:
            continue
        steady = [end - begin for begin, end in pairwise(ends)]
        mean = sum(steady) / count
        sample = sum((seconds - mean) ** 2 for seconds in steady) / (count - 1)
        variance += sample * (further**2 / count + further)
    return sqrt(variance)
