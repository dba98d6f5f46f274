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
    """Write rows as CSV, the whole file or nothing.

    The file is UTF-8 with the header first, numbers in full precision, and nothing for None.

    Args:
        path: The file; its folder is created if missing.
        rows: Flat mappings. Without ``columns`` the header is the union of their keys in order of
            appearance.
        columns: The header; keys outside it are an error of the caller.

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
        # no half-written file may stay, and there is none if the rename succeeded
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def check_writable(path: Path, *, make_folder: bool = False) -> None:
    """Refuse an output file before minutes of work rather than after them.

    Args:
        path: The file; its content stays.
        make_folder: Whether to create its folder, like `write_csv`.

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
    """Return a NumPy scalar as Python's, which prints in full precision and without its type."""
    return value.item() if isinstance(value, np.generic) else value
