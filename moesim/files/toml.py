"""Find and validate the TOML files that people write, and say what is wrong with one.

A name is looked up as a path, then in ``$MOESIM_PROFILES``, then in the user's data folder, then
among the shipped files. Files are validated strictly (unknown keys are refused); an error names the
file, the key path, the rule and the value found instead: ``h100.toml: hbm.bandwidth_gb_per_s.value:
expected a number > 0, got '3.35TB'``.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moesim.errors import ConfigError, UnknownNameError, require, shown
from moesim.files.descriptions import MOST_LINES, describe_all
from moesim.files.texts import parse_toml, read_text

_SHIPPED = Path(str(files("moesim_hw_profiles")))
Kind = Literal["datasheet", "measured", "derived", "assumed", "calibrated"]


class Strict(BaseModel):
    """Base class of every file schema. It allows no unknown keys, no silent conversions and no
    changes after loading.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


#: source of a number that a file states without one
STATED = "this file"


class Quantity(Strict):
    """A number together with its source: ``{value = 3350.0, kind = "datasheet", source = "h100"}``.
    A plain number stands for one that is assumed.

    A measured number also has, in the unit of the value, ``low`` and ``high`` (the P10 and P90 of
    its ``repeats``), the ``min`` of the repeats and their ``median``.
    """

    value: float = Field(gt=0)
    kind: Kind
    source: str = Field(min_length=1)
    low: float | None = Field(default=None, gt=0)
    high: float | None = Field(default=None, gt=0)
    min: float | None = Field(default=None, gt=0)
    median: float | None = Field(default=None, gt=0)
    repeats: int | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        if isinstance(given, int | float) and not isinstance(given, bool):
            return {"value": given, "kind": "assumed", "source": STATED}
        if not isinstance(given, dict | Quantity):
            rule = "a number > 0, or a table of value, kind and source"
            raise ValueError(f"@@{rule}@{shown(given)}")
        return given


class Source(Strict):
    """A source that numbers refer to by its key."""

    title: str = Field(min_length=1)
    locator: str = ""


class Sourced(Strict):
    """A file in which every quantity must name a source that the file lists."""

    sources: dict[str, Source] = {}

    @model_validator(mode="after")
    def _sources_exist(self) -> "Sourced":
        known = ", ".join(self.sources) or "(none)"
        wrong = [
            f"@{path}.source@one of [sources]: {known}@{quantity.source!r}"
            for path, quantity in quantities(self)
            if quantity.source not in self.sources and quantity.source != STATED
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


def quantities(model: Any, prefix: str = "") -> Iterator[tuple[str, Quantity]]:
    """Yield every `Quantity` of a validated file with its key path."""
    if isinstance(model, Quantity):
        yield prefix, model
    elif isinstance(model, BaseModel):
        for name in type(model).model_fields:
            yield from quantities(getattr(model, name), f"{prefix}.{name}" if prefix else name)
    elif isinstance(model, dict):
        for name, value in model.items():
            yield from quantities(value, f"{prefix}.{name}")
    elif isinstance(model, list | tuple):
        for index, value in enumerate(model):
            yield from quantities(value, f"{prefix}[{index}]")


def raw_values(path: Path) -> dict[str, float]:
    """Return key path -> value for every number of a file, in the units of the file."""
    found: dict[str, float] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            if {"value", "kind", "source"} <= set(node):
                found[prefix] = node["value"]
                return
            for name, child in node.items():
                walk(child, f"{prefix}.{name}" if prefix else name)
        elif isinstance(node, list):
            for index, child in enumerate(node):
                walk(child, f"{prefix}[{index}]")
        elif isinstance(node, int | float) and not isinstance(node, bool):
            found[prefix] = node

    walk(parse_toml(read_text(path), path.name), "")
    return found


M = TypeVar("M", bound=BaseModel)


def parse(text: str, schema: type[M], where: str) -> M:
    """Validate TOML text against a schema.

    Raises:
        ConfigError: The text is not TOML, or does not match the schema.
    """
    return validate(parse_toml(text, where), schema, where)


def validate(data: object, schema: type[M], where: str) -> M:
    """Validate plain tables against a schema.

    Raises:
        ConfigError: The data does not match the schema. Its text is the first error; further ones
            are its notes, a line each, which the command line and tracebacks print.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first, *others = describe_all(error, where)
    refusal = ConfigError(first)
    for line in others[: MOST_LINES - 1]:
        refusal.add_note(line)
    if (left := len(others) - (MOST_LINES - 1)) > 0:
        refusal.add_note(f"{where}: and {left} more")
    raise refusal


def shipped(folder: str, name: str) -> Path:
    """Return the path of a file in the data package that users do not replace."""
    return _SHIPPED / folder / name


def user_folder() -> Path:
    """Return the user's data folder: ``$MOESIM_HOME`` if it is set, otherwise the usual folder of
    the platform.
    """
    if home := os.environ.get("MOESIM_HOME"):
        return Path(home)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "moesim"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "moesim"


@lru_cache(maxsize=64)
def _folders(kind: str, settings: tuple[str, ...]) -> list[str]:
    bases = [Path(p) for p in settings[0].split(os.pathsep) if p]
    return [str(base / kind) for base in (*bases, user_folder(), _SHIPPED)]


def _index(kind: str) -> dict[str, Path]:
    """Return lower-case name or alias -> file. The first folder of the search path wins; within a
    folder, a name wins over an alias.
    """
    return _merged(_there(kind))


#: what was seen of folders and files, by kind or path, within `same_files`
_SEEN: ContextVar[dict[Any, Any] | None] = ContextVar("seen", default=None)


@contextmanager
def same_files() -> Iterator[None]:
    """Look at each folder and file only once, however often it is asked for inside.

    Whoever prices a design so sees one state of all files, and asks the system once.
    """
    if _SEEN.get() is not None:
        yield
        return
    token = _SEEN.set({})
    try:
        yield
    finally:
        _SEEN.reset(token)


def modified_ns(path: Path) -> int:
    """Return when a file was last modified, as part of a cache's key."""
    seen = _SEEN.get()
    if seen is None:
        return path.stat().st_mtime_ns
    if path not in seen:
        seen[path] = path.stat().st_mtime_ns
    return int(seen[path])


def _there(kind: str) -> tuple[tuple[str, int], ...]:
    """Return the folders of the search path that exist, with their modification times."""
    seen = _SEEN.get()
    if seen is None:
        return _looked(kind)
    if kind not in seen:
        seen[kind] = _looked(kind)
    found: tuple[tuple[str, int], ...] = seen[kind]
    return found


def _looked(kind: str) -> tuple[tuple[str, int], ...]:
    settings = tuple(
        os.environ.get(name, "")
        for name in ("MOESIM_PROFILES", "MOESIM_HOME", "XDG_DATA_HOME", "HOME")
    )
    there = []
    for folder in _folders(kind, settings):
        try:
            there.append((folder, os.stat(folder).st_mtime_ns))
        except OSError:  # most users have no such folder
            continue
    return tuple(there)


@lru_cache(maxsize=64)
def _merged(folders: tuple[tuple[str, int], ...]) -> dict[str, Path]:
    index: dict[str, Path] = {}
    for folder, modified_ns in folders:
        index = _names_in(folder, modified_ns) | index
    return index


@lru_cache(maxsize=64)
def _names_in(folder: str, modified_ns: int) -> dict[str, Path]:
    """Return the names and aliases of the files in one folder; the modification time is part of the
    cache key.
    """
    by_name: dict[str, Path] = {}
    by_alias: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*.toml")):
        by_name[path.stem.lower()] = path
        try:
            text = read_text(path)
            # most files have no alias, and a whole file takes long to parse
            if "aliases" not in text:
                continue
            aliases = parse_toml(text, path.name).get("aliases", [])
        except ConfigError:
            # the file can still be found by its name, and loading it then reports the reason
            continue
        for alias in aliases if isinstance(aliases, list) else []:
            by_alias[str(alias).lower()] = path
    return by_alias | by_name


def found(kind: str) -> dict[str, Path]:
    """Return name (without the suffix) -> path of all files of one kind, by name."""
    return _by_stem(_there(kind))


@lru_cache(maxsize=64)
def _by_stem(folders: tuple[tuple[str, int], ...]) -> dict[str, Path]:
    paths = sorted(_merged(folders).values(), key=lambda path: path.stem)
    return {path.stem: path for path in paths}


def names(kind: str) -> list[str]:
    """Return the names (without the suffix) of all files of one kind that can be loaded by name."""
    return list(found(kind))


def index_names(kind: str) -> list[str]:
    """Return every name and alias in lower case."""
    return sorted(_index(kind))


#: folder -> what its files are called in errors
_WHAT = {
    "devices": "profile",
    "clusters": "cluster",
    "libraries": "kernel library",
    "engines": "serving engine",
    "frameworks": "training framework",
    "failures": "fleet of failures",
}
#: folders of things that are named, and of numbers about them
_Things = Literal["devices", "clusters", "engines", "frameworks", "libraries"]
_Numbers = Literal["calibration", "economics", "failures"]


def is_path(name: str) -> bool:
    """Return whether a name is the path of a file."""
    return name.endswith(".toml") or os.sep in name


def find(kind: _Things | _Numbers, name: str) -> Path:
    """Return the file that a name or a path refers to.

    Raises:
        UnknownNameError: The name is unknown; the text lists the near matches.
        ConfigError: The path does not exist.
    """
    if is_path(name):
        path = Path(name)
        # the file's name becomes a name in tables, comments of scripts and keys
        require(path.stem.isprintable(), _WHAT.get(kind, kind), "a name that prints", path.stem)
        if not os.path.isfile(path):
            raise ConfigError(f"{name}: no such file")
        return path
    index = _index(kind)
    try:
        return index[name.lower()]
    except KeyError:
        raise UnknownNameError(_WHAT.get(kind, kind), name, index) from None
