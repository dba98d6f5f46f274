"""The settings of a study: everything its trials depend on, written down when it begins.

A study that continues, or that another process joins, must have the same settings.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from moesim.errors import ConfigError
from moesim.files.addresses import without_password
from moesim.search.points import num_designs
from moesim.search.problem import SearchProblem, SearchSpace
from moesim.search.samplers import sampler_for
from moesim.search.storage import is_url, read_study
from moesim.simulation.trust import study_digests
from moesim.version import VERSION


def settings_of(
    problem: SearchProblem, points: list[dict[str, Any]], seed: int, screen: int, economics: str
) -> dict[str, Any]:
    """Return everything the trials depend on, as plain tables that can name a difference."""
    return problem.settings() | {
        "cluster": {"name": problem.cluster.name, "digest": problem.cluster.digest},
        "seed": seed,
        "objectives": problem.objectives,
        "constraints": [str(c) for c in problem.constraints],
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


def sampler_of(
    name: str, storage: str | Path, fresh: bool, num_trials: int, space: SearchSpace
) -> str:
    """Return the sampler of a study.

    With ``auto`` it follows from the number of trials. A study that began with fewer is refused
    where this makes a difference: continued, it would not hold what a study of so many trials does.
    Processes that share a storage would all go through the designs from the first one, so they draw
    them instead.

    Raises:
        ConfigError: The study that is there began with another sampler than ``auto`` takes now.
    """
    chosen = sampler_for(name, num_trials, num_designs(space))
    if is_url(storage) and chosen == "every":
        chosen = "random"
    there = is_url(storage) or (Path(storage) / "study.journal").is_file()
    if name != "auto" or fresh or not there:
        return chosen
    try:
        began = read_study(storage, trials=False).settings["sampler"]
    # nothing to continue; opening the storage for writing reports any error
    except ConfigError:
        return chosen
    if began != chosen:
        raise ConfigError(
            f"{without_password(str(storage))}: began with sampler {began}; for {num_trials:,} "
            f"trials auto takes {chosen}, which would have tried others: --sampler {began} "
            "continues it, --fresh starts over"
        )
    return chosen
