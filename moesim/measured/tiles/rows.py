"""Read tables of timed tiles: what `moesim kernels sweep` writes.

A row is one grouped GEMM with one tile: the layer, the routing, the kernel, the tile, and the
median of its times. ``path`` names how the kernel reads weights, and which kernel it is:
``pointers`` or ``descriptors``; of an up projection also ``wide_pointers`` or ``wide_descriptors``,
if gate and up columns are one product instead of two; of a down projection also
``single_descriptors``, if each program computes one tile instead of several.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from moesim.costs.devices.tile_work import FORMS, TileWork
from moesim.costs.tiles import TILE_FIELDS, Tile
from moesim.errors import ConfigError, require, shown
from moesim.files.texts import read_csv

#: columns a table of tiles must have; others are carried along
COLUMNS = (
    *("device", "hidden_size", "expert_intermediate_size", "num_experts", "top_k", "num_tokens"),
    *("skew", "active_experts", "max_rows", "gemm", "path"),
    *(*TILE_FIELDS, "row_tiles"),
)
_POWERS_OF_TWO = ("block_m", "block_n", "block_k", "num_warps")
_WHOLE = (*COLUMNS[1:6], "active_experts", "row_tiles", *TILE_FIELDS)
_ELEMENT_BYTES = 2.0
#: of a size: larger ones are a mistake, and products of them do not fit in 64 bits
_MOST_DIGITS = 9
_SHORT = f"at most {_MOST_DIGITS} digits"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedTiles:
    """A table of tiles, as arrays.

    Attributes:
        rows: Rows as they were read, numbers as numbers.
        work: What the tile model prices, of shape (R,).
        measured_us_R: Medians, ndarray of shape (R,); NaN where a row has none.
    """

    rows: list[dict[str, Any]]
    work: TileWork
    measured_us_R: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> "TimedTiles":
        """Return the table of at least one row, whose numbers are numbers."""
        column = {name: np.array([row[name] for row in rows]) for name in _WHOLE}
        up = np.array([row["gemm"] == "up" for row in rows])
        active, blocks = column["active_experts"], column["row_tiles"]
        group = column["group_m"]
        return cls(
            rows=list(rows),
            measured_us_R=np.array([float(row.get("median_us") or "nan") for row in rows]),
            work=TileWork(
                form_R=np.array([FORMS.index(form_of(r["gemm"], r["path"])) for r in rows]),
                # an up tile's block_n counts gate columns, and the product has as many up columns
                tile=Tile.of(column | {"block_n": column["block_n"] * np.where(up, 2, 1)}),
                rows_R=column["num_tokens"] * column["top_k"],
                active_R=active,
                blocks_R=blocks,
                # the table has no histogram: experts share their row blocks evenly
                groups_R=np.maximum(active, 1) * np.ceil(blocks / np.maximum(active, 1) / group),
                columns_R=np.where(
                    up, 2 * column["expert_intermediate_size"], column["hidden_size"]
                ),
                depth_R=np.where(up, column["hidden_size"], column["expert_intermediate_size"]),
                element_bytes=_ELEMENT_BYTES,
                top_k_R=np.where(up, column["top_k"], 1),
            ),
        )

    def groups(self) -> list[np.ndarray]:
        """Return the indices of the rows of each GEMM at each load: what one tile is chosen for."""
        names = (*COLUMNS[:7], "gemm")
        found: dict[tuple[Any, ...], list[int]] = {}
        for index, row in enumerate(self.rows):
            found.setdefault(tuple(row[name] for name in names), []).append(index)
        return [np.array(indices) for indices in found.values()]


def form_of(gemm: str, path: str) -> str:
    """Return the kernel's form, one of `moesim.costs.devices.tile_model.FORMS`."""
    if path.startswith("wide_" if gemm == "up" else "single_"):
        return path
    return f"{'paired' if gemm == 'up' else 'linear'}_{path}"


def read_tiles(path: Path) -> TimedTiles:
    """Read a CSV file of timed tiles.

    Raises:
        ConfigError: The file cannot be read, has no rows, lacks a column, or holds a value that is
            none; the text names the row and the column.
    """
    table = read_csv(path)
    if missing := [name for name in COLUMNS if name not in table.header]:
        raise ConfigError(f"{path}: expected the columns of a tile sweep; {missing[0]} is missing")
    require(bool(table.rows), f"{path}", "rows of timed tiles", "none")
    return TimedTiles.of([_parsed(row, f"{path}: row {n}") for n, row in table.rows])


def read_all(paths: Iterable[Path]) -> TimedTiles:
    """Read several files as one table; errors are those of `read_tiles`."""
    return TimedTiles.of([row for path in paths for row in read_tiles(path).rows])


def _parsed(row: dict[str, str | None], where: str) -> dict[str, Any]:
    texts = {name: text or "" for name, text in row.items()}
    out: dict[str, Any] = dict(texts)
    for name in _WHOLE:
        text = texts[name]
        # longer digits are not converted, which takes a time that grows with their square
        number = int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else 0
        if number < 1:
            rule = "an integer >= 1" if len(text) <= _MOST_DIGITS else _SHORT
            raise ConfigError(f"{where}: {name}: expected {rule}, got {shown(text)}")
        if name in _POWERS_OF_TWO and number & (number - 1):
            raise ConfigError(f"{where}: {name}: expected a power of two, got {shown(text)}")
        out[name] = number
    gemm, form = texts["gemm"], texts["path"]
    if gemm not in ("up", "down") or form_of(gemm, form) not in FORMS:
        raise ConfigError(
            f"{where}: gemm, path: expected up or down, by pointers or descriptors (up also by "
            f"wide_pointers, wide_descriptors; down by single_descriptors), got "
            f"{shown(gemm)}, {shown(form)}"
        )
    for name, least in (("skew", -inf), ("median_us", 0.0)):
        if written := texts.get(name):
            try:
                value = float(written)
            except ValueError:
                value = nan
            if not (isfinite(value) and value > least):
                rule = "a number > 0" if name == "median_us" else "a number"
                raise ConfigError(f"{where}: {name}: expected {rule}, got {shown(written)}")
            out[name] = value
    return out
