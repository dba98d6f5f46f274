"""Say where the time of a simulated program went: its critical path by phase, and how busy its
resources were.
"""

from collections.abc import Iterator

import numpy as np

from moesim.program import Program, Timeline


def critical_phases(program: Program, timeline: Timeline) -> dict[str, float]:
    """Return the time of each phase along the critical path.

    The path is walked back from the op that ends last, always to the dependency that ended last.

    Returns:
        Phase -> seconds; waiting time counts for the op that waited, so the values sum to the
        makespan.
    """
    share = dict.fromkeys(program.phase_names, 0.0)
    for phase, since, until in critical_segments(program, timeline):
        share[phase] += until - since
    return share


def critical_segments(program: Program, timeline: Timeline) -> Iterator[tuple[str, float, float]]:
    """Yield (phase, begin, end in seconds) of each op on the critical path, the last one first."""
    end = timeline.end_s_N
    op, until = int(end.argmax()), timeline.makespan_s
    while op >= 0:
        waited = program.dep_index[program.dep_ptr[op] : program.dep_ptr[op + 1]]
        before = int(waited[end[waited].argmax()]) if len(waited) else -1
        since = float(end[before]) if before >= 0 else 0.0
        yield program.phase_names[program.phase_N[op]], since, until
        op, until = before, since


def experts_time_s(program: Program, timeline: Timeline) -> float:
    """Return the seconds of the busiest device's expert phase alone."""
    experts = program.phase_N == program.phase_names.index("experts")
    return float((timeline.end_s_N - timeline.start_s_N)[experts].max())


def busiest_utilisation(program: Program, timeline: Timeline) -> dict[str, float]:
    """Return the work over the makespan, for the busiest resource of each kind."""
    found: dict[str, float] = {}
    first = 0
    for kind, count in program.resources.kinds():
        busiest = (
            float(timeline.busy_s_R[first : first + count].max()) / timeline.makespan_s
            if count
            else 0.0
        )
        found[kind] = max(found.get(kind, 0.0), busiest)
        first += count
    return found


def mean_utilisation(program: Program, busy_s_R: np.ndarray, makespan_s: float) -> dict[str, float]:
    """Return the work over the makespan, averaged over all resources of each kind; power is
    computed from it.

    Args:
        program: The program whose resources these are.
        busy_s_R: ndarray of shape (R,): seconds of work of each resource.
        makespan_s: Seconds from the first start to the last end.
    """
    busy: dict[str, float] = {}
    counts: dict[str, int] = {}
    first = 0
    for kind, count in program.resources.kinds():
        busy[kind] = busy.get(kind, 0.0) + float(busy_s_R[first : first + count].sum())
        counts[kind] = counts.get(kind, 0) + count
        first += count
    return {kind: busy[kind] / (counts[kind] * makespan_s) for kind in busy if counts[kind]}
