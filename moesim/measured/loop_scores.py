"""Score how well a machine's layers were predicted in a closed loop, and compare the scores with
targets.

The project set these targets for an idle machine; a run on a disturbed machine is reported as
disturbed.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moesim.measured.scores import error_scores, ranking

Array = np.ndarray
_BEST_OF, _DRAWS = 8, 400
#: what is scored, the score, whether it should be at most or at least the bound, and the bound
TARGETS: tuple[tuple[str, str, str, float], ...] = (
    ("layers", "mape", "<=", 9.0),
    ("layers", "p90", "<=", 20.0),
    ("layers", "kendall_tau", ">=", 0.95),
    ("layers", "roofline_ratio", ">=", 4.0),
    ("layers", "best_of_8_regret_percent", "<=", 1.0),
    ("all-to-all, 2 ranks", "median", "<=", 20.0),
    ("layers on 2 ranks, a + b x simulated", "mape", "<=", 10.0),
    ("the whole run", "seconds", "<=", 120.0),
)


def fit_line(simulated: Array, measured: Array) -> tuple[float, float]:
    """Fit start a >= 0 and slope b > 0 of measured = a + b x simulated, with a robust loss on the
    log of the ratio.

    The line is what ranks of one host add to the sum of their parts: they wake each other up, and
    share caches and memory.

    Args:
        simulated: ndarray of shape (N,): simulated times > 0, N >= 2.
        measured: ndarray of shape (N,): measured times > 0.
    """
    from scipy.optimize import least_squares

    scale = float(np.median(measured))
    found = least_squares(
        lambda p: np.log((p[0] + p[1] * simulated / scale) / (measured / scale)),
        (0.01, 1.0),
        bounds=((0.0, 1e-3), np.inf),
        loss="soft_l1",
        f_scale=0.1,
    ).x
    return float(found[0] * scale), float(found[1])


def best_of_regret(simulated: Array, measured: Array, seed: int = 0) -> float:
    """Return the mean regret, in percent, of the candidate that simulation calls best of eight,
    over many random sets of eight.

    Args:
        simulated: ndarray of shape (N,): simulated cost of each, such as seconds per multiply-add.
        measured: ndarray of shape (N,): measured cost of each.
        seed: Seed of the random sets.
    """
    rng = np.random.default_rng(seed)
    regrets = []
    for _ in range(_DRAWS):
        among = rng.choice(len(simulated), min(_BEST_OF, len(simulated)), replace=False)
        regrets.append(measured[among[simulated[among].argmin()]] / measured[among].min() - 1)
    return 100 * float(np.mean(regrets))


def scores(rows: Sequence[dict[str, Any]], simulated: str = "simulated_us") -> dict[str, float]:
    """Return errors in percent, rank correlation, the percentage inside the interval, and how many
    rows were disturbed.

    Args:
        rows: Rows with ``measured_us``, a simulated column, and if known ``simulated_low_us``,
            ``simulated_high_us`` and ``contended``.
        simulated: Name of the simulated column.
    """
    predicted, measured = (
        np.array([row[name] for row in rows]) for name in (simulated, "measured_us")
    )
    found = error_scores(predicted, measured) | (ranking(predicted, measured) or {})
    if "simulated_low_us" in rows[0] and simulated == "simulated_us":
        inside = [
            row["simulated_low_us"] <= row["measured_us"] <= row["simulated_high_us"]
            for row in rows
        ]
        found["inside_percent"] = 100 * float(np.mean(inside))
    return found | {"contended": float(sum(bool(row.get("contended")) for row in rows))}


def against_targets(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each target next to what was found.

    Args:
        summary: Rows with ``what`` and scores.

    Returns:
        Rows with what, score, target, found and met, in the order of `TARGETS`; found is None if it
        was not scored.
    """
    by_name = {row["what"]: row for row in summary}
    rows = []
    for what, score, sign, bound in TARGETS:
        found = by_name.get(what, {}).get(score)
        met = None if found is None else found <= bound if sign == "<=" else found >= bound
        rows.append(
            {
                "what": what,
                "score": score,
                "target": f"{sign} {bound:g}",
                "found": found,
                "met": {None: "not measured", True: "yes", False: "no"}[met],
            }
        )
    return rows


def beaten_winners(rows: Sequence[dict[str, Any]]) -> float:
    """Return the percentage of winners that a random design was measured to beat.

    Args:
        rows: Rows with ``role``, ``ranks``, ``loss`` and ``measured_us``; a design beats a winner
            on the same number of ranks if it is faster and no worse in loss.
    """
    winners, others = ([r for r in rows if r["role"] == role] for role in ("winner", "random"))
    beaten = [
        any(
            other["ranks"] == winner["ranks"]
            and other["loss"] <= winner["loss"]
            and other["measured_us"] < winner["measured_us"]
            for other in others
        )
        for winner in winners
    ]
    return 100 * float(np.mean(beaten))


def loop_summary(
    layers: Sequence[dict[str, Any]],
    exchanges: Sequence[dict[str, Any]],
    ranked: Sequence[dict[str, Any]],
    candidates: Sequence[dict[str, Any]],
    seed: int,
) -> list[dict[str, Any]]:
    """Score every part of a closed loop.

    Args:
        layers: Rows of layers on one rank.
        exchanges: Rows of all-to-alls; may be empty.
        ranked: Rows of layers over two ranks, of which the rows that are not ``in_fit`` are scored;
            may be empty.
        candidates: Rows of the designs of a search.
        seed: Seed of the draws of eight.
    """
    sizes = ("num_tokens", "top_k", "hidden_size", "expert_intermediate_size")
    work = np.array([math.prod(row[size] for size in sizes) for row in layers], dtype=np.float64)
    simulated, measured = (
        np.array([row[name] for row in layers]) / work for name in ("simulated_us", "measured_us")
    )
    plain = scores(layers, "roofline_us")
    first: dict[str, Any] = {"what": "layers", **scores(layers)}
    first["best_of_8_regret_percent"] = best_of_regret(simulated, measured, seed)
    first["roofline_ratio"] = plain["mape"] / first["mape"]
    table = [first, {"what": "layers, roofline", **plain}]
    if exchanges:
        table.append({"what": "all-to-all, 2 ranks", **scores(exchanges)})
    if ranked:
        unseen = [row for row in ranked if not row["in_fit"]]
        table.append({"what": "layers on 2 ranks", **scores(unseen)})
        fitted = scores(unseen, "fitted_us")
        table.append({"what": "layers on 2 ranks, a + b x simulated", **fitted})
    for count in sorted({row["ranks"] for row in candidates}):
        here = [row for row in candidates if row["ranks"] == count]
        row: dict[str, Any] = {"what": f"candidates on {count} rank{'s' * (count > 1)}"}
        row |= scores(here, "fitted_us")
        table.append(row | {"beaten_winners_percent": beaten_winners(here)})
    return table
