"""The settings of a study: everything its trials depend on, written down when it begins.

A study that continues, or that another process joins, must have the same settings.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from moesim.design.identity import digest
from moesim.errors import ConfigError
from moesim.search.evaluate import Problem
from moesim.search.points import num_designs
from moesim.search.samplers import sampler_for
from moesim.search.space import Space
from moesim.search.storage import is_url, read_study
from moesim.search.trial import TRIAL_COLUMNS
from moesim.simulation.trust import study_digests
from moesim.version import VERSION


def settings_of(
    problem: Problem, points: list[dict[str, Any]], seed: int, screen: int, economics: str
) -> dict[str, Any]:
    """Return everything the trials depend on, as plain tables that can name a difference."""
    return {
        "space": problem.space.model_dump(),
        "cluster": {"name": problem.cluster.name, "digest": problem.cluster.digest},
        "workload": problem.workload.to_dict(),
        "columns": digest(dict.fromkeys(TRIAL_COLUMNS), 12),
        "seed": seed,
        "objectives": problem.objectives,
        "constraints": [str(c) for c in problem.constraints],
        "engine": problem.engine,
        "law": problem.law.digest,
        "screen": screen,
        "economics": {"name": economics, "digest": problem.economics.digest},
        "enqueued": digest_of(points),
        "calibration": study_digests(problem.cluster),
        "version": VERSION,
    }


def digest_of(points: list[dict[str, Any]]) -> str:
    """Return the hash of the points that a study tries first, or empty text without any."""
    return (
        hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()[:12]
        if points
        else ""
    )


def sampler_of(name: str, storage: str | Path, fresh: bool, num_trials: int, space: Space) -> str:
    """Return the sampler of a study; with ``auto``, an existing study keeps its own.

    Processes that share a storage would all go through the designs from the first one, so they draw
    them instead.
    """
    chosen = sampler_for(name, num_trials, num_designs(space))
    if is_url(storage) and chosen == "every":
        chosen = "random"
    there = is_url(storage) or (Path(storage) / "study.journal").is_file()
    if name != "auto" or fresh or not there:
        return chosen
    try:
        return read_study(storage, trials=False).settings["sampler"]
    # nothing to continue; opening the storage for writing reports any error
    except ConfigError:
        return chosen
