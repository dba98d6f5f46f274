"""Fit the price of a library's experts to measured rows that may be fitted:
``moesim calibrate kernels --family NAME``.

Only rows of the groups in ``hw_profiles/silicon/fit_families.csv`` are used, none under 50 us.
Autotuned kernels have plateaus: a row slower than 1.3 times a larger batch of its series is left
out, since no structure predicts it; a user may meet it all the same. Scores and intervals come from
fits that saw no row of a shape, where a format has several.
"""

import csv
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from moesim.costs.calibration import generation_of
from moesim.costs.devices.fused_model import BOUNDS, RULES, TileRule
from moesim.errors import UnknownNameError
from moesim.hardware import load_profile
from moesim.measured.fitting import Fitted, write_calibration
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.family_records import FAMILIES, SHAPE, KernelFamily, family_of
from moesim.measured.kernels.family_rows import FamilyRows
from moesim.measured.kernels.residuals import HeldOutRow, cells_of
from moesim.measured.scores import error_scores
from moesim.units import US

Array = np.ndarray
_SERIES = ["moe_tp_size", "moe_ep_size", "distribution"]
_SLOTS = ["num_slots"]
_ROWS_PER_GROUP, _RULE_ROWS, _SEED, _FLOOR_MS, _PLATEAU = 250, 600, 0, 0.05, 1.3
#: rules that are compared on groups left out of a fit
_FINALISTS = 8
#: spread of the logarithm of a parameter around its first guess
_SPREAD = 3.0


@cache
def fit_rows() -> list[dict[str, Any]]:
    """Return the groups of ``fit_families.csv``."""
    path = files("moesim_hw_profiles") / "silicon" / "fit_families.csv"
    with path.open(encoding="utf-8") as file:
        return [row | {name: int(row[name]) for name in SHAPE} for row in csv.DictReader(file)]


@cache
def _fitted() -> dict[tuple, str]:
    family = {fit: one.name for one in FAMILIES.values() for fit in one.fit_names}
    return {
        (
            family[r["family"]],
            *(r[name] for name in ("system", "dataset", "kernel_source", "dtype", *SHAPE)),
        ): r["ep"]
        for r in fit_rows()
    }


def _ep_sizes(row: dict[str, Any]) -> str:
    """Return the EP sizes of a row's group that may be fitted: ``all``, some, or empty for none."""
    family = family_of(row["dataset"], row["kernel_source"], str(row.get("op_name", "")))
    if family is None:
        return ""
    names = ("system", "dataset", "kernel_source", "moe_dtype", *SHAPE)
    return _fitted().get((family.name, *(row[name] for name in names)), "")


def may_fit(row: dict[str, Any]) -> bool:
    """Return whether a measured row belongs to the groups that may be fitted."""
    sizes = _ep_sizes(row)
    return sizes == "all" or str(row["moe_ep_size"]) in sizes.split()


def collect(family: KernelFamily):
    """Return the family's rows that may be fitted, without short ones and plateaus.

    Returns:
        DataFrame of the columns of `moesim.measured.kernels.table.COLUMNS` and ``latency_ms``.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    import pandas as pd

    parts = []
    for group in fit_rows():
        if group["family"] not in family.fit_names:
            continue
        table = silicon.load_rows(group["system"], group["dataset"], True, family.table)
        same = (table["kernel_source"] == group["kernel_source"]) & (
            table["moe_dtype"] == group["dtype"]
        )
        for name in SHAPE:
            same &= table[name] == group[name]
        table = table[same]
        if group["ep"] != "all":
            table = table[table["moe_ep_size"].isin([int(n) for n in str(group["ep"]).split()])]
        table = table.sort_values("num_tokens", kind="stable")
        series = [*_SERIES, *(name for name in _SLOTS if name in table)]
        later = table.iloc[::-1].groupby(series)["latency_ms"].cummin().reindex(table.index)
        table = table[
            (table["latency_ms"] >= _FLOOR_MS) & (table["latency_ms"] <= _PLATEAU * later)
        ]
        parts.append(table.sample(min(_ROWS_PER_GROUP, len(table)), random_state=_SEED))
    return pd.concat(parts, ignore_index=True)


def fit(rows: FamilyRows, rule: TileRule) -> dict[str, float]:
    """Fit the parameters of one format, by the soft-L1 loss of log errors of scale 0.1."""
    from scipy.optimize import least_squares

    first = {name: bound[0] for name, bound in BOUNDS.items()}
    if rule.exposed < 1.0:
        # from far below, a start that hides behind the work would never show
        first["start_us"] = min(float(rows.measured_s.min()) / US, BOUNDS["start_us"][2])
    guess = np.log(list(first.values()))
    low, high = (np.log([bound[i] for bound in BOUNDS.values()]) for i in (1, 2))
    log_measured, work = np.log(rows.measured_s), rows.work(rule)

    def errors(x: Array) -> Array:
        parameters = dict(zip(BOUNDS, np.exp(x).tolist(), strict=True))
        off = np.log(rows.predicted_s(rule, parameters, work)) - log_measured
        # a parameter that no row determines stays where it began
        return np.concatenate([off, 0.1 * (x - guess) / _SPREAD])

    solution = least_squares(
        errors, guess, bounds=(low, high), loss="soft_l1", f_scale=0.1, x_scale=0.3, max_nfev=80
    )
    return dict(zip(BOUNDS, np.exp(solution.x).tolist(), strict=True))


def best_rule(rows: FamilyRows, family: KernelFamily, groups: list[tuple[int, ...]]) -> TileRule:
    """Return the rule of tiles with the least error on a sample of the rows.

    A rule with more room fits the sample's shapes better and others worse, so that those with the
    least error in the fit are compared by fits that saw none of a row's group.
    """
    rng = np.random.default_rng(_SEED)
    keep = np.zeros(rows.num_rows, dtype=bool)
    keep[rng.permutation(rows.num_rows)[:_RULE_ROWS]] = True
    sample = rows.only(keep)
    sampled = [group for group, kept in zip(groups, keep, strict=True) if kept]
    choices = RULES | dict(family.rules)
    found: list[tuple[float, int, TileRule]] = []
    for values in product(*choices.values()):
        rule = TileRule.of(dict(zip(choices, values, strict=True)))
        one_size = rule.least_rows == rule.most_rows
        if rule.least_rows > rule.most_rows or (one_size and rule.row_factor != 1.0):
            continue
        off = sample.predicted_s(rule, fit(sample, rule)) / sample.measured_s - 1.0
        found.append((float(np.abs(off).mean()), len(found), rule))
    finalists = sorted(found)[:_FINALISTS]
    if len(finalists) == 1:
        return finalists[0][2]
    left_out = []
    for _, number, rule in finalists:
        off = held_out_s(sample, sampled, rule) / sample.measured_s - 1.0
        left_out.append((float(np.abs(off).mean()), number, rule))
    return min(left_out)[2]


def held_out_s(rows: FamilyRows, groups: list[tuple[int, ...]], rule: TileRule) -> Array:
    """Return predictions of each row by a fit that saw none of its group; of a single group, by
    fits that saw none of its fifth of the rows.
    """
    distinct = sorted(set(groups))
    if len(distinct) > 1:
        fold = np.array([distinct.index(group) for group in groups])
    else:
        fold = np.arange(rows.num_rows) % 5
    out = np.empty(rows.num_rows)
    for part in np.unique(fold):
        held = fold == part
        out[held] = rows.only(held).predicted_s(rule, fit(rows.only(~held), rule))
    return out


def calibrate(path: Path, name: str) -> dict[str, dict[str, float]]:
    """Fit, cross-validate and write a family's calibration file, and return the scores by format
    and device.

    Args:
        path: The file to write.
        name: Name of the family, one of `FAMILIES`.

    Raises:
        UnknownNameError: There is no such family.
        MeasurementError: The extra ``silicon`` is not installed.
    """
    if name not in FAMILIES:
        raise UnknownNameError("family", name, FAMILIES)
    family = FAMILIES[name]
    table = collect(family)
    parameters: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}
    left_out: list[HeldOutRow] = []
    profiles = set()
    for (system, dtype), part in table.groupby(["system", "moe_dtype"]):
        profile = load_profile(str(system))
        records = part.to_dict("records")
        rows = FamilyRows.of(records, profile, family)
        shapes = [tuple(record[column] for column in SHAPE) for record in records]
        groups = [tuple(record[column] for column in family.left_out) for record in records]
        rule = best_rule(rows, family, groups)
        held = held_out_s(rows, groups, rule)
        profiles.add(profile.name)
        chosen = {key: float(getattr(rule, key)) for key in RULES}
        prefix = f"{dtype}_sm{generation_of(profile)}"
        parameters |= {f"{prefix}_{key}": v for key, v in (chosen | fit(rows, rule)).items()}
        scores[f"{profile.name}-{dtype}"] = error_scores(held, rows.measured_s)
        left_out += [
            HeldOutRow(str(system), r["dataset"], str(dtype), r["moe_ep_size"], shape, float(ratio))
            for r, shape, ratio in zip(records, shapes, rows.measured_s / held, strict=True)
        ]
    generations = {generation_of(load_profile(name)) for name in profiles}
    found = Fitted(
        title=family.title,
        fitted_on=f"{len(table)} rows, at most {_ROWS_PER_GROUP} of each group of a shape and "
        "format, none under 50 us and none of a plateau",
        sources=[
            f"aiconfigurator-core 0.12, {family.table}.parquet: "
            + ", ".join(sorted(set(table["kernel_source"])))
        ],
        profiles=sorted(profiles),
        generations=sorted(generations),
        parameters=parameters,
        cells=cells_of(left_out),
        scores=scores,
        fit_groups=sorted(
            {
                f"{r['system']} {r['dataset']} {r['moe_dtype']} "
                + " ".join(str(r[column]) for column in SHAPE)
                for r in table[["system", "dataset", "moe_dtype", *SHAPE]]
                .drop_duplicates()
                .to_dict("records")
            }
        ),
        model="fused",
        also_serves=family.also_serves,
    )
    write_calibration(path, found, f"moesim calibrate kernels --family {name}")
    return scores
