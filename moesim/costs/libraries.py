"""Say whose kernels a cluster's GPUs run, which libraries could, and what prices them."""

from dataclasses import replace
from functools import lru_cache

from moesim.costs.calibration import BESIDE, load_calibration
from moesim.errors import ConfigError
from moesim.hardware import Cluster, Profile
from moesim.hardware.exchanges import Exchange
from moesim.hardware.libraries import AUTO, KernelLibrary, kernel_libraries, kernel_library
from moesim.model import MoELayer

#: library of this project's Triton kernels
OWN_KERNELS = "moesim-triton"
#: library that prices what no other one was measured in, by serving engine
_EVERYWHERE = {"": "sglang-triton", "sglang": "sglang-triton", "vllm": "vllm-triton"}
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
    names = library.split(AND)
    names = names if len(names) > 1 else names * len(cluster.groups)
    groups = tuple(
        (priced_by(profile, name), count)
        for (profile, count), name in zip(cluster.groups, names, strict=True)
    )
    same = all(new is old for (new, _), (old, _) in zip(groups, cluster.groups, strict=True))
    return cluster if same else replace(cluster, groups=groups)


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


def engines_of(library: KernelLibrary, exchange: Exchange | None) -> tuple[str, ...]:
    """Return the serving engines that launch a library together with an exchange.

    Args:
        library: The library.
        exchange: The exchange; None on one device, which has none.
    """
    if exchange is not None and exchange.name not in library.exchanges:
        return ()
    return tuple(e for e in library.launch if exchange is None or e in exchange.launch)


def candidates(
    profile: Profile, layer: MoELayer, exchange: Exchange | None, kernels: str = AUTO
) -> list[KernelLibrary]:
    """Return the libraries among which a choice takes the fastest, on one kind of device.

    ``auto`` has the libraries that some serving engine launches and whose rows were measured in the
    layer's formats on the device's generation. If an engine launches the exchange, one must launch
    both. Where nothing is left, it has the Triton kernels, which run everywhere.

    Args:
        profile: The GPU.
        layer: The layer, for its formats and the kind of its experts.
        exchange: The exchange; None on one device.
        kernels: ``auto``, ``auto:ENGINE``, or the name of a library.

    Raises:
        ConfigError: The library named does not run the layer on the device or after the exchange,
            or the engine has none; the text says why and names those that do.
    """
    recipe = layer.precision.name
    kind = {"gated": layer.gated, "uneven": layer.widths_differ}
    auto, _, engine = kernels.partition(":")
    fit = [
        library
        for library in kernel_libraries()
        if library.refuses(profile, recipe, **kind) is None
        and (exchange is None or exchange.name in library.exchanges)
    ]
    if auto != AUTO:
        library = kernel_library(kernels)
        reason = library.refuses(profile, recipe, **kind)
        if reason is None and exchange is not None and exchange.name not in library.exchanges:
            reason = f"takes tokens of {', '.join(library.exchanges)}, not of {exchange.name}"
        if reason is not None:
            others = ", ".join(one.name for one in fit) or "none"
            raise ConfigError(f"kernels: {library.name} {reason}; others that do: {others}")
        return [library]

    def launched(library: KernelLibrary) -> bool:
        engines = engines_of(library, exchange if exchange and exchange.launch else None)
        return bool(engines) if not engine else engine in engines

    found = [one for one in fit if one.measured(profile, recipe) and launched(one)]
    if found:
        return found
    if engine not in _EVERYWHERE:
        raise ConfigError(
            f"kernels: expected formats and devices that {engine} has measured kernels for, got "
            f"{recipe} on {profile.name}"
        )
    return [kernel_library(_EVERYWHERE[engine])]
