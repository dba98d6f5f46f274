"""CSV tables: one writer, so that every file has the same form."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.files.output import check_writable, writable_folder, write_file

__all__ = ["check_writable", "writable_folder", "write_csv"]


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
    table = list(rows)
    header = list(columns) if columns else list(dict.fromkeys(key for row in table for key in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_plain(row.get(key)) for key in header] for row in table)
    return write_file(Path(path), text.getvalue())


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as Python's, which prints in full precision and without its type."""
    return value.item() if isinstance(value, np.generic) else value
