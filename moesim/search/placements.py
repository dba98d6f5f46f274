"""Improve a placement by local search on the simulated layer time.

The search simulates the plans of the strategies of `moesim.placement` and starts from the fastest.
It then swaps slots of a busy device with slots of the others. A cheap load model proposes the
swaps, and a swap is kept if the program gets faster on the bound or any other engine.
"""

from dataclasses import dataclass, replace

import numpy as np

from moesim.design.candidate import Candidate, Workload
from moesim.engines.run import run
from moesim.errors import MoesimError
from moesim.hardware import Cluster
from moesim.placement import REPLICATING, Placement, PlacementSpec, replica_loads
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower

#: strategies whose plans are simulated first
STARTS = (
    "contiguous",
    "balanced",
    "eplb",
    "eplb_hierarchical",
    "hierarchical",
    "affinity",
    "domain",
    "local_search",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Refined:
    """The result of a local search.

    Attributes:
        placement: The fastest placement.
        layer_time_s: Its layer time on the engine of the search.
        start: Strategy that the swaps began with.
        start_s: Layer time of that strategy.
        simulated: Number of placements that were simulated.
    """

    placement: Placement
    layer_time_s: float
    start: str
    start_s: float
    simulated: int


def refine(
    candidate: Candidate,
    cluster: Cluster,
    workload: Workload,
    *,
    steps: int = 50,
    engine: str = "bound",
    starts: tuple[str, ...] = STARTS,
    seed: int = 0,
) -> Refined:
    """Search for the placement with the least simulated layer time.

    Args:
        candidate: The design; its own strategy is one of the starts, and all have its number of
            replicas.
        cluster: The hardware it runs on.
        workload: Tokens and routing to plan for.
        steps: Number of swaps to simulate.
        engine: Engine of the search; ``bound`` is fast, so simulate its result with another one.
        starts: Strategies to begin with; those that cannot place this candidate are skipped.
        seed: Seed of the choice among promising swaps.

    Raises:
        MoesimError: The candidate's own placement cannot be simulated.
    """

    def time_of(placement: Placement) -> float:
        return run(
            lower(prepare(candidate, cluster, workload, placement=placement)), engine
        ).makespan_s

    best = prepare(candidate, cluster, workload).placement
    best_s, start, simulated = time_of(best), candidate.placement, 1
    for name in starts:
        if name == candidate.placement or (
            candidate.num_replicas and PlacementSpec.parse(name).strategy not in REPLICATING
        ):
            continue
        try:
            placed = prepare(replace(candidate, placement=name), cluster, workload).placement
        except MoesimError:
            continue
        simulated += 1
        if (seconds := time_of(placed)) < best_s:
            best, best_s, start = placed, seconds, name
    start_s, rng = best_s, np.random.default_rng(seed)
    for _ in range(steps):
        placed = _neighbour(candidate, cluster, workload, best, rng)
        simulated += 1
        if (seconds := time_of(placed)) < best_s:
            best, best_s = placed, seconds
    return Refined(
        placement=best, layer_time_s=best_s, start=start, start_s=start_s, simulated=simulated
    )


def _neighbour(
    candidate: Candidate,
    cluster: Cluster,
    workload: Workload,
    placement: Placement,
    rng: np.random.Generator,
) -> Placement:
    """Swap a slot of the busiest rank, or in one case of four of a random rank, with a slightly
    lighter slot elsewhere.
    """
    traffic = prepare(candidate, cluster, workload, placement=placement).traffic
    tp, width_E = candidate.parallelism.tp, candidate.layer.width_E()
    rows_E = np.bincount(
        placement.expert_of_slot_P,
        weights=placement_rows(placement, traffic.counts_DL[::tp]),
        minlength=placement.num_experts,
    )
    load_P = replica_loads(placement, rows_E * width_E)
    rank_P = placement.rank_of_slot_P
    busy = traffic.counts_DL[::tp].sum(axis=1).argmax()
    own = np.flatnonzero(rank_P == (busy if rng.random() < 0.75 else rng.choice(rank_P)))
    i = int(rng.choice(own))
    others = np.flatnonzero(rank_P != rank_P[i])
    lighter = others[load_P[others] <= load_P[i]]
    among = lighter if len(lighter) else others
    if not len(among):
        return placement
    near = among[np.argsort(load_P[i] - load_P[among], kind="stable")[: max(len(among) // 4, 4)]]
    j = int(rng.choice(near))
    expert_P = placement.expert_of_slot_P.copy()
    expert_P[i], expert_P[j] = expert_P[j], expert_P[i]
    return replace(placement, expert_of_slot_P=expert_P)


def placement_rows(placement: Placement, counts_WL: np.ndarray) -> np.ndarray:
    """Return the rows of each slot, ndarray of shape (P,), from rows by rank and local slot."""
    first_W = np.searchsorted(placement.rank_of_slot_P, np.arange(placement.num_ranks))
    place_P = np.arange(placement.num_slots) - first_W[placement.rank_of_slot_P]
    return counts_WL[placement.rank_of_slot_P, place_P]
