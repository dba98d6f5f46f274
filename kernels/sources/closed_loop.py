"""Run the closed loop on this CPU: measure it, simulate, search, and then really run what was
predicted.

Everything is simulated on a profile of primitives *before* it runs in separate processes, one
thread each:

1. random layers (sizes, gates, and routing are all drawn), compared with a roofline of the same
   measured peaks;
2. all-to-alls between two processes, at sizes between those of the profile;
3. random layers over two ranks, as simulated and by a + b x simulated, where a and b come from the
   first few layers and the rest are scored;
4. a search over designs and ranks: its winners, and designs drawn at random from it.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim_kernels.cpu.protocol import Sentinel, measuring
from moesim_kernels.profile.cpu_profile import write_profile
from moesim_kernels.sources import local_loop

from moesim.design.candidate import Workload
from moesim.errors import MeasurementError
from moesim.hardware import Profile, load_profile
from moesim.measured.loop_scores import loop_summary
from moesim.search import Space
from moesim.search.drawn import Chosen, winners_and_drawn

Rows = list[dict[str, Any]]
_RANKS = (1, 2)
#: slowdown of the sentinel above which the machine counts as disturbed
_DISTURBED = 0.08


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSizes:
    """The amount of work in a closed loop.

    Attributes:
        profile_seconds: About how many seconds to spend on measuring the profile.
        layers: Number of random layers.
        ranked: Number of random layers over two ranks.
        fitted: Number of these layers, from the first, that a and b are fitted to.
        trials: Number of trials of the search for each number of ranks.
        winners: Largest number of winners of each search to run.
        drawn: Number of random designs of all searches together.
        seconds: Time to spend on repeats of each run.
    """

    profile_seconds: float = 20.0
    layers: int = 40
    ranked: int = 24
    fitted: int = 8
    trials: int = 60
    winners: int = 4
    drawn: int = 20
    seconds: float = 0.25


#: sizes for a test
QUICK = LoopSizes(
    profile_seconds=1.0, layers=5, ranked=5, fitted=3, trials=12, drawn=2, seconds=0.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopResult:
    """Results of a closed loop.

    Attributes:
        layers: Rows of random layers.
        exchanges: Rows of all-to-alls; none where several processes cannot run.
        ranked: Rows of random layers over two ranks; also none where several processes cannot run.
        candidates: Rows of the searches' designs.
        summary: Scores of every part.
        line: Coefficients a (in microseconds) and b of a + b x simulated.
        contended: Whether something else slowed the machine down meanwhile.
    """

    layers: Rows
    exchanges: Rows
    ranked: Rows
    candidates: Rows
    summary: Rows
    line: tuple[float, float]
    contended: bool


def run_loop(
    space: Space, workload: Workload, sizes: LoopSizes, seed: int, say: Callable[[str], None]
) -> LoopResult:
    """Measure this CPU, simulate on its profile, and run everything that was simulated.

    Args:
        space: The choices of the search.
        workload: Tokens and routing of the search.
        sizes: Sizes that say how much to run.
        seed: Seed of layers, searches and draws.
        say: Function that is told what is being done, since all of it takes minutes.

    Raises:
        MeasurementError: This CPU cannot be measured.
    """
    began, slowdowns = time.perf_counter(), []
    with measuring():
        sentinel = Sentinel()

    def step(text: str) -> None:
        with measuring():
            # The sentinel runs between the steps, when nothing else of the loop does.
            slowdowns.append(sentinel.slowdown())
        say(f"{time.perf_counter() - began:5.1f} s: {text}")

    step(f"measuring this CPU, about {sizes.profile_seconds:.0f} s")
    # The profile is measured first; everything after is predicted from it.
    profile = _measured_profile(sizes.profile_seconds)
    step(f"simulating and running {sizes.layers} layers")
    runs = local_loop.random_runs(profile, sizes.layers, seed)
    layers = local_loop.layer_rows(profile, runs, seconds=sizes.seconds)
    exchanges, ranked, line = _several_ranks(profile, sizes, seed, step, say)
    step("searching")
    # Without working exchanges the search stays on one rank.
    ranks = _RANKS if ranked else _RANKS[:1]
    chosen = [one for n in ranks for one in _searched(profile, n, space, workload, sizes, seed)]
    step(f"running {len(chosen)} candidates")
    candidates = local_loop.candidate_rows(
        profile, chosen, workload, line=line, seconds=sizes.seconds
    )
    summary = loop_summary(layers, exchanges, ranked, candidates, seed)
    step("done")
    timed = (*layers, *ranked, *candidates)
    contended = profile.contended or max(slowdowns) > _DISTURBED
    # A single disturbed run is enough to mark the result.
    contended = contended or any(row["contended"] for row in timed)
    summary.append(
        {
            "what": "the whole run",
            "rows": len(timed) + len(exchanges),
            "seconds": time.perf_counter() - began,
            "contended": float(contended),
        }
    )
    return LoopResult(
        layers=layers,
        exchanges=exchanges,
        ranked=ranked,
        candidates=candidates,
        summary=summary,
        line=line,
        contended=contended,
    )


def _measured_profile(seconds: float) -> Profile:
    """Measure the profile of this CPU and of the exchange between its processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local.toml"
        write_profile(path, seconds, fabric=True)
        return load_profile(str(path))


def _several_ranks(
    profile: Profile,
    sizes: LoopSizes,
    seed: int,
    step: Callable[[str], None],
    say: Callable[[str], None],
) -> tuple[Rows, Rows, tuple[float, float]]:
    """Run all-to-alls and layers over two ranks, as far as this machine can."""
    exchanges: Rows = []
    if profile.host_fabric is None:
        # The line a + b x simulated that changes nothing.
        return exchanges, [], (0.0, 1.0)
    try:
        step("exchanging between two processes")
        exchanges = local_loop.exchange_rows(profile)
        step(f"simulating and running {sizes.ranked} layers over two ranks")
        ranked, line = local_loop.rank_rows(
            profile, sizes.ranked, seed, fitted_on=sizes.fitted, seconds=sizes.seconds
        )
    except MeasurementError as error:
        say(f"several ranks: not here ({error})")
        return exchanges, [], (0.0, 1.0)
    return exchanges, ranked, line


def _searched(
    profile: Profile, ranks: int, space: Space, workload: Workload, sizes: LoopSizes, seed: int
) -> list[Chosen]:
    """Search on a number of ranks, and choose winners and random designs."""
    return winners_and_drawn(
        space,
        local_loop.cluster_of(profile, ranks),
        workload,
        trials=sizes.trials,
        winners=sizes.winners,
        drawn=sizes.drawn // len(_RANKS),
        seed=seed,
    )
