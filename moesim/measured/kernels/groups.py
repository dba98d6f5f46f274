"""Collect the measured rows that may be fitted, in groups of one shape on one system.

The groups are those of ``hw_profiles/silicon/fit_groups.csv``; ``few_shot_rows.csv`` next to it
lists ten rows of each device that has factors of its own. Drawing the rows of a group is seeded, so
that a fit sees the same rows again.
"""

import csv
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from moesim.hardware import load_profile
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import RowDraws, draw_rows

FLOOR_MS = 0.05
SHAPE = ("hidden_size", "inter_size", "topk", "num_experts")
_GROUP = ("system", "dataset", "kernel_source", "moe_dtype", *SHAPE)
ROWS_PER_GROUP, SEED = 200, 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitGroup:
    """Measured rows of one shape on one system, drawn and ready to be priced.

    Attributes:
        system: Name of the system, such as ``h100_sxm``.
        dataset: Version of the library, such as ``sglang/0.5.14``.
        precision: ``bfloat16`` or ``fp8_block``.
        shape: The shape (hidden, width, top_k, experts).
        draws: Draws of the rows' expert histograms.
        spread: ndarray of shape (rows,), bool: whether the row has EP > 1.
        measured_s: ndarray of shape (rows,): measured seconds.
    """

    system: str
    dataset: str
    precision: str
    shape: tuple[int, ...]
    draws: RowDraws
    spread: np.ndarray
    measured_s: np.ndarray

    def only(self, keep_N: np.ndarray) -> "FitGroup":
        """Return the group with some of its rows.

        Args:
            keep_N: ndarray of shape (rows,), bool: which rows to keep.
        """
        return replace(
            self,
            draws=self.draws.only(keep_N),
            spread=self.spread[keep_N],
            measured_s=self.measured_s[keep_N],
        )

    def few(self, seed: int) -> "FitGroup":
        """Return one random row of the group."""
        count = len(self.measured_s)
        return self.only(np.arange(count) == np.random.default_rng(seed).integers(count))


#: groups with the predicted seconds of their rows
Predictions = list[tuple[FitGroup, np.ndarray]]


@cache
def fit_groups() -> dict[tuple, str]:
    """Return the groups that may be fitted: (system, dataset, kernel, precision, *shape) -> the
    moe_ep_size that may be, ``any`` or a number.
    """
    with (files("moesim_hw_profiles") / "silicon" / "fit_groups.csv").open(
        encoding="utf-8"
    ) as handle:
        return {
            tuple(int(row[c]) if c in SHAPE else row[c] for c in _GROUP): row["ep"]
            for row in csv.DictReader(handle)
        }


def may_fit(row: dict) -> bool:
    """Return whether a measured row belongs to the groups that may be fitted, or is one of the
    few-shot rows.
    """
    ep = fit_groups().get(tuple(row[c] for c in _GROUP))
    if ep is not None and (ep == "any" or int(ep) == row["moe_ep_size"]):
        return True
    return tuple(row[c] for c in silicon.COLUMNS) in _few_shot_keys()


@cache
def _few_shot_keys() -> set[tuple]:
    return {tuple(row[c] for c in silicon.COLUMNS) for row in few_shot_rows()}


def few_shot_rows() -> list[dict[str, Any]]:
    """Return the rows of ``few_shot_rows.csv``: ten measured rows of each device that has its own
    factors.
    """
    with (files("moesim_hw_profiles") / "silicon" / "few_shot_rows.csv").open(
        encoding="utf-8"
    ) as handle:
        return [
            {k: int(v) if v.isdigit() else v for k, v in row.items()}
            for row in csv.DictReader(handle)
        ]


def collect(framework: str) -> list[FitGroup]:
    """Read up to 200 random rows of each group of a framework that may be fitted, none under 50 us.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    groups = []
    for key, ep in fit_groups().items():
        item = dict(zip(_GROUP, key, strict=True))
        if not item["dataset"].startswith(framework):
            continue
        table = silicon.load_rows(item["system"], item["dataset"])
        table = table[table["latency_ms"] >= FLOOR_MS]
        for column in ("kernel_source", "moe_dtype", *SHAPE):
            table = table[table[column] == item[column]]
        if ep != "any":
            table = table[table["moe_ep_size"] == int(ep)]
        table = table.sample(min(ROWS_PER_GROUP, len(table)), random_state=SEED)
        groups.append(_group(table.to_dict("records")))
    return groups


def _group(rows: list[dict]) -> FitGroup:
    first = rows[0]
    return FitGroup(
        system=first["system"],
        dataset=first["dataset"],
        precision=first["moe_dtype"],
        shape=tuple(first[c] for c in SHAPE),
        draws=draw_rows(rows, load_profile(first["system"])),
        spread=np.array([r["moe_ep_size"] > 1 for r in rows]),
        measured_s=np.array([float(r["latency_ms"]) for r in rows]) * 1e-3,
    )


def few_shot_groups() -> dict[str, FitGroup]:
    """Return the few-shot rows by system, ready to be priced."""
    rows = few_shot_rows()
    return {
        system: _group([r for r in rows if r["system"] == system])
        for system in sorted({r["system"] for r in rows})
    }
