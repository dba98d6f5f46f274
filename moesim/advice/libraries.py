"""Say which kernel library is fastest where: over tokens, experts, formats and devices.

Each point is one layer on one device, with every library that was measured in its format on the
device's generation. Experts alone are compared: the gate and what packs tokens are the same beside
all of them. A library wins for certain if the slow end of its 80 % interval is below the fast end
of every other's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from moesim.costs.libraries import launched
from moesim.design.candidate import Candidate, Workload
from moesim.hardware import load_cluster
from moesim.model import MoELayer, Precision
from moesim.simulation.run import simulate
from moesim.units import US

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryPoint:
    """A layer on a device for which libraries are compared.

    Attributes:
        device: Name of a device profile.
        precision: Name of a recipe of formats.
        layer: The layer; its own formats do not matter.
        num_tokens: Tokens of the device.
        routing: Distribution of the load.
        seed: Seed of the routing.
    """

    device: str
    precision: str
    layer: MoELayer
    num_tokens: int
    routing: str = "uniform"
    seed: int = 0


def library_rows(point: LibraryPoint) -> list[Row]:
    """Price a layer's experts by every library that was measured for it.

    Returns:
        A row for each library, the fastest first, empty if there is none: device, precision,
        num_experts, top_k, width, tokens, ``kernels``, ``experts_us`` with its interval,
        ``behind_percent`` of the fastest, ``wins`` (yes, maybe, no; only
        where there is no other) and calibration.
    """
    cluster = load_cluster(point.device)
    layer = replace(point.layer, precision=Precision.named(point.precision))
    work = Workload(num_tokens_per_device=point.num_tokens, routing=point.routing, seed=point.seed)
    candidate = Candidate(layer=layer)
    rows: list[Row] = []
    for library in launched(cluster.profile, candidate, None):
        if not library.measured(cluster.profile, point.precision):
            continue
        result = simulate(replace(candidate, kernels=library.name), cluster, work)
        grade = result.grade_of("experts")
        rows.append(
            {
                "device": point.device,
                "precision": point.precision,
                "num_experts": layer.num_experts,
                "top_k": layer.top_k,
                "expert_intermediate_size": layer.widest,
                "num_tokens": point.num_tokens,
                "routing": point.routing,
                "kernels": library.name,
                "launched_by": " ".join(library.launch),
                "experts_us": result.experts_time_s / US,
                "experts_low_us": result.experts_time_s * grade.low / US,
                "experts_high_us": result.experts_time_s * grade.high / US,
                "evidence": result.evidence,
                "calibration": result.calibration,
                "grade": grade.letter,
                "rests_on": grade.rests_on,
                "engine": result.engine,
                "seed": point.seed,
                "version": result.version,
                "profile_hash": result.profile_hash,
            }
        )
    rows.sort(key=lambda row: row["experts_us"])
    return [row | _beside(row, rows) for row in rows]


def _beside(row: Row, rows: Sequence[Row]) -> Row:
    best = rows[0]
    others = [other for other in rows if other is not row]
    if not others:
        wins = "only"
    elif all(row["experts_high_us"] < other["experts_low_us"] for other in others):
        wins = "yes"
    elif row["experts_low_us"] <= min(other["experts_high_us"] for other in others):
        wins = "maybe"
    else:
        wins = "no"
    behind = 100.0 * (row["experts_us"] / best["experts_us"] - 1.0)
    return {"behind_percent": behind, "wins": wins}


def winners(rows: Sequence[Row]) -> list[Row]:
    """Return a summary: for each device and format, how often each library is the fastest, and how
    far it is behind elsewhere.
    """
    table = []
    for key in dict.fromkeys((row["device"], row["precision"]) for row in rows):
        own = [row for row in rows if (row["device"], row["precision"]) == key]
        for name in dict.fromkeys(row["kernels"] for row in own):
            of = [row for row in own if row["kernels"] == name]
            behind = sorted(row["behind_percent"] for row in of)
            table.append(
                {
                    "device": key[0],
                    "precision": key[1],
                    "kernels": name,
                    "points": len(of),
                    "fastest": sum(value == 0.0 for value in behind),
                    "certain": sum(row["wins"] == "yes" for row in of),
                    "median_behind_percent": behind[len(behind) // 2],
                    "launched_by": of[0]["launched_by"],
                }
            )
    return sorted(table, key=lambda row: (row["device"], row["precision"], -row["fastest"]))


__all__ = ["LibraryPoint", "library_rows", "winners"]
