"""Say whose kernels a cluster's GPUs run, which libraries could, and what prices them."""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from moesim.costs.calibration import BESIDE, load_calibration
from moesim.design.candidate import Candidate
from moesim.design.launch import launching_engines
from moesim.errors import ConfigError
from moesim.hardware import Cluster, Profile
from moesim.hardware.exchanges import Exchange
from moesim.hardware.libraries import (
    AUTO,
    KernelLibrary,
    kernel_libraries,
    kernel_library,
)

#: library of this project's Triton kernels
OWN_KERNELS = "moesim-triton"
#: library that prices what no other one runs
_EVERYWHERE = "sglang-triton"
#: joins the names of the libraries of a cluster with several kinds of device
AND = "+"


@lru_cache(maxsize=256)
def running(cluster: Cluster, library: str = OWN_KERNELS) -> Cluster:
    """Return the cluster with the kernels of a library on its GPUs.

    Args:
        cluster: The cluster; devices that are no GPUs keep their prices.
        library: Name of a library, or names for each kind of device joined by ``+``.

    Raises:
        UnknownNameError: There is no library of this name.
    """
    groups = tuple(
        (priced_by(profile, name), count)
        for (profile, count), name in zip(cluster.groups, names_of(library, cluster), strict=True)
    )
    same = all(new is old for (new, _), (old, _) in zip(groups, cluster.groups, strict=True))
    return cluster if same else replace(cluster, groups=groups)


def names_of(library: str, cluster: Cluster) -> list[str]:
    """Return the library of each kind of device, see `running`."""
    names = library.split(AND)
    return names if len(names) > 1 else names * len(cluster.groups)


@lru_cache(maxsize=256)
def priced_by(profile: Profile, name: str) -> Profile:
    """Return a device with the calibration of a library, see `running`."""
    if profile.execution != "waves" or name == own_name(profile):
        return profile
    calibration = kernel_library(name).calibration
    load_calibration(calibration, profile)
    return replace(profile, calibration=calibration)


def own_name(profile: Profile) -> str:
    """Return the library whose calibration a device's profile names; that of a calibration without
    a library is its own name, and a device that is no GPU has none (``""``).
    """
    if profile.execution != "waves":
        return ""
    for library in kernel_libraries():
        if library.calibration == profile.calibration:
            return library.name
    return profile.calibration


def has_own_kernels(profile: Profile) -> bool:
    """Return whether a profile's calibration is fitted to this very device, so that no library's
    takes its place.
    """
    return profile.execution != "waves" or profile.calibration != BESIDE


def able(profile: Profile, candidate: Candidate, exchange: Exchange | None) -> list[KernelLibrary]:
    """Return the libraries among which a design's choice takes the fastest, on one kind of device.

    ``auto`` has those that a serving engine launches with the design and whose rows were measured
    in the layer's formats on the device's generation; where there is none, those that are compiled
    for any GPU. If no engine launches the design's exchange and layout, the kernels are judged
    alone; where no engine launches any, they are SGLang's Triton kernels.

    Args:
        profile: The GPU.
        candidate: The design: its layer's formats and kind of experts, its layout, its choice.
        exchange: Its exchange; None on one device, which has none.

    Raises:
        ConfigError: The library named does not run the layer on the device or after the exchange,
            or the engine named has none; the text says why and names those that do.
    """
    auto, _, engine = candidate.kernels.partition(":")
    fit = _fit(profile, candidate, exchange)
    if auto != AUTO:
        library = kernel_library(candidate.kernels)
        if reason := _refusal(library, profile, candidate, exchange):
            others = ", ".join(one.name for one in fit) or "none"
            raise ConfigError(f"kernels: {library.name} {reason}; others that do: {others}")
        return [library]
    engines = launching_engines(candidate, exchange)
    found = _launched(fit, candidate, engines, exchange)
    if not found and not engines:
        # no engine launches the exchange and layout: one that launches the kernels is enough
        found = [one for one in fit if one.launch and (not engine or engine in one.launch)]
    recipe = candidate.layer.precision.name
    measured = [library for library in found if library.measured(profile, recipe)]
    if measured or found:
        return measured or found
    if engine:
        raise ConfigError(
            f"kernels: expected a design that {engine} has kernels for, got {recipe}"
            + (f" after {exchange.name}" if exchange is not None else "")
            + f" on {profile.name}"
        )
    return [kernel_library(_EVERYWHERE)]


def launched(
    profile: Profile, candidate: Candidate, exchange: Exchange | None
) -> list[KernelLibrary]:
    """Return the libraries that a serving engine launches with a design on one kind of device.

    Args:
        profile: The GPU.
        candidate: The design; ``auto:ENGINE`` and the name of a library leave out the others.
        exchange: Its exchange; None on one device, which has none.
    """
    fit = _fit(profile, candidate, exchange)
    return _launched(fit, candidate, launching_engines(candidate, exchange), exchange)


def _launched(
    fit: Iterable[KernelLibrary],
    candidate: Candidate,
    engines: Iterable[str],
    exchange: Exchange | None,
) -> list[KernelLibrary]:
    """Return those of the libraries that fit which one of the engines launches."""
    auto, _, engine = candidate.kernels.partition(":")
    wanted = {engine} & set(engines) if engine else set(engines)
    after = None if exchange is None else exchange.name
    return [
        library
        for library in fit
        if wanted & set(library.engines(after)) and (auto == AUTO or library.name == auto)
    ]


def _fit(
    profile: Profile, candidate: Candidate, exchange: Exchange | None
) -> tuple[KernelLibrary, ...]:
    """Return the libraries that run a design's experts on a device."""
    layer = candidate.layer
    return _fitting(
        tuple(kernel_libraries()),
        profile,
        layer.precision.name,
        layer.gated,
        layer.widths_differ,
        exchange,
    )


# a search asks this of every design, and designs share the few answers
@lru_cache(maxsize=1024)
def _fitting(
    libraries: tuple[KernelLibrary, ...],
    profile: Profile,
    recipe: str,
    gated: bool,
    uneven: bool,
    exchange: Exchange | None,
) -> tuple[KernelLibrary, ...]:
    def runs(library: KernelLibrary) -> bool:
        takes = exchange is None or exchange.name in library.exchanges
        return takes and library.refuses(profile, recipe, gated=gated, uneven=uneven) is None

    return tuple(filter(runs, libraries))


def _refusal(
    library: KernelLibrary, profile: Profile, candidate: Candidate, exchange: Exchange | None
) -> str | None:
    """Say in words why a library does not run a design's experts on a device; None if it does."""
    layer = candidate.layer
    reason = library.refuses(
        profile, layer.precision.name, gated=layer.gated, uneven=layer.widths_differ
    )
    if reason is None and exchange is not None and exchange.name not in library.exchanges:
        return f"takes tokens of {', '.join(library.exchanges)}, not of {exchange.name}"
    return reason
