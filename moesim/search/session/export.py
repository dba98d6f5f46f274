"""Export a study's winner to a serving engine: the map of its experts, and the launch command.

A study simulates one MoE layer under one load, so every layer gets the winner's plan for that load.
The plan is as good as that load resembles the load that is served.
`moesim placement export --trace` plans maps layer by layer on recorded loads.
"""

import json
from dataclasses import dataclass

from moesim.errors import ConfigError, UnknownNameError
from moesim.placement.files import map_text, slot_map
from moesim.search.study import Study
from moesim.search.trial import Trial
from moesim.serving.launch import Deployment, launch_lines
from moesim.simulation.prepare import prepare

#: layouts of a map
FORMATS = ("placement-json", "sglang", "vllm")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Winner(Deployment):
    """A design of a study's Pareto front.

    Attributes:
        rank: Row of pareto.csv, from 0.
    """

    rank: int


def front_trial(study: Study, rank: int) -> Trial:
    """Return a trial of a study's Pareto front.

    Args:
        study: The study.
        rank: Row of pareto.csv, from 0.

    Raises:
        ConfigError: There is no winner of that rank.
    """
    front = study.pareto_trials()
    if not front:
        raise ConfigError(
            f"study: expected a winner to export, got none: of {len(study.trials)} trials, no "
            "candidate fits in memory and keeps the constraints"
        )
    if not 0 <= rank < len(front):
        raise ConfigError(f"rank: expected 0 to {len(front) - 1}, a row of pareto.csv, got {rank}")
    return front[rank]


def winner_of(study: Study, rank: int = 0) -> Winner:
    """Return a winner, with its placement planned again.

    Raises:
        ConfigError: There is no winner of that rank, or whole models were searched.
    """
    layers, trial = study.layers, front_trial(study, rank)
    candidate, cluster = layers.space.decode(trial.params, layers.cluster)
    placement = prepare(candidate, cluster, layers.workload).placement
    return Winner(
        rank=rank,
        candidate=candidate,
        cluster=cluster,
        placement=placement,
        row=trial.evaluation.row,
        num_layers=layers.space.dense().num_moe_layers,
    )


def winner_text(winner: Winner, layout: str) -> str:
    """Return the map of all layers as text that `moesim.placement.files.read_map` reads.

    ``placement-json`` also says where the map comes from: candidate, ranks, load, simulated time,
    version.

    Raises:
        UnknownNameError: There is no such format.
        ConfigError: The ranks hold different numbers of slots.
    """
    if layout not in FORMATS:
        raise UnknownNameError("export format", layout, FORMATS)
    if layout != "placement-json":
        return map_text([winner.placement] * winner.num_layers, layout)
    kept = (
        "candidate",
        "cluster",
        "num_tokens_per_device",
        "routing",
        "seed",
        "layer_time_us",
        "layer_time_low_us",
        "layer_time_high_us",
        "evidence",
        "calibration",
        "engine",
        "version",
        "profile_hash",
    )
    return json.dumps(
        {
            "physical_to_logical_map": [slot_map(winner.placement)] * winner.num_layers,
            "num_ranks": winner.placement.num_ranks,
            "num_experts": winner.placement.num_experts,
            "nearest_within": winner.placement.nearest_within,
            **{name: winner.row[name] for name in kept},
        }
    )


__all__ = ["FORMATS", "Winner", "front_trial", "launch_lines", "winner_of", "winner_text"]
