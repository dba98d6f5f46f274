"""Each kernel library, whose kernels run the experts of a layer, is one record: a file of
``hw_profiles/libraries``.

A record says which formats and devices were measured, which experts and exchanges the kernels work
with, how they tile and pad, what they launch, the calibration that prices them, the rows behind it,
and the flags that select them in a serving engine. To add a library, add a file, there or in
``$MOESIM_PROFILES/libraries``; no module of moesim lists libraries.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

from pydantic import Field

from moesim.errors import ConfigError, UnknownNameError
from moesim.files import toml
from moesim.files.texts import read_text
from moesim.files.toml import Source, Strict
from moesim.hardware.exchanges import exchange_named
from moesim.hardware.profile import Profile

#: the choice of the fastest library; ``auto:ENGINE`` keeps to those that one engine launches
AUTO = "auto"
#: serving engines that records name, in the order in which they are tried
ENGINES = ("sglang", "vllm", "trtllm")
Kind = Literal["gated", "ungated"]


class _Format(Strict):
    rows: str = Field(min_length=1)
    generations: list[int]
    #: flags of engines that select the library otherwise for this format
    launch: dict[str, str] = {}


class _Launch(Strict):
    flags: str
    exchanges: list[str]


class LibraryFile(Strict):
    """A record as written in ``hw_profiles/libraries/NAME.toml``; see `KernelLibrary`."""

    title: str = Field(min_length=1)
    about: str = Field(min_length=1)
    calibration: str = Field(min_length=1)
    rows: str = Field(min_length=1)
    experts: list[Kind] = Field(min_length=1)
    uneven: bool = False
    everywhere: bool = False
    exchanges: list[str]
    tiles: str = Field(min_length=1)
    padding: str = Field(min_length=1)
    launches: list[str] = Field(min_length=1)
    notes: list[str] = []
    formats: dict[str, _Format]
    launch: dict[Literal["sglang", "vllm", "trtllm"], _Launch]
    sources: list[Source] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelLibrary:
    """Kernels that run the experts of a layer.

    Attributes:
        name: The name that designs, spaces and tables use, which is that of its file.
        title: What it is.
        about: One line on what it does.
        calibration: Name of the calibration file behind its prices.
        rows: The measured rows behind that.
        experts: Kinds of experts it computes: ``gated`` (SwiGLU), ``ungated``.
        uneven: Whether it computes experts of different widths.
        everywhere: Whether it is compiled for any GPU and format; outside `formats` it is priced
            without measured rows.
        exchanges: Names of the exchanges whose tokens it takes.
        tiles: How it chooses tiles, in words.
        padding: What it pads, in words.
        launches: The kernels of an expert phase, in words.
        notes: What a user should know.
        formats: Recipe of formats -> name of the format in the measured rows.
        generations: Recipe of formats -> major compute capabilities that the rows serve.
        launch: Serving engine -> flags that select the library there.
        launch_of: (serving engine, recipe) -> flags of formats that are selected otherwise there.
        follows: Serving engine -> exchanges that the library follows there.
        sources: Titles of the sources.
        digest: First 12 hex digits of the file's SHA-256.
    """

    name: str
    title: str
    about: str
    calibration: str
    rows: str
    experts: tuple[str, ...]
    uneven: bool
    everywhere: bool
    exchanges: tuple[str, ...]
    tiles: str
    padding: str
    launches: tuple[str, ...]
    notes: tuple[str, ...]
    formats: dict[str, str]
    generations: dict[str, tuple[int, ...]]
    launch: dict[str, str]
    launch_of: dict[tuple[str, str], str]
    follows: dict[str, tuple[str, ...]]
    sources: tuple[str, ...]
    digest: str

    def engines(self, exchange: str | None) -> list[str]:
        """Return the serving engines that launch the library after an exchange, or on one device
        (None).
        """
        return [e for e in self.launch if exchange is None or exchange in self.follows[e]]

    def flags(self, engine: str, recipe: str) -> str:
        """Return the flags that select the library in a serving engine that launches it, for a
        recipe of formats.
        """
        return self.launch_of.get((engine, recipe), self.launch[engine])

    def rows_of_record(self) -> list[dict[str, str]]:
        """Return the record as rows of ``what`` and what it ``says``, for people to read."""
        says = {
            "about": self.about,
            "experts": " and ".join(self.experts) + (", of any widths" if self.uneven else ""),
            "formats": "; ".join(
                f"{recipe} on {' and '.join(f'{major}.x' for major in self.generations[recipe])}"
                for recipe in self.formats
            ),
            "exchanges": ", ".join(self.exchanges),
            "tiles": self.tiles,
            "padding": self.padding,
            "launches": ", ".join(self.launches),
            "calibration": self.calibration,
            "rows": self.rows,
            **{f"launch, {engine}": flags for engine, flags in self.launch.items()},
            **({"notes": " ".join(self.notes)} if self.notes else {}),
            "sources": "; ".join(self.sources),
        }
        return [{"what": what, "says": text} for what, text in says.items()]

    def measured(self, profile: Profile, recipe: str) -> bool:
        """Return whether rows of this format and of the device's generation were measured."""
        return int(profile.compute_capability or 0) in self.generations.get(recipe, ())

    def refuses(
        self, profile: Profile, recipe: str, *, gated: bool = True, uneven: bool = False
    ) -> str | None:
        """Say in words why the library does not run experts on a device; None if it does.

        Args:
            profile: The device.
            recipe: Name of the recipe of formats.
            gated: Whether experts have a gate projection.
            uneven: Whether experts differ in width.
        """
        kind = "gated" if gated else "ungated"
        if profile.execution != "waves":
            return f"runs on GPUs, and {profile.name} is none"
        if kind not in self.experts:
            return f"computes {' and '.join(self.experts)} experts, not {kind} ones"
        if uneven and not self.uneven:
            return "computes experts of one width, and these differ"
        if self.everywhere or self.measured(profile, recipe):
            return None
        if recipe not in self.formats:
            return f"has the formats {', '.join(self.formats)}, not {recipe}"
        served = " and ".join(f"{major}.x" for major in self.generations[recipe])
        return (
            f"was measured in {recipe} on compute capability {served} only, which {profile.name} "
            "has not"
        )


@lru_cache(maxsize=64)
def _load(path: str, modified_ns: int) -> KernelLibrary:
    where = toml.Path(path)
    text = read_text(where)
    file = toml.parse(text, LibraryFile, where.name)
    follows: dict[str, tuple[str, ...]] = {
        engine: tuple(one.exchanges) for engine, one in file.launch.items()
    }
    exchanges = dict.fromkeys([*file.exchanges, *chain(*follows.values())])
    for exchange in exchanges:
        exchange_named(exchange)
    return KernelLibrary(
        name=where.stem,
        title=file.title,
        about=file.about,
        calibration=file.calibration,
        rows=file.rows,
        experts=tuple(file.experts),
        uneven=file.uneven,
        everywhere=file.everywhere,
        exchanges=tuple(exchanges),
        tiles=file.tiles,
        padding=file.padding,
        launches=tuple(file.launches),
        notes=tuple(file.notes),
        formats={recipe: one.rows for recipe, one in file.formats.items()},
        generations={recipe: tuple(one.generations) for recipe, one in file.formats.items()},
        launch={engine: one.flags for engine, one in file.launch.items()},
        launch_of={
            (engine, recipe): flags
            for recipe, one in file.formats.items()
            for engine, flags in one.launch.items()
        },
        follows=follows,
        sources=tuple(source.title for source in file.sources),
        digest=hashlib.sha256(text.encode()).hexdigest()[:12],
    )


def kernel_library(name: str) -> KernelLibrary:
    """Return the library with a given name.

    Raises:
        UnknownNameError: No library has that name; the text lists the near matches.
        ConfigError: Its file is malformed.
    """
    return _at(toml.find("libraries", name))


def _at(path: toml.Path) -> KernelLibrary:
    return _load(str(path), toml.modified_ns(path))


def known_library(name: str) -> KernelLibrary | None:
    """Return the library with a given name; None if there is none, since a device may also have
    kernels of its own calibration.
    """
    path = toml.found("libraries").get(name)
    return None if path is None else _at(path)


def kernel_libraries() -> list[KernelLibrary]:
    """Return every library, by name."""
    # one look at the folders for all of them: this is asked for every design
    return [_at(path) for path in toml.found("libraries").values()]


def check_choice(kernels: str) -> str:
    """Return a choice of kernels that can be read: ``auto``, ``auto:ENGINE`` or a library.

    Raises:
        UnknownNameError: There is no such engine or library; the text lists the near matches.
    """
    auto, _, engine = kernels.partition(":")
    if auto != AUTO:
        return kernel_library(kernels).name
    if engine and engine not in ENGINES:
        raise UnknownNameError("serving engine", engine, ENGINES)
    if kernels.endswith(":"):
        raise ConfigError(f"kernels: expected auto, auto:ENGINE or a library, got {kernels!r}")
    return kernels
