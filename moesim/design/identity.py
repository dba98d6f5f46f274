"""Describe a design field by field in one flat table, made from its dataclasses, for files, keys
and labels.

No code lists fields by hand. A field that is added to a layer, a schedule or a workload becomes
part of every table, key, cache and label. A field of a type that no codec below can write is
refused where the class is defined.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar, get_origin

import numpy as np

from moesim.errors import ConfigError, MoesimError
from moesim.model import DensePart
from moesim.model.gate import Gate
from moesim.model.precision import Precision
from moesim.model.widths import read_width, width_text
from moesim.units import short_number

T = TypeVar("T")
#: key of a field's metadata: its column, where its name means something different in a row of
#: results
COLUMN = "column"
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?", re.ASCII)


class Codec(NamedTuple):
    """The functions that write the value of a field to a table and read it back from a typed value
    or from text.
    """

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


class Leaf(NamedTuple):
    """One field of a design: its column, its codec, its path, and its default (`MISSING` if it has
    none).
    """

    column: str
    codec: Codec
    path: tuple[str, ...]
    default: Any


def _read_int(value: Any) -> int:
    # pandas reads 8 as 8.0 in a CSV column that has empty cells
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError("an integer")


def _read_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError("a number") from None


def _read_bool(value: Any) -> bool:
    if str(value) not in ("True", "False"):
        raise ValueError("True or False")
    return str(value) == "True"


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _read_gate(value: Any) -> Gate:
    return value if isinstance(value, Gate) else Gate.parse(_read_text(value))


def _read_precision(value: Any) -> Precision:
    return value if isinstance(value, Precision) else Precision.named(_read_text(value))


def _read_widths(value: Any) -> int | tuple[int, ...]:
    return (
        read_width(value)
        if isinstance(value, str) and not _WHOLE.fullmatch(value.strip())
        else _read_int(value)
    )


def _write_dense(value: DensePart) -> str:
    return " ".join(
        f"{leaf.column}={leaf.codec.write(getattr(value, leaf.column))}"
        for leaf in leaves(DensePart)
    )


def _read_dense(value: Any) -> DensePart:
    if isinstance(value, DensePart):
        return value
    pairs = dict(pair.partition("=")[::2] for pair in _read_text(value).split())
    known = [leaf.column for leaf in leaves(DensePart)]
    # a table that was written before a field existed means its default
    defaults = {leaf.column: leaf.default for leaf in leaves(DensePart)}
    pairs = {name: "" if value == "None" else value for name, value in pairs.items()}
    whole = {n: v for n, v in defaults.items() if v is not MISSING} | pairs
    if sorted(whole) != sorted(known):
        raise ValueError(" ".join(f"{name}=..." for name in known))
    return read(DensePart, whole)


def _optional(codec: Codec) -> Codec:
    def nothing(value: Any) -> bool:
        return value is None or value == "" or (isinstance(value, float) and value != value)

    return Codec(
        lambda value: None if value is None else codec.write(value),
        lambda value: None if nothing(value) else codec.read(value),
    )


_CODECS: dict[Any, Codec] = {
    int: Codec(int, _read_int),
    float: Codec(float, _read_float),
    bool: Codec(bool, _read_bool),
    str: Codec(str, _read_text),
    Gate: Codec(str, _read_gate),
    Precision: Codec(lambda value: value.name, _read_precision),
    int | tuple[int, ...]: Codec(width_text, _read_widths),
    DensePart: Codec(_write_dense, _read_dense),
}
_CODECS |= {kind | None: _optional(_CODECS[kind]) for kind in (int, float, str, DensePart)}

_LEAVES: dict[type, tuple[Leaf, ...]] = {}


def leaves(kind: type) -> tuple[Leaf, ...]:
    """Return every field of a dataclass in order; the fields of a nested dataclass replace it.

    Raises:
        TypeError: A field has a type that cannot be written; give it a codec.
    """
    if kind not in _LEAVES:
        _LEAVES[kind] = tuple(_leaves(kind, ()))
    return _LEAVES[kind]


def _leaves(kind: Any, path: tuple[str, ...]) -> Iterator[Leaf]:
    for field in fields(kind):
        annotation: Any = str if get_origin(field.type) is Literal else field.type
        here = (*path, field.name)
        if annotation in _CODECS:
            column = field.metadata.get(COLUMN, field.name)
            yield Leaf(column, _CODECS[annotation], here, _default(field))
        elif isinstance(annotation, type) and hasattr(annotation, "__dataclass_fields__"):
            yield from _leaves(annotation, here)
        else:
            raise TypeError(
                f"{kind.__name__}.{field.name}: expected a type that moesim.design.identity can "
                f"write, got {field.type}"
            )


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def table(value: Any) -> dict[str, Any]:
    """Return column -> plain value (text, number, bool or None) for every field of a dataclass."""
    return dict(_cells(value))


# a row of results asks for the table, the key and the label of one design
@lru_cache(maxsize=4096)
def _cells(value: Any) -> dict[str, Any]:
    found = {}
    for leaf in leaves(type(value)):
        part = value
        for name in leaf.path:
            part = getattr(part, name)
        found[leaf.column] = leaf.codec.write(part)
    return found


def read(kind: type[T], row: Mapping[str, Any]) -> T:
    """Return the dataclass in a row of its `table`; other columns are ignored.

    Args:
        kind: The class to read.
        row: A row as column -> value, typed or as text from a file.

    Raises:
        ConfigError: A column is missing or cannot be read. The text names the column, the expected
            value and the value found instead.
    """
    values = {}
    for leaf in leaves(kind):
        if leaf.column not in row:
            raise ConfigError(
                f"{leaf.column}: expected this column, got {', '.join(map(str, row))}"
            )
        try:
            values[leaf.path] = leaf.codec.read(row[leaf.column])
        except MoesimError:  # it already says what is wrong
            raise
        except ValueError as error:
            raise ConfigError(
                f"{leaf.column}: expected {error}, got {row[leaf.column]!r}"
            ) from None
    return _built(kind, values, ())


def _built(kind: Any, values: dict[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    """Build a dataclass from the values at its paths, nested dataclasses first."""
    here = {field.name: (*path, field.name) for field in fields(kind)}
    return kind(
        **{
            field.name: values[here[field.name]]
            if here[field.name] in values
            else _built(field.type, values, here[field.name])
            for field in fields(kind)
        }
    )


@lru_cache(maxsize=1024)
def digest_of(value: Any, length: int = 16) -> str:
    """Return the hash of a dataclass's table; equal dataclasses have equal hashes."""
    return digest(_cells(value), length)


def digest(row: Mapping[str, Any], length: int = 16) -> str:
    """Return the hash of a table, the same in every process and on every machine."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:length]


def unusual(value: Any, words: Mapping[str, str], shown: frozenset[str]) -> list[str]:
    """Return the values that differ from their defaults, in words.

    Args:
        value: An instance of a dataclass.
        words: A word per column, such as ``cf{}``; other columns appear as ``column=value``.
        shown: Columns to skip because the label already contains them.
    """
    told = []
    row = table(value)
    for leaf in leaves(type(value)):
        now = row[leaf.column]
        if leaf.column in shown or (
            leaf.default is not MISSING and now == leaf.codec.write(leaf.default)
        ):
            continue
        # a value that is left to something else has its word alone
        text = short_number(now) if isinstance(now, float) else "" if now is None else str(now)
        told.append(words.get(leaf.column, leaf.column + "={}").format(text))
    return told
