"""Read a table of measured rows that a person gives, and say in one line what is wrong with it."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moesim.errors import ConfigError, MoesimError, shown
from moesim.files.texts import read_text
from moesim.limits import check_request

if TYPE_CHECKING:
    import pandas as pd

#: columns that an error lists
_SHOWN_COLUMNS = 20
#: bytes of a cell while a parquet file becomes a table: a pointer, and what pyarrow holds
_CELL_BYTES = 16.0


def read_table(path: Path) -> "pd.DataFrame":
    """Return the table in a CSV or parquet file.

    Returns:
        The table as a pandas DataFrame, with index 0 to N - 1 and names of columns as text.

    Raises:
        ConfigError: The file cannot be read, or has no rows.
        CapacityError: A parquet file unpacks to more than memory holds.
    """
    found = _csv(path) if path.suffix.lower() == ".csv" else _parquet(path)
    if found.empty:
        raise ConfigError(f"{path.name}: expected at least one row, got none")
    return found.reset_index(drop=True).set_axis(list(map(str, found.columns)), axis=1)


def _csv(path: Path) -> "pd.DataFrame":
    import pandas as pd

    text = read_text(path, "CSV")
    try:
        # without low_memory a column has one type, whatever its length
        return pd.read_csv(io.StringIO(text), low_memory=False)
    except (ValueError, OverflowError) as error:  # what pandas raises for broken and empty tables
        raise _unreadable(path, error) from None


def _parquet(path: Path) -> "pd.DataFrame":
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(f"{path}: parquet files need pyarrow: pip install pyarrow") from None
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            # a column of one value takes a few bytes in the file, and its full size in memory
            cells = float(file.metadata.num_rows) * file.metadata.num_columns
            check_request(f"{path.name}", memory_bytes=_CELL_BYTES * cells, advice="fewer rows")
            return file.read().to_pandas()
    except MoesimError:
        raise
    except (OSError, pa.ArrowException, ArithmeticError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return ConfigError(f"{path}: cannot read this file: {shown(ValueError(reason))}")


def need_columns(path: Path, table: "pd.DataFrame", columns: Iterable[str], of: str = "") -> None:
    """Refuse a table that lacks a column.

    Args:
        path: The table's file, for the message.
        table: The table.
        columns: Names of the columns.
        of: What needs them, such as " for family nccl".

    Raises:
        ConfigError: A column is missing; the message lists those that are there.
    """
    for column in columns:
        if column not in table:
            there = [shown(name)[1:-1] for name in table.columns]
            more = f" and {len(there) - _SHOWN_COLUMNS} more" if len(there) > _SHOWN_COLUMNS else ""
            raise ConfigError(
                f"{path.name}: {column}: expected this column{of}, got "
                f"{', '.join(there[:_SHOWN_COLUMNS])}{more}"
            )


def refuse(
    path: Path, table: "pd.DataFrame", column: str, wrong: "np.ndarray | pd.Series", rule: str
) -> None:
    """Refuse a table of which a row breaks a rule.

    Args:
        path: The table's file, for the message.
        table: The table of N rows.
        column: The column that the rule is about.
        wrong: Whether each row breaks it, bool of shape (N,).
        rule: What is expected instead.

    Raises:
        ConfigError: A row breaks the rule; the message names the first.
    """
    wrong_N = np.asarray(wrong, dtype=bool)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        got = table[column].iloc[row]
        got = got.item() if isinstance(got, np.generic) else got
        raise ConfigError(f"{path.name}: {column}, row {row}: expected {rule}, got {shown(got)}")


def as_numbers(column: "pd.Series") -> "pd.Series":
    """Return a column as float64, NaN where a cell holds no number."""
    import pandas as pd

    # an integer beyond 64 bits leaves pandas with objects, which have no arithmetic
    return pd.to_numeric(column, errors="coerce").astype(np.float64)


def first_of(column: "pd.Series", value: object) -> int:
    """Return the first row that holds a value, which may be NaN."""
    import pandas as pd

    return int((column.isna() if pd.isna(value) else column == value).to_numpy().argmax())
