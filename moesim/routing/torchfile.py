"""Read files of ``torch.save`` without torch: tensors become memory-mapped arrays, and no code in
the file is executed.

The format (PyTorch 1.6 and later) is an uncompressed zip archive of ``*/data.pkl``, a pickle that
refers to storages by key, and ``*/data/KEY``, the bytes of each storage. The pickle may contain
only plain containers, numbers, text and tensors.
"""

import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError, shown

_DTYPES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_LOCAL_HEADER = 30
#: the pickle of a dump of 10,000 steps takes a few MiB
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Kind:
    """A storage class, which stands for a number type."""

    dtype: str


class _Reader(pickle.Unpickler):
    """An unpickler for the containers and tensors of one archive."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, pickled: str) -> None:
        super().__init__(archive.open(pickled))
        self.archive, self.path, self.root = archive, path, pickled.removesuffix("data.pkl")

    def find_class(self, module: str, name: str) -> Any:
        """Return the object for a name in the pickle; only a few names are allowed."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _DTYPES:
            return _Kind(_DTYPES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise ConfigError(
            f"{self.path}: expected tensors, numbers, text, lists and dicts only, got "
            f"{module}.{name}"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return a storage as a one-dimensional memory-mapped array."""
        _, kind, key, _, length = pid
        info = self.archive.getinfo(f"{self.root}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ConfigError(
                f"{self.path}: expected an uncompressed archive, got compression "
                f"{info.compress_type}"
            )
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
        start = info.header_offset + _LOCAL_HEADER
        start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if not length:
            return np.zeros(0, dtype=kind.dtype)
        return np.memmap(self.path, dtype=kind.dtype, mode="r", offset=start, shape=(length,))


def _tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    # an expanded tensor, of a step of 0, may claim more elements than memory holds
    if min((*size, 0)) < 0 or prod(size) > len(storage):
        raise ValueError(f"a tensor of {size} in a storage of {len(storage)}")
    last = (
        offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if all(size)
        else offset
    )
    if not 0 <= offset <= last < max(len(storage), 1) or min((*stride, 0)) < 0:
        raise ValueError(f"a tensor of {size} in a storage of {len(storage)}")
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, [s * storage.itemsize for s in stride], writeable=False
    )


def load_torch_file(path: Path) -> Any:
    """Return the content of a ``torch.save`` file, with tensors as ndarrays.

    Raises:
        ConfigError: The file is not a ``torch.save`` file, is truncated, or holds anything other
            than containers, numbers and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(
                (name for name in archive.namelist() if name.endswith("/data.pkl")), None
            )
            if pickled is None:
                raise ConfigError(
                    f"{path}: expected a file of torch.save, got a zip archive without data.pkl"
                )
            if archive.getinfo(pickled).file_size > _MOST_BYTES:
                raise ConfigError(
                    f"{path}: expected a pickle of at most {_MOST_BYTES >> 20} MiB beside the "
                    "tensors"
                )
            return _Reader(archive, path, pickled).load()
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        ArithmeticError,
        MemoryError,
        RecursionError,
        RuntimeError,
        struct.error,
        zlib.error,
    ) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: expected a whole file of torch.save: {shown(error)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this file: {error.strerror or error}") from None
