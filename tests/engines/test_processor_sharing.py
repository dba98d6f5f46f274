"""Flow as a queue: M/M/1 with processor sharing, whose mean sojourn time is E[S] / (1 - load).

Kleinrock 1967, Time-shared systems: a theoretical treatment. The mean depends on sizes by their
mean alone, and a job of size x stays x / (1 - load) on average.
"""

import numpy as np
import pytest

from moesim.engines.event_compiled import run_event_compiled
from moesim.engines.flow import run_flow
from moesim.program.builder import Demands, ProgramBuilder

JOBS, SEEDS = 6000, 5


def queue(load, size_J, rng):
    """Jobs arrive at one resource of 1 byte/s, equal bytes per second for each that is there."""
    arrive_J = np.cumsum(rng.exponential(size_J.mean() / load, len(size_J)))
    builder = ProgramBuilder()
    server = builder.resource("server", 1.0)
    builder.ops(
        "job",
        len(size_J),
        demands=Demands(np.full((len(size_J), 1), server), size_J[:, None]),
        release_s=arrive_J,
        bytes_per_flow=size_J,
    )
    return builder.build(), arrive_J


def sojourns(load, sizes):
    stay, size = [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        size_J = sizes(rng)
        program, arrive_J = queue(load, size_J, rng)
        timeline = run_flow(program, tolerance_s=0.0)
        stay.append((timeline.end_s_N - arrive_J)[JOBS // 10 :])
        size.append(size_J[JOBS // 10 :])
        assert timeline.busy_s_R[0] == pytest.approx(size_J.sum())
    return np.concatenate(stay), np.concatenate(size)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_mean_sojourn_with_exponential_sizes(load):
    stay, size = sojourns(load, lambda rng: rng.exponential(1.0, JOBS))
    assert stay.mean() == pytest.approx(1.0 / (1.0 - load), rel=0.05)
    # and in proportion to size: short jobs are not held up by long ones
    short, long = size < np.median(size), size >= np.median(size)
    for part in (short, long):
        assert stay[part].sum() / size[part].sum() == pytest.approx(1.0 / (1.0 - load), rel=0.08)


def test_the_distribution_of_sizes_does_not_matter():
    """Insensitivity: sizes of two kinds, 1/2 and 5, would double the wait of a first-come queue."""
    stay, _ = sojourns(0.5, lambda rng: rng.choice([0.5, 5.0], JOBS, p=[8 / 9, 1 / 9]))
    assert stay.mean() == pytest.approx(2.0, rel=0.06)


def test_chunks_share_like_the_fluid():
    rng = np.random.default_rng(3)
    program, arrive_J = queue(0.6, rng.exponential(1.0, 1000), rng)
    fluid, chunks = run_flow(program, tolerance_s=0.0), run_event_compiled(program, quantum_s=0.01)
    assert (chunks.end_s_N - arrive_J).mean() == pytest.approx(
        (fluid.end_s_N - arrive_J).mean(), rel=0.01
    )
