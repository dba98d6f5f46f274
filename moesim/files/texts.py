"""Read text, TOML, JSON and CSV, whatever is in the file: it is understood, or refused in one line.

All readers take UTF-8 with or without a byte order mark, and refuse files that are too large to
have been written by a person, numbers beyond 64 bits, and nesting without end.
"""

import csv
import io
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import ConfigError, shown

#: more than any table that people keep as text
_MOST_BYTES = 64 << 20
_INT64 = 1 << 63
#: levels of tables in tables; the deepest real file has 8
_DEEPEST = 64


def read_text(path: Path, what: str = "TOML") -> str:
    """Return the text of a file without its byte order mark.

    Args:
        path: The file; a device or FIFO is read up to its end.
        what: The kind of file, for errors.

    Raises:
        ConfigError: The file cannot be read, is too large, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this file: {error.strerror}") from None
    except ValueError as error:  # a zero byte in the path
        raise ConfigError(f"{str(path)!r}: cannot read this file: {error}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: expected at most {_MOST_BYTES >> 20} MiB of text, got more")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: not valid {what}: it is not UTF-8 text") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the tables of TOML text.

    Raises:
        ConfigError: The text is not TOML, or has a number beyond 64 bits.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{where}: not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits is a plain ValueError
        raise ConfigError(f"{where}: not valid TOML: {shown(error)}") from None
    _check_numbers(data, where)
    return data


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ConfigError: The file cannot be read, is not JSON, or has a number beyond 64 bits.
    """
    text = read_text(path, "JSON")
    try:
        data = json.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: expected JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON: {shown(error)}") from None
    _check_numbers(data, str(path))
    return data


def _check_numbers(data: Any, where: str) -> None:
    """Refuse integers that no field of a file can hold, and nesting that later readers cannot."""
    level: list[tuple[str, Any]] = [("", data)]
    for _ in range(_DEEPEST):
        if not level:
            return
        deeper: list[tuple[str, Any]] = []
        for path, node in level:
            children: Any = ()
            if type(node) is dict:
                children = ((f"{path}.{key}".lstrip("."), child) for key, child in node.items())
            elif type(node) is list:
                children = ((f"{path}[{index}]", child) for index, child in enumerate(node))
            for name, child in children:
                if type(child) in (dict, list):
                    deeper.append((name, child))
                elif type(child) is int and not -_INT64 <= child < _INT64:
                    raise ConfigError(
                        f"{where}: {shown(name)}: expected an integer of 64 bits, got "
                        f"{shown(child)}"
                    )
        level = deeper
    raise ConfigError(f"{where}: expected at most {_DEEPEST} levels of nesting, got more")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CsvText:
    """A CSV file.

    Attributes:
        text: Its text.
        header: Names of its columns, without spaces around them.
        rows: (number of its line, column -> text) of each row; what a short row lacks is None.
    """

    text: str
    header: list[str]
    rows: list[tuple[int, dict[str, str | None]]]


def read_csv(path: Path) -> CsvText:
    """Return the header and the rows of a CSV file.

    Raises:
        ConfigError: The file cannot be read, or is not CSV.
    """
    text = read_text(path, "CSV")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        return CsvText(text=text, header=header, rows=list(_numbered(reader)))
    except csv.Error as error:
        raise ConfigError(f"{path}: expected CSV: {error}") from None


def _numbered(reader: "csv.DictReader[str]") -> Iterator[tuple[int, dict[str, str | None]]]:
    for row in reader:
        # cells beyond the header are kept under None
        row.pop(None, None)
        yield reader.line_num, row
