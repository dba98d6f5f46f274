"""Read a user's measured losses from a CSV file and check it line by line.

The columns are ``num_experts``, ``top_k``, ``active_params`` (with embeddings), ``train_tokens``,
``granularity`` (width of a dense feed-forward block over the width of an expert), ``loss`` in nats
per token, and optionally ``weight`` if some points count for more. Other columns are ignored. The
models should not differ in anything else: the estimate covers their other choices by its deltas.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import ConfigError
from moesim.files.texts import read_csv

COLUMNS = ("num_experts", "top_k", "active_params", "train_tokens", "granularity", "loss")
#: with fewer points, leaving one out would leave only one
MIN_POINTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The measured losses of a file.

    Attributes:
        name: Name of the file.
        digest: Hash of the text of the file.
        sizes_PV: ndarray of shape (P, 4): E_eff, active parameters, training tokens, granularity.
        loss_P: ndarray of shape (P,): loss in nats.
        weight_P: ndarray of shape (P,): weight, with mean 1.
        line_P: Line of each point in the file.
    """

    name: str
    digest: str
    sizes_PV: np.ndarray
    loss_P: np.ndarray
    weight_P: np.ndarray
    line_P: tuple[int, ...]


def read_points(path: str | Path) -> Points:
    """Read a user's points.

    Raises:
        ConfigError: The file does not exist, a column is missing, or a number is impossible. The
            text names the file and the line.
    """
    path = Path(path)
    table = read_csv(path)
    if missing := [name for name in COLUMNS if name not in table.header]:
        raise ConfigError(
            f"{path.name}: expected columns {', '.join(COLUMNS)}, without {', '.join(missing)}"
        )
    rows = [
        (*_read(row, f"{path.name}:{line}"), line)
        for line, row in table.rows
        if any(isinstance(value, str) and value.strip() for value in row.values())
    ]
    if len(rows) < MIN_POINTS:
        raise ConfigError(f"{path.name}: expected at least {MIN_POINTS} points, got {len(rows)}")
    sizes, losses, weights, lines = zip(*rows, strict=True)
    weight_P = np.array(weights)
    return Points(
        name=path.name,
        digest=hashlib.sha256(table.text.encode()).hexdigest()[:12],
        sizes_PV=np.array(sizes),
        loss_P=np.array(losses),
        weight_P=weight_P / weight_P.mean(),
        line_P=lines,
    )


def _read(
    row: dict[str, str | None], where: str
) -> tuple[tuple[float, float, float, float], float, float]:
    found = {name: _number(row.get(name), f"{where}: {name}") for name in COLUMNS}
    for name in ("num_experts", "top_k"):
        if found[name] % 1 or found[name] < 1:
            raise ConfigError(f"{where}: {name}: expected an integer >= 1, got {row[name]!r}")
    if found["top_k"] > found["num_experts"]:
        raise ConfigError(
            f"{where}: top_k: expected at most num_experts = {found['num_experts']:g}, "
            f"got {row['top_k']!r}"
        )
    weight = row.get("weight")
    sizes = (
        found["num_experts"] / found["top_k"],
        found["active_params"],
        found["train_tokens"],
        found["granularity"],
    )
    return (
        sizes,
        found["loss"],
        _number(weight, f"{where}: weight") if weight and weight.strip() else 1.0,
    )


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"{where}: expected a number > 0, got {text!r}")
    return value
