"""CSV tables: one writer, so that every file has the same form."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError


def write_csv(
    path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> Path:
    """Write rows as CSV: UTF-8, header first, full precision, empty for None, whole file or
    nothing.

    Args:
        path: File; its folder is created.
        rows: Flat mappings. Without ``columns`` the header is the union of their keys in order of
            appearance.
        columns: Header; keys outside it are an error of the caller.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = Path(path)
    table = list(rows)
    header = list(columns) if columns else list(dict.fromkeys(key for row in table for key in row))
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([_plain(row.get(key)) for key in header] for row in table)
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write this file: {error.strerror}") from None
    finally:
        # nothing half-written stays; where nothing was written there is nothing to remove
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def check_writable(path: Path, *, make_folder: bool = False) -> None:
    """Refuse an output file before minutes of work rather than after them.

    Args:
        path: The file; what it holds stays.
        make_folder: Make its folder, as `write_csv` does.

    Raises:
        ConfigError: The file cannot be written.
    """
    new = not path.exists()
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot write this file: {error.strerror}") from None


def writable_folder(folder: Path) -> Path:
    """Create an output folder and make sure that files can be written into it.

    Args:
        folder: The folder; its parents are created, too.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot write to this output folder: {error.strerror}"
        ) from None
    return folder


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's, which write themselves in full precision and without their
    type's name.
    """
    return value.item() if isinstance(value, np.generic) else value
