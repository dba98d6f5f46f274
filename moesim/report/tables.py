"""CSV tables: one writer, so that every file has the same form."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.errors import ConfigError, one_line
from moesim.files.output import check_writable, writable_folder, write_file
from moesim.files.texts import read_text

if TYPE_CHECKING:
    import pandas as pd

#: beginnings of formulas, and of the escape itself
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")

__all__ = [
    "check_writable",
    "escaped",
    "to_frame",
    "unescaped",
    "writable_folder",
    "write_csv",
]


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
    lines: list[str] = []
    # with this end of line a carriage return within a cell is quoted, too
    line = SimpleNamespace(write=lambda text: lines.append(f"{text[:-2]}\n"))
    writer = csv.writer(line, lineterminator="\r\n")
    writer.writerow([escaped(name) for name in header])
    writer.writerows([_plain(row.get(key)) for key in header] for row in table)
    return write_file(Path(path), "".join(lines))


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as Python's, which prints in full precision and without its type."""
    plain = value.item() if isinstance(value, np.generic) else value
    return escaped(plain) if isinstance(plain, str) else plain


def escaped(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula: after an apostrophe.

    Spreadsheets take texts for formulas that begin with one of ``= + - @`` or with white space
    before one (OWASP, CSV injection). Numbers stay as they are; `unescaped` gives the text back.
    """
    if not text.startswith(_FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def unescaped(text: str) -> str:
    """Return the text of a cell that `escaped` made."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text


def to_frame(path: str | Path) -> "pd.DataFrame":
    """Read a CSV file that moesim wrote as a pandas DataFrame, its texts as they were.

    Args:
        path: The file.

    Raises:
        ConfigError: The file cannot be read or is no table.
    """
    import pandas as pd

    text = read_text(Path(path), "CSV")
    try:
        table = pd.read_csv(io.StringIO(text))
    except ValueError as error:  # what pandas raises for broken and for empty tables
        raise ConfigError(f"{path}: not a table: {one_line(str(error))}") from None
    named = table.rename(columns=unescaped)
    for name in named.select_dtypes(exclude=["number", "bool"]):
        named[name] = named[name].map(lambda one: unescaped(one) if isinstance(one, str) else one)
    return named


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
