"""Read arrays of expert ids or counts from ``.npz`` archives and ``.json`` files.

Neither executes anything in the file, and both limit what it may unpack to.

Shape legend: T tokens, K choices, E experts.
"""

import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError, MoesimError, shown
from moesim.files.texts import read_text
from moesim.limits import check_request

_LAYER = re.compile(r"(?:layer_?)?(\d+)")
_KINDS = ("ids", "counts")
#: what NumPy and the zip module raise for a file that is none of theirs
_NO_ARCHIVE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path) -> np.ndarray | dict[int, np.ndarray]:
    """Return the only array of an archive, or layer -> array.

    Raises:
        ConfigError: The file is no archive, unpacks to too much, or names something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        check_request(f"{path}: its arrays", memory_bytes=float(size), advice="fewer tokens")
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files}
    except MoesimError:
        raise
    except _NO_ARCHIVE as error:
        raise ConfigError(f"{path}: expected a whole .npz file: {shown(error)}") from None
    if len(found) == 1:
        return next(iter(found.values()))
    return _layers(path, found)


def read_json(path: Path) -> tuple[str, np.ndarray | dict[int, np.ndarray]]:
    """Return the kind, ``ids`` or ``counts``, and an array, or layer -> array.

    Raises:
        ConfigError: The file is too large, no JSON, or of another form.
    """
    try:
        whole = json.loads(read_text(path, "JSON"))
    except MoesimError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected a whole JSON file: {shown(error)}") from None
    if not isinstance(whole, dict) or len(whole.keys() & set(_KINDS)) != 1:
        got = ", ".join(map(shown, list(whole)[:8])) if isinstance(whole, dict) else shown(whole)
        raise ConfigError(f"{path}: expected a table with either ids or counts, got {got}")
    (kind,) = whole.keys() & set(_KINDS)
    values = whole[kind]
    if isinstance(values, dict):
        return kind, _layers(path, {name: _array(path, one) for name, one in values.items()})
    return kind, _array(path, values)


def _array(path: Path, values: Any) -> np.ndarray:
    """Return nested lists of numbers as an array."""
    try:
        array = np.array(values)
    except (ValueError, OverflowError, TypeError):
        raise ConfigError(f"{path}: expected lists of equal lengths, got others") from None
    if array.dtype.kind not in "iuf" or not array.size:
        raise ConfigError(f"{path}: expected nested lists of numbers, got {shown(values)}")
    return array


def _layers(path: Path, found: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Return arrays by layer, whose names say it: ``layer_3`` or ``3``."""
    layers: dict[int, np.ndarray] = {}
    for name, array in found.items():
        number = _LAYER.fullmatch(name)
        if number is None or len(number[1]) > 6:
            raise ConfigError(f"{path}: expected layers named layer_0, layer_1, ..., got {name!r}")
        if int(number[1]) in layers:
            raise ConfigError(f"{path}: expected each layer once, got layer {int(number[1])} again")
        layers[int(number[1])] = array
    if not layers:
        raise ConfigError(f"{path}: expected a trace, got no layers")
    return dict(sorted(layers.items()))
