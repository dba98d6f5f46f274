"""CSV tables: one writer, so that every file has the same form."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moesim.errors import ConfigError


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Path:
    """Write rows as CSV: UTF-8, header first, full precision, empty for None, whole file or nothing.

    Args:
        path: File; its folder is created.
        rows: Flat mappings. Without ``columns`` the header is the union of their keys in order of appearance.
        columns: Header; keys outside it are an error of the caller.

    Raises:
        ConfigError: The file cannot be written.
    """
    import pandas as pd

    path = Path(path)
    frame = pd.DataFrame.from_records(list(rows), columns=list(columns) if columns else None)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(partial, index=False)
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write this file: {error.strerror}") from None
    return path
