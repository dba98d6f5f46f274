"""Read the files of traces: blocks of per-token expert ids, or counts of each expert by layer.

The suffix of a file decides its form:

- ``.npy``: integers of shape (T, K), or of shape (T, layers, K) like vLLM's ``routed_experts``, are
  expert ids. Numbers of shape (E,) or (layers, E) are counts if they are floats or if the name of
  the file ends in ``counts``, ``load`` or ``loads``.
- ``.npz``: one such array, or one for each layer, named ``layer_0``, ``layer_1`` and so on.
- ``.json``: ``{"ids": ...}`` or ``{"counts": ...}`` with nested lists of these shapes, or a table
  of layers.
- ``.csv`` and ``.parquet``: columns ``expert_0`` to ``expert_{K-1}`` with one row per token, and
  ``layer`` if there are several, are expert ids. Columns ``expert`` and ``count``, and ``layer``,
  are counts; ``expert_id`` and ``layer_id`` are the same, and experts without a row have none.
- ``.pt``: a dump of SGLang's expert distribution recorder
  (sglang/srt/eplb/expert_distribution.py). It holds ``logical_count`` (steps, layers, E) in mode
  ``stat``; in modes ``per_pass`` and ``per_token`` it holds ``records`` with physical ids, which
  ``last_physical_to_logical_map`` maps to logical ids. A tensor, or a dict of tensors, of shape
  (layers, E) holds loads in the form of vLLM's expert load balancer (vLLM itself writes no dump
  file; assumed).

Shape legend: T tokens, K choices, E experts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np

from moesim.errors import ConfigError, shown
from moesim.limits import MOST_EXPERTS
from moesim.routing.array_files import read_json, read_npz
from moesim.routing.sglang_dump import read_dump

#: number of tokens that are read at a time
BLOCK = 1 << 18
_COUNTS_NAME = re.compile(r"(counts?|loads?)$")
Block = tuple[int, np.ndarray]
#: what NumPy raises for a file that is none of its own; it parses a header as Python
_NO_ARRAY = (
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    TokenError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)


@dataclass(kw_only=True, eq=False)
class TraceFile:
    """One opened file.

    Attributes:
        path: Path of the file.
        kind: The kind of trace, ``ids`` or ``counts``.
        counts: Layer -> ndarray of shape (E,), int64 or float64, for a file of counts.
        arrays: Layer -> memory-mapped arrays of shape (T, K), for ids stored as arrays.
        table: Whether the ids come from a CSV or parquet file.
    """

    path: Path
    kind: Literal["ids", "counts"]
    counts: dict[int, np.ndarray] = field(default_factory=dict)
    arrays: dict[int, list[np.ndarray]] = field(default_factory=dict)
    table: bool = False

    def blocks(self) -> Iterator[Block]:
        """Yield (layer, ids of some of its tokens), the ids of shape (n, K), with the tokens of a
        layer in order.

        Raises:
            ConfigError: A row is cut short, or the values are not integers.
        """
        for layer, parts in self.arrays.items():
            for part in parts:
                for first in range(0, len(part), BLOCK):
                    yield layer, np.asarray(part[first : first + BLOCK])
        if self.table:
            yield from _table_ids(self.path)


def open_file(path: Path, kind: str | None = None) -> TraceFile:
    """Open a trace.

    Args:
        path: Path of the file.
        kind: The kind of trace, ``ids`` or ``counts``; by default it follows from the file name and
            the type of the numbers.

    Raises:
        ConfigError: The file does not exist, is truncated, or has a different form.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this file: {error.strerror}") from None
    if not size:
        raise ConfigError(f"{path}: expected a trace, got an empty file")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _open_npy(path, kind)
    if suffix == ".npz":
        found = read_npz(path)
        return _of_layers(path, found, kind) if isinstance(found, dict) else _of(path, found, kind)
    if suffix == ".json":
        said, arrays = read_json(path)
        named = kind or said
        if isinstance(arrays, dict):
            return _of_layers(path, arrays, named)
        return _of(path, arrays, named)
    if suffix == ".pt":
        dump = read_dump(path)
        if isinstance(dump, np.ndarray):
            return _of_counts(path, dump)
        kind, of_layer = dump
        return (
            TraceFile(path=path, kind="ids", arrays=of_layer)
            if kind == "ids"
            else _of_counts(path, np.stack([of_layer[layer][0] for layer in of_layer]))
        )
    if suffix in (".csv", ".parquet"):
        return _open_table(path)
    raise ConfigError(
        f"{path}: expected a trace as .npy, .npz, .json, .csv, .parquet or .pt, got "
        f" {suffix or 'no ending'!r}"
    )


def _open_npy(path: Path, kind: str | None) -> TraceFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*_NO_ARRAY, OSError) as error:
        raise ConfigError(f"{path}: expected a whole .npy file: {shown(error)}") from None
    return _of(path, array, kind)


def _of_layers(path: Path, arrays: dict[int, np.ndarray], kind: str | None) -> TraceFile:
    """Return a trace whose layers are arrays of their own: (T, K) ids or (E,) counts of each."""
    parts = {layer: _of(path, array, kind) for layer, array in arrays.items()}
    kinds = {one.kind for one in parts.values()}
    if len(kinds) > 1 or any(len(one.counts or one.arrays) > 1 for one in parts.values()):
        raise ConfigError(f"{path}: expected one array of one kind for each layer, got others")
    if kinds == {"ids"}:
        ids = {layer: one.arrays[0] for layer, one in parts.items()}
        return TraceFile(path=path, kind="ids", arrays=ids)
    counts = {layer: one.counts[0] for layer, one in parts.items()}
    if len(sizes := {len(count_E) for count_E in counts.values()}) > 1:
        told = ", ".join(map(str, sorted(sizes)))
        raise ConfigError(f"{path}: expected as many experts in every layer, got {told}")
    return TraceFile(path=path, kind="counts", counts=counts)


def _of(path: Path, array: np.ndarray, kind: str | None) -> TraceFile:
    """Return one array as a trace; its type, shape and the file's name tell its kind."""
    if array.dtype.kind not in "iuf":
        raise ConfigError(f"{path}: expected integers or floats, got {array.dtype}")
    counted = (
        array.dtype.kind == "f" or array.ndim == 1 or bool(_COUNTS_NAME.search(path.stem.lower()))
    )
    if (kind or ("counts" if counted else "ids")) == "counts":
        return _of_counts(path, array)
    if array.dtype.kind == "f" or array.ndim not in (2, 3):
        raise ConfigError(
            f"{path}: expected integer ids of shape (tokens, k) or (tokens, layers, k), got "
            f"{array.dtype} of shape {array.shape}"
        )
    layers = (
        {0: [array]}
        if array.ndim == 2
        else {layer: [array[:, layer]] for layer in range(array.shape[1])}
    )
    return TraceFile(path=path, kind="ids", arrays=layers)


def _of_counts(path: Path, array: np.ndarray) -> TraceFile:
    """Return a trace of counts of shape (E,), (layers, E) or (steps, layers, E), summed over the
    steps.
    """
    if array.ndim == 3:
        array = array.sum(axis=0, dtype=np.float64 if array.dtype.kind == "f" else np.int64)
    if array.ndim not in (1, 2) or not array.size:
        raise ConfigError(
            f"{path}: expected counts of shape (experts,), (layers, experts) or (steps, layers, "
            f"experts), got {array.shape}"
        )
    rows = np.atleast_2d(np.asarray(array))
    if not np.isfinite(rows).all() or (rows < 0).any():
        wrong = rows[~((rows >= 0) & np.isfinite(rows))]
        raise ConfigError(f"{path}: expected finite counts >= 0, got {wrong[0]}")
    if rows.shape[1] > MOST_EXPERTS:
        raise ConfigError(f"{path}: expected at most {MOST_EXPERTS} experts, got {rows.shape[1]}")
    with np.errstate(over="ignore"):
        total = rows.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise ConfigError(f"{path}: expected counts whose sum is finite")
    return TraceFile(path=path, kind="counts", counts=dict(enumerate(rows)))


def _named(frame: Any) -> Any:
    """Return a table with our names of columns that recorders call layer_id and expert_id."""
    return frame.rename(columns={"layer_id": "layer", "expert_id": "expert"})


def _id_columns(path: Path, columns: list[str]) -> list[str]:
    """Return the columns of expert ids in order, or an empty list for a table of counts.

    Raises:
        ConfigError: The table has neither ids nor counts.
    """
    ids = [name for name in columns if re.fullmatch(r"expert_\d+", name)]
    ids.sort(key=lambda name: int(name[7:]))
    if ids and ids != [f"expert_{k}" for k in range(len(ids))]:
        raise ConfigError(
            f"{path}: expected columns expert_0 to expert_{len(ids) - 1}, got {', '.join(ids)}"
        )
    if not ids and not {"expert", "count"} <= set(columns):
        raise ConfigError(
            f"{path}: expected columns expert_0, expert_1, ... or expert and count, got "
            f"{', '.join(columns[:8])}"
        )
    return ids


def _open_table(path: Path) -> TraceFile:
    columns = list(next(_frames(path, 1)).columns)
    if _id_columns(path, columns):
        return TraceFile(path=path, kind="ids", table=True)
    counts: dict[int, np.ndarray] = {}
    for frame in _frames(path, BLOCK):
        layers = (
            _whole(path, frame["layer"])
            if "layer" in frame
            else np.zeros(len(frame), dtype=np.int64)
        )
        experts, values = _whole(path, frame["expert"]), _counts(path, frame["count"])
        for name, ids in (("expert", experts), ("layer", layers)):
            if ids.min(initial=0) < 0 or ids.max(initial=0) >= MOST_EXPERTS:
                raise ConfigError(
                    f"{path}: {name}: expected numbers from 0 to {MOST_EXPERTS - 1}, got "
                    f"{ids.min() if ids.min() < 0 else ids.max()}"
                )
        for layer in np.unique(layers).tolist():
            mine = layers == layer
            size = max(int(experts[mine].max()) + 1, len(counts.get(layer, ())))
            new = np.bincount(experts[mine], weights=values[mine], minlength=size)
            new[: len(counts.get(layer, ()))] += counts.get(layer, 0)
            counts[layer] = new
    most = max((len(c) for c in counts.values()), default=0)
    return TraceFile(
        path=path,
        kind="counts",
        counts={layer: np.pad(c, (0, most - len(c))) for layer, c in sorted(counts.items())},
    )


def _table_ids(path: Path) -> Iterator[Block]:
    first = 1
    for frame in _frames(path, BLOCK):
        ids = np.stack(
            [_whole(path, frame[name], first) for name in _id_columns(path, list(frame.columns))],
            axis=1,
        )
        layers = (
            _whole(path, frame["layer"], first)
            if "layer" in frame
            else np.zeros(len(frame), dtype=np.int64)
        )
        for layer in np.unique(layers).tolist():
            yield layer, ids[layers == layer]
        first += len(frame)


def _counts(path: Path, column: Any) -> np.ndarray:
    """Return a column as counts: ndarray of shape (n,), float64."""
    try:
        values = column.to_numpy(dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.array([np.nan])
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ConfigError(f"{path}: expected finite counts >= 0 in column {column.name}")
    return np.asarray(values)


def _whole(path: Path, column: Any, first_row: int = 1) -> np.ndarray:
    """Return a column as integers: ndarray of shape (n,), int64."""
    values = column.to_numpy()
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.full(len(values), np.nan)
    # beyond 2**53 a float holds no exact integer
    wrong = ~((numbers == np.rint(numbers)) & (abs(numbers) < 2**53))
    if wrong.any():
        raise ConfigError(
            f"{path}: row {first_row + int(wrong.argmax())}: expected an integer in column "
            f"{column.name}, got {shown(values[wrong.argmax()])} (is the file whole?)"
        )
    return numbers.astype(np.int64)


def _frames(path: Path, rows: int) -> Iterator[Any]:
    """Yield a table as pandas DataFrames of at most ``rows`` rows.

    Raises:
        ConfigError: The table cannot be read, or pyarrow is missing.
    """
    import pandas as pd

    try:
        if path.suffix.lower() == ".csv":
            yield from map(_named, pd.read_csv(path, chunksize=rows))
            return
        try:
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(f"{path}: parquet files need pyarrow: pip install pyarrow") from None
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=max(rows, 1)):
                yield _named(batch.to_pandas())
    except ConfigError:
        raise
    except (
        ValueError,
        OSError,
        ArithmeticError,
        RecursionError,
    ) as error:  # errors of pandas and pyarrow are ValueErrors
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: expected a whole table: {text[:120]}") from None
