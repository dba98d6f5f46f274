"""Score whole models on measured serving runs: ``moesim validate models``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError, shown
from moesim.files.texts import read_csv
from moesim.measured.models.predict import PREDICTED, predict
from moesim.measured.models.sample import ServingRow, contradicted, repaired
from moesim.measured.scores import error_scores, ranking

#: columns that a table of runs must have, and the field of `ServingRow` that each is
COLUMNS = {
    "row_id": "row_id",
    "model": "model",
    "system": "system",
    "backend": "backend",
    "backend_version": "backend_version",
    "isl": "isl",
    "osl": "osl",
    "tp": "tp",
    "pp": "pp",
    "attention_dp": "attention_dp",
    "moe_tp": "moe_tp",
    "moe_ep": "moe_ep",
    "gemm_quant_mode": "gemm_format",
    "moe_quant_mode": "moe_format",
}
_WHOLE = ("isl", "osl", "tp", "pp", "attention_dp", "moe_tp", "moe_ep")
#: columns that say how many clients there are, one of which must be filled
_CLIENTS = ("concurrency", "batch_size")
#: layouts that make a ranking
_LEAST_LAYOUTS = 3
#: columns of a score
SHOWN = ("what", "rows", "covered", "median", "mape", "p90", "bias", "inside", "ttft_median")


#: larger numbers of tokens, clients or ranks are a mistake
_LARGEST = 1 << 40


def read_serving_rows(path: Path) -> tuple[list[ServingRow], list[dict[str, Any]]]:
    """Read a CSV file of runs.

    Returns:
        The runs, and the rows as they were given.

    Raises:
        ConfigError: The file cannot be read or lacks a column, or a cell holds no number; the text
            names file, line and column.
    """
    table = read_csv(path)
    if missing := [name for name in COLUMNS if name not in table.header]:
        raise ConfigError(f"{path}: expected the columns {', '.join(missing)}, too")
    if not set(_CLIENTS) & set(table.header):
        raise ConfigError(f"{path}: expected a column concurrency or batch_size, got neither")
    if not table.rows:
        raise ConfigError(f"{path}: expected at least one row, got none")
    return [_row(path, line, row) for line, row in table.rows], [dict(row) for _, row in table.rows]


def _row(path: Path, line: int, row: dict[str, str | None]) -> ServingRow:
    def whole(name: str, default: int | None = None) -> int:
        text = str(row.get(name) or "").strip()
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not (1 <= value <= _LARGEST and value.is_integer()):
            raise ConfigError(
                f"{path}:{line}: {name}: expected a whole number from 1 to {_LARGEST}, "
                f"got {shown(text)}"
            )
        return int(value)

    numbers = {name: whole(name, 1 if name in ("pp", "attention_dp") else None) for name in _WHOLE}
    clients = (
        whole("concurrency")
        if str(row.get("concurrency") or "").strip()
        # the batch of an attention rank
        else whole("batch_size") * numbers["attention_dp"]
    )
    words = {field: str(row[name] or "") for name, field in COLUMNS.items() if name not in _WHOLE}
    return ServingRow(**words, **numbers, concurrency=clients)  # type: ignore[arg-type]


def scoreboard(rows: Sequence[ServingRow], *, most: int | None = None) -> list[dict[str, Any]]:
    """Score runs that no host was fitted to and in which nobody waited.

    Args:
        rows: Runs with measured times; by `moesim.measured.models.sample.repaired`.
        most: Number of runs at most, drawn evenly from all; None for all.

    Returns:
        A row for all, for EP of 1 and more, for each system and engine, and for runs whose likes
        do not contradict each other, then the mean rank correlation of layouts.
    """
    scored = [row for row in rows if not row.may_fit and not row.queued]
    if most is not None and most < len(scored):
        scored = [scored[int(i)] for i in np.linspace(0, len(scored) - 1, most)]
    found, doubtful = list(predict(scored)), contradicted(rows)
    classes: dict[str, list[int]] = {}
    for i, row in enumerate(scored):
        ep = "EP 1" if row.moe_ep == 1 else "EP > 1"
        for what in ("all", ep, f"{ep}, {row.system}", f"{ep}, {row.backend}"):
            classes.setdefault(what, []).append(i)
        if row.whose not in doubtful:
            classes.setdefault(f"{ep}, runs that agree", []).append(i)
    table = [
        _score(what, [(scored[i], found[i]) for i in at]) for what, at in sorted(classes.items())
    ]
    return [*table, *_layouts(scored, found)]


def _score(what: str, pairs: Sequence[tuple[ServingRow, dict[str, Any]]]) -> dict[str, Any]:
    known = [(row, made) for row, made in pairs if made["status"] == "ok"]
    score: dict[str, Any] = {"what": what, "rows": len(pairs), "covered": len(known) / len(pairs)}
    if not known:
        return score
    measured = np.array([row.tpot_ms for row, _ in known], dtype=float)
    simulated = np.array([made["predicted_tpot_ms"] for _, made in known], dtype=float)
    low = np.array([made["tpot_low_ms"] for _, made in known], dtype=float)
    high = np.array([made["tpot_high_ms"] for _, made in known], dtype=float)
    errors = error_scores(simulated, measured)
    firsts = [
        abs(made["predicted_ttft_ms"] / row.ttft_ms - 1.0) for row, made in known if row.ttft_ms
    ]
    return score | {
        **{name: errors[name] for name in ("median", "mape", "p90", "bias")},
        "inside": 100.0 * float(np.mean((measured >= low) & (measured <= high))),
        "ttft_median": 100.0 * float(np.median(firsts)) if firsts else None,
    }


def _layouts(
    rows: Sequence[ServingRow], found: Sequence[dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Yield how well layouts are ranked by TPOT.

    Compared are runs that differ in nothing but the layout: one model in the same formats on one
    system, by the same version of an engine, with equal lengths and clients. Several runs of one
    layout are one candidate, of their median; three layouts make a ranking.
    """
    groups: dict[tuple[object, ...], dict[object, list[tuple[float, float]]]] = {}
    for row, made in zip(rows, found, strict=True):
        if made["status"] == "ok" and row.tpot_ms is not None:
            key = (
                row.model, row.system, row.backend, row.backend_version, row.isl, row.osl,
                row.concurrency, row.gemm_format, row.moe_format,
            )  # fmt: skip
            layout = (row.tp, row.attention_dp, row.moe_tp, row.moe_ep, row.pp)
            pair = made["predicted_tpot_ms"], row.tpot_ms
            groups.setdefault(key, {}).setdefault(layout, []).append(pair)
    taus, count = [], 0
    for layouts in groups.values():
        medians = np.array([np.median(pairs, axis=0) for pairs in layouts.values()])
        ranked = ranking(*medians.T, least=_LEAST_LAYOUTS)
        if ranked is not None and not np.isnan(ranked["kendall_tau"]):
            taus.append(ranked["kendall_tau"])
            count += sum(map(len, layouts.values()))
    if taus:
        yield {
            "what": f"ranking of layouts, mean tau of {len(taus)}",
            "rows": count,
            "median": float(np.mean(taus)),
        }


__all__ = ["COLUMNS", "PREDICTED", "SHOWN", "read_serving_rows", "repaired", "scoreboard"]
