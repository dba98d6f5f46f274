"""Read dumps of SGLang's expert distribution recorder, whose form is checked field by field.

The recorder (sglang/srt/eplb/expert_distribution.py) writes, in mode ``stat``, ``logical_count``
of shape (steps, layers, E). In modes ``per_pass`` and ``per_token`` it writes ``records``, a list
of dicts with ``global_physical_count`` (layers, P) or ``topk_ids_of_layer`` (layers, T, K), and
``last_physical_to_logical_map`` (layers, P), which maps physical ids to logical ones.

Shape legend: T tokens, K choices, E experts, P physical experts (slots).
"""

from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError
from moesim.limits import MOST_EXPERTS
from moesim.routing.torchfile import load_torch_file

_MAP, _IDS, _COUNTS = "last_physical_to_logical_map", "topk_ids_of_layer", "global_physical_count"


def read_dump(path: Path) -> np.ndarray | tuple[str, dict[int, list[np.ndarray]]]:
    """Read a dump.

    Returns:
        Counts of shape (E,), (layers, E) or (steps, layers, E); or ``ids`` and layer -> arrays of
        shape (T, K), or ``counts`` and layer -> one array of shape (E,).

    Raises:
        ConfigError: The file is no such dump; the text names the field.
    """
    found: Any = load_torch_file(path)
    if isinstance(found, dict) and "records" in found:
        return _records(path, found)
    if isinstance(found, dict):
        found = found.get(
            "logical_count", next((v for v in found.values() if isinstance(v, np.ndarray)), None)
        )
    if not isinstance(found, np.ndarray):
        raise ConfigError(
            f"{path}: expected logical_count, records or a tensor of loads, got "
            f"{type(found).__name__}"
        )
    return found


def _records(path: Path, dump: dict[str, Any]) -> tuple[str, dict[int, list[np.ndarray]]]:
    records = dump["records"]
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise ConfigError(f"{path}: records: expected a list of dicts, got another form")
    if not records:
        raise ConfigError(f"{path}: expected records, got none: was the recorder started?")
    logical_LP = _whole(path, _MAP, dump, (None, None), low=0, high=MOST_EXPERTS)
    num_layers, num_slots = logical_LP.shape
    field = _IDS if _IDS in records[0] else _COUNTS
    found: dict[int, list[np.ndarray]] = {}
    if field == _IDS:
        for number, record in enumerate(records):
            where = f"records[{number}].{field}"
            ids_LTK = _whole(path, where, record, (num_layers, None, None), low=-1, high=num_slots)
            for layer, ids_TK in enumerate(ids_LTK):
                there = ids_TK[(ids_TK >= 0).any(axis=1)]  # padded tokens have only ids of -1
                mapped = np.where(there >= 0, logical_LP[layer][there], -1)
                found.setdefault(layer, []).append(mapped)
        return "ids", found
    count_LE = np.zeros((num_layers, int(logical_LP.max()) + 1), dtype=np.int64)
    for number, record in enumerate(records):
        where = f"records[{number}].{field}"
        count_LP = _whole(path, where, record, (num_layers, num_slots), low=0, high=1 << 53)
        for layer, count_P in enumerate(count_LP):
            np.add.at(count_LE[layer], logical_LP[layer], count_P)
    return "counts", {layer: [count_E] for layer, count_E in enumerate(count_LE)}


def _whole(
    path: Path,
    where: str,
    table: dict[str, Any],
    shape: tuple[int | None, ...],
    *,
    low: int,
    high: int,
) -> np.ndarray:
    """Return a field as whole numbers from ``low`` to below ``high``: an int64 ndarray.

    Args:
        path: The file, for errors.
        where: Path of the field, whose last part is its key.
        table: The table it is in.
        shape: Its shape; None for any size above 0, of which the tokens (T) may be 0.
        low: The least value.
        high: The first value that is too large.
    """
    values = table.get(where.rpartition(".")[2])
    sizes = " x ".join("any" if size is None else str(size) for size in shape)
    if not isinstance(values, np.ndarray):
        raise ConfigError(
            f"{path}: {where}: expected a tensor of {sizes}, got {type(values).__name__}"
        )
    fits = values.ndim == len(shape) and all(
        size in (None, there) for size, there in zip(shape, values.shape, strict=True)
    )
    if not fits or (len(shape) == 2 and not values.size):
        raise ConfigError(f"{path}: {where}: expected a tensor of {sizes}, got {values.shape}")
    # NaN is neither below nor above a number
    good = (values >= low) & (values < high) & (values == np.rint(values))
    if not good.all():
        raise ConfigError(
            f"{path}: {where}: expected whole numbers from {low} to {high - 1}, got "
            f"{values[~good].ravel()[0]}"
        )
    return np.asarray(values, dtype=np.int64)
