"""Score placements: one strategy under one load, refined by simulation, and under drift.

A plan is scored on the loads it was made for, and again on loads that have drifted one step
further, which a plan made in advance would meet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.errors import MoesimError
from moesim.hardware import Cluster
from moesim.model.presets import load_preset
from moesim.operations.rebalance import rebalanced
from moesim.placement import REPLICATING
from moesim.search.placements import refine
from moesim.simulation.prepare import prepare
from moesim.simulation.result import Result
from moesim.simulation.run import simulate_prepared
from moesim.units import US
from moesim.version import VERSION

Row = dict[str, Any]
COLUMNS = (
    *("cluster", "num_devices", "distribution", "placement", "num_replicas", "load_imbalance"),
    *("imbalance_next_step", "layer_time_us", "layer_time_next_step_us", "speed_up"),
    *("far_copies_per_token", "dispatch_us", "experts_us", "combine_us", "bottleneck", "reason"),
    *("evidence", "calibration", "engine", "seed", "version", "profile_hash"),
)
#: columns of the fastest placements that the terminal shows, with their headings
SHOWN = {
    "cluster": "cluster",
    "distribution": "distribution",
    "num_replicas": "replicas",
    "placement": "fastest",
    "load_imbalance": "imbalance",
    "layer_time_us": "us",
    "speed_up": "x expert order",
    "imbalance_next_step": "imbalance later",
}
_FORMATS = {
    "load_imbalance": ".3f",
    "layer_time_us": ",.0f",
    "speed_up": ".2f",
    "imbalance_next_step": ".3f",
}
_DRIFT = "drift:0.1@1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementCase:
    """One layer of a published model on one cluster under one load.

    Attributes:
        preset: Name of the published model.
        cluster: The hardware; every device is one expert-parallel rank.
        distribution: Load of the experts, see `Workload.routing`.
        num_tokens: Tokens of a device.
        num_replicas: Expert slots beyond one per expert.
        seed: Seed of the routing.
    """

    preset: str
    cluster: Cluster
    distribution: str
    num_tokens: int
    num_replicas: int = 0
    seed: int = 0

    def candidate(self, placement: str) -> Candidate:
        """Return the design with a strategy.

        Args:
            placement: The strategy, such as ``eplb``.
        """
        return Candidate(
            layer=load_preset(self.preset).layer,
            parallelism=Parallelism(ep=self.cluster.num_devices),
            placement=placement,
            num_replicas=self.num_replicas,
        )

    def workload(self, drift: str = "") -> Workload:
        """Return the workload.

        Args:
            drift: Suffix that says how far the loads have drifted; empty for no drift.
        """
        routing = f"{self.distribution}+{drift}" if drift else self.distribution
        return Workload(num_tokens_per_device=self.num_tokens, routing=routing, seed=self.seed)

    def able(self, names: Sequence[str]) -> list[str]:
        """Return the strategies that can place the replicas of this case.

        Args:
            names: Strategies, with their options after a colon or a slash.
        """
        if not self.num_replicas:
            return list(names)
        return [name for name in names if _family(name) in REPLICATING]

    def score(self, strategy: str) -> Row:
        """Return the row of a strategy that is planned on this load, scored now and one step later.

        Args:
            strategy: The strategy; if it cannot plan this case, the row says why.
        """
        candidate, row = self.candidate(strategy), self._named(strategy)
        try:
            prepared = prepare(candidate, self.cluster, self.workload())
            found, traffic = simulate_prepared(prepared), prepared.traffic
            # a distribution that cannot drift, such as a trace, has no next step
            later = self.workload(_DRIFT)
            after = simulate_prepared(
                prepare(candidate, self.cluster, later, placement=prepared.placement)
            )
        except MoesimError as error:
            return row | {"reason": str(error), "evidence": "simulated", "calibration": "none"}
        # a token's copy to its own domain does not cross
        far = traffic.num_domain_copies - traffic.num_kept
        return (
            row
            | _columns(found)
            | {
                "imbalance_next_step": after.load_imbalance,
                "layer_time_next_step_us": after.layer_time_s / US,
                "far_copies_per_token": float(far / traffic.num_tokens_S.sum()),
            }
        )

    def refined(self, steps: int) -> Row:
        """Return the row of a local search on the simulated time, from the best strategy.

        Args:
            steps: Number of exchanges of experts to simulate.

        Raises:
            MoesimError: No strategy can plan this case.
        """
        candidate, work = self.candidate("eplb"), self.workload()
        found = refine(candidate, self.cluster, work, steps=steps, engine="flow")
        result = simulate_prepared(
            prepare(candidate, self.cluster, work, placement=found.placement)
        )
        reason = f"from {found.start}, {found.simulated} simulated"
        return self._named("refined") | _columns(result) | {"reason": reason}

    def drifting(self, steps: int, passes_per_step: int) -> list[Row]:
        """Return rows step by step, for plans that are renewed never, every fourth step, and every
        step.

        Args:
            steps: Number of steps of the drift, which the distribution must name.
            passes_per_step: Forward passes of the model between two steps.

        Raises:
            MoesimError: The distribution cannot drift.
        """
        dense = load_preset(self.preset).dense_part
        common = {
            "distribution": self.distribution,
            "passes_per_step": passes_per_step,
            "evidence": "simulated",
            "engine": "flow",
            "seed": self.seed,
            "version": VERSION,
        }
        rows = []
        for every in (0, 4, 1):
            named = {"cluster": self.cluster.name, "num_replicas": self.num_replicas}
            for row in rebalanced(
                self.candidate("eplb"),
                self.cluster,
                self.workload(),
                range(steps),
                every=every,
                passes_per_step=passes_per_step,
                num_layers=dense.num_moe_layers,
            ):
                rows.append(named | {"renewed_every": every} | row | common)
        return rows

    def _named(self, placement: str) -> Row:
        return {
            "cluster": self.cluster.name,
            "num_devices": self.cluster.num_devices,
            "distribution": self.distribution,
            "placement": placement,
            "num_replicas": self.num_replicas,
            "engine": "flow",
            "seed": self.seed,
            "version": VERSION,
            "reason": "",
        }


def _family(strategy: str) -> str:
    """Return a strategy's name without its options."""
    return strategy.partition(":")[0].partition("/")[0]


def _columns(found: Result) -> Row:
    phases = ("dispatch", "experts", "combine")
    return {
        "load_imbalance": found.load_imbalance,
        "layer_time_us": found.layer_time_s / US,
        **{f"{phase}_us": found.phase_time_s[phase] / US for phase in phases},
        "bottleneck": found.bottleneck,
        "evidence": found.evidence,
        "calibration": found.calibration,
        "profile_hash": found.profile_hash,
    }


def with_speed_up(rows: list[Row]) -> list[Row]:
    """Add to each row its speed-up over expert order without copies, under the same load.

    Args:
        rows: Rows of `PlacementCase.score` and `PlacementCase.refined`; they are changed in place.

    Returns:
        The rows that have a layer time.
    """
    plain = {
        (row["cluster"], row["distribution"]): row["layer_time_us"]
        for row in rows
        if row["placement"] == "contiguous" and not row["reason"]
    }
    for row in rows:
        base = plain.get((row["cluster"], row["distribution"]))
        if base is not None and row.get("layer_time_us"):
            row["speed_up"] = base / row["layer_time_us"]
    return [row for row in rows if row.get("layer_time_us")]


def fastest(rows: Sequence[Row]) -> list[Row]:
    """Return the fastest placement of each cluster, distribution and number of replicas.

    Args:
        rows: Rows with a layer time.
    """
    best: dict[tuple, Row] = {}
    for row in rows:
        key = (row["cluster"], row["distribution"], row["num_replicas"])
        if key not in best or row["layer_time_us"] < best[key]["layer_time_us"]:
            best[key] = row
    return list(best.values())


def shown(rows: Sequence[Row]) -> list[Row]:
    """Return rows with their numbers as the terminal shows them.

    Args:
        rows: Rows of `fastest`.
    """
    return [
        row | {key: format(row.get(key, math.nan), form) for key, form in _FORMATS.items()}
        for row in rows
    ]
