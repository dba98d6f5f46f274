"""Files of traces: blocks of per-token expert ids, or counts of each expert by layer.

==========  ======================================================================================================
``.npy``    Integers of shape (T, K), or (T, layers, K) as vLLM's ``routed_experts`` are: expert ids. Numbers of shape
            (E,) or (layers, E), floats or in a file whose name ends in ``counts``, ``load`` or ``loads``: counts.
``.csv``,   Columns ``expert_0`` to ``expert_{K-1}``, one row a token, and ``layer`` if there are several: expert ids.
``.parquet``  Columns ``expert`` and ``count``, and ``layer``: counts.
``.pt``     What SGLang's expert distribution recorder dumps (sglang/srt/eplb/expert_distribution.py): ``logical_count``
            (steps, layers, E) of mode ``stat``; ``records`` of modes ``per_pass`` and ``per_token``, in physical ids
            that ``last_physical_to_logical_map`` makes logical. Or a tensor, or a dict of tensors, of shape (layers,
            E): loads as vLLM's expert load balancer keeps them (vLLM has no dump file of its own; assumed).
==========  ======================================================================================================

Shape legend: T tokens, K choices, E experts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moesim.errors import ConfigError
from moesim.routing.torchfile import load_torch_file

#: tokens read at a time
BLOCK = 1 << 18
_COUNTS_NAME = re.compile(r"(counts?|loads?)$")
Block = tuple[int, np.ndarray]


@dataclass(kw_only=True, eq=False)
class TraceFile:
    """One file, opened.

    Attributes:
        path: Where.
        kind: ``ids`` or ``counts``.
        counts: Layer -> ndarray of shape (E,), int64 or float64: of a file of counts.
        arrays: Layer -> arrays of shape (T, K), mapped: of ids that lie in arrays.
        table: Whether ids come from a CSV or parquet file.
    """

    path: Path
    kind: Literal["ids", "counts"]
    counts: dict[int, np.ndarray] = field(default_factory=dict)
    arrays: dict[int, list[np.ndarray]] = field(default_factory=dict)
    table: bool = False

    def blocks(self) -> Iterator[Block]:
        """Layer, and ids of some of its tokens, of shape (n, K): a layer's tokens in order.

        Raises:
            ConfigError: A row that is cut short, or no integers.
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
        path: File.
        kind: ``ids`` or ``counts``; by default what name and type of the numbers say.

    Raises:
        ConfigError: Not there, truncated, or of another form.
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
    if suffix == ".pt":
        return _open_torch(path)
    if suffix in (".csv", ".parquet"):
        return _open_table(path)
    raise ConfigError(
        f"{path}: expected a trace as .npy, .csv, .parquet or .pt, got {suffix or 'no ending'!r}"
    )


def _open_npy(path: Path, kind: str | None) -> TraceFile:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ConfigError(f"{path}: expected a whole .npy file: {error}") from None
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
    """Counts of shape (E,), (layers, E) or (steps, layers, E), the last added up."""
    if array.ndim == 3:
        array = array.sum(axis=0, dtype=np.float64 if array.dtype.kind == "f" else np.int64)
    if array.ndim not in (1, 2) or not array.size:
        raise ConfigError(
            f"{path}: expected counts of shape (experts,), (layers, experts) or (steps, layers, "
            f"experts), got {array.shape}"
        )
    rows = np.atleast_2d(np.asarray(array))
    if not np.isfinite(rows).all() or (rows < 0).any():
        raise ConfigError(f"{path}: expected counts >= 0, got {rows[~(rows >= 0)].ravel()[:1]}")
    return TraceFile(path=path, kind="counts", counts=dict(enumerate(rows)))


def _open_torch(path: Path) -> TraceFile:
    found: Any = load_torch_file(path)
    if isinstance(found, dict) and "records" in found:
        return _of_records(path, found)
    if isinstance(found, dict):
        found = found.get(
            "logical_count", next((v for v in found.values() if isinstance(v, np.ndarray)), None)
        )
    if not isinstance(found, np.ndarray):
        raise ConfigError(
            f"{path}: expected logical_count, records or a tensor of loads, got "
            f"{type(found).__name__}"
        )
    return _of_counts(path, found)


def _of_records(path: Path, dump: dict[str, Any]) -> TraceFile:
    """A dump of SGLang's modes per_pass and per_token: physical ids made logical."""
    records, logical_LP = dump["records"], np.asarray(dump["last_physical_to_logical_map"])
    if not records:
        raise ConfigError(f"{path}: expected records, got none: was the recorder started?")
    num_experts = int(logical_LP.max()) + 1
    if "topk_ids_of_layer" in records[0]:
        arrays: dict[int, list[np.ndarray]] = {}
        for record in records:
            ids_LTK = np.asarray(record["topk_ids_of_layer"])
            if ids_LTK.max(initial=-1) >= logical_LP.shape[1]:
                raise ConfigError(
                    f"{path}: expected physical experts below {logical_LP.shape[1]}, got "
                    f"{ids_LTK.max()}"
                )
            for layer, ids_TK in enumerate(ids_LTK):
                there = ids_TK[(ids_TK >= 0).any(axis=1)]  # padded tokens are -1 throughout
                mapped = np.where(there >= 0, logical_LP[layer][there], -1)
                arrays.setdefault(layer, []).append(mapped)
        return TraceFile(path=path, kind="ids", arrays=arrays)
    counts = np.zeros((len(logical_LP), num_experts), dtype=np.int64)
    for record in records:
        for layer, count_P in enumerate(np.asarray(record["global_physical_count"])):
            counts[layer] += np.bincount(
                logical_LP[layer], weights=count_P, minlength=num_experts
            ).astype(np.int64)
    return TraceFile(path=path, kind="counts", counts=dict(enumerate(counts)))


def _id_columns(path: Path, columns: list[str]) -> list[str]:
    """Columns of expert ids, in order; none for a table of counts.

    Raises:
        ConfigError: Neither ids nor counts.
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
        experts, values = _whole(path, frame["expert"]), frame["count"].to_numpy(dtype=np.float64)
        if experts.min(initial=0) < 0 or not (values >= 0).all():
            raise ConfigError(f"{path}: expected experts and counts >= 0")
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


def _whole(path: Path, column: Any, first_row: int = 1) -> np.ndarray:
    """A column as integers: ndarray of shape (n,), int64."""
    values = column.to_numpy()
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        numbers = np.full(len(values), np.nan)
    wrong = ~(numbers == np.rint(numbers))
    if wrong.any():
        raise ConfigError(
            f"{path}: row {first_row + int(wrong.argmax())}: expected an integer in column "
            f"{column.name}, got {values[wrong.argmax()]!r} (is the file whole?)"
        )
    return numbers.astype(np.int64)


def _frames(path: Path, rows: int) -> Iterator[Any]:
    """A table as pandas DataFrames of some rows each.

    Raises:
        ConfigError: No such table, or no pyarrow to read it with.
    """
    import pandas as pd

    try:
        if path.suffix.lower() == ".csv":
            yield from pd.read_csv(path, chunksize=rows)
            return
        try:
            import pyarrow.parquet
        except ImportError:
            raise ConfigError(f"{path}: parquet files need pyarrow: pip install pyarrow") from None
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=max(rows, 1)):
                yield batch.to_pandas()
    except ConfigError:
        raise
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors are ValueErrors
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: expected a whole table: {text}") from None
