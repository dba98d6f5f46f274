"""Run a small search, and choose its winners and a random sample of the other designs it tried.

A closed loop runs both on the hardware: winners alone would not show whether the search picked
well.
"""

import tempfile
from dataclasses import dataclass

import numpy as np

from moesim.design.candidate import Candidate, Workload
from moesim.hardware import Cluster
from moesim.search.space import Space
from moesim.search.study import run_study


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One design to run on the hardware.

    Attributes:
        role: ``winner`` or ``random``.
        candidate: The design.
        loss: Its estimated loss.
    """

    role: str
    candidate: Candidate
    loss: float


def winners_and_drawn(
    space: Space,
    cluster: Cluster,
    workload: Workload,
    *,
    trials: int,
    winners: int,
    drawn: int,
    seed: int,
) -> list[Chosen]:
    """Search for low loss and short layer time, and choose the designs to run.

    Args:
        space: The choices.
        cluster: The hardware.
        workload: Tokens and routing.
        trials: Number of trials of the search.
        winners: Maximum number of winners to choose.
        drawn: Maximum number of designs to draw from the rest.
        seed: Seed of the search and of the random draw.

    Raises:
        MoesimError: No point of the space is a candidate.
    """
    with tempfile.TemporaryDirectory() as folder:
        study = run_study(
            space,
            cluster,
            workload,
            objectives=["loss", "layer_time_us"],
            num_trials=trials,
            seed=seed,
            sampler="nsga2",
            storage=folder,
        )
    tried = {str(t.evaluation.row["design"]): t for t in study.trials if t.feasible}
    best = list(dict.fromkeys(candidate.key for candidate in study.pareto(limit=winners)))
    others = [key for key in tried if key not in best]
    some = list(np.random.default_rng(seed).permutation(others)[:drawn])
    return [
        Chosen(
            role=role,
            candidate=space.decode(tried[key].params, cluster)[0],
            loss=float(tried[key].evaluation.row["loss"]),
        )
        for role, keys in (("winner", best), ("random", some))
        for key in keys
    ]
