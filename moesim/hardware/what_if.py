"""Change the numbers of a device profile, for what-if studies and hardware co-design.

A change is a number in the unit of its key, or a factor over the present number written as text,
``2x``. Related numbers change together: more SMs raise every peak rate, and a larger L2 holds
larger working sets. Kernels are captured in graphs unless ``host_launch_us`` is named: then the
host launches each by itself, in that time (``1x``: in the time the profile states). Fitted
efficiencies stay those of the original device, although the changed one was never measured; its
prices therefore count as ``spec_sheet``.
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace

from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware.profile import Profile
from moesim.units import GB, GIB, MIB, TERA, US

_BF16 = "bfloat16"


def _sms(profile: Profile, factor: float) -> Profile:
    num_sms = max(round(profile.num_sms * factor), 1)
    # whole SMs, each as fast as before: otherwise a little more of them could be slower
    factor = num_sms / profile.num_sms
    return replace(
        profile,
        num_sms=num_sms,
        peak_flops_per_s={fmt: rate * factor for fmt, rate in profile.peak_flops_per_s.items()},
    )


def _peaks(profile: Profile, factor: float) -> Profile:
    return replace(
        profile,
        peak_flops_per_s={fmt: rate * factor for fmt, rate in profile.peak_flops_per_s.items()},
    )


def _l2(profile: Profile, factor: float) -> Profile:
    return replace(
        profile,
        l2_bytes=profile.l2_bytes * factor,
        streaming_bytes=tuple(size * factor for size in profile.streaming_bytes),
    )


def _host_launch_s(profile: Profile) -> float:
    if profile.execution != "waves" or profile.host_launch_s is None:
        raise ConfigError(
            f"{profile.name}: host_launch_us: expected a GPU whose profile states the launch time "
            "outside a graph (launch.plain_kernel_us)"
        )
    return profile.host_launch_s


def _host_link_bytes_per_s(profile: Profile) -> float:
    if profile.host_link_bytes_per_s is None:
        raise ConfigError(
            f"{profile.name}: host_link_gb_per_s: expected a device whose profile states the rate "
            "of its link to the host"
        )
    return profile.host_link_bytes_per_s


#: key -> (a function that returns the present number in the unit of the key, a function that
#: returns the profile with that number multiplied by a factor)
DEVICE_KEYS: dict[str, tuple[Callable[[Profile], float], Callable[[Profile, float], Profile]]] = {
    "hbm_gb_per_s": (
        lambda p: p.hbm_bandwidth_bytes_per_s / GB,
        lambda p, f: replace(p, hbm_bandwidth_bytes_per_s=p.hbm_bandwidth_bytes_per_s * f),
    ),
    "hbm_gib": (
        lambda p: p.hbm_capacity_bytes / GIB,
        lambda p, f: replace(p, hbm_capacity_bytes=p.hbm_capacity_bytes * f),
    ),
    "num_sms": (lambda p: float(p.num_sms), _sms),
    "bf16_tflops": (
        lambda p: p.peak_flops_per_s.get(_BF16, max(p.peak_flops_per_s.values())) / TERA,
        _peaks,
    ),
    "l2_mib": (lambda p: p.l2_bytes / MIB, _l2),
    "host_link_gb_per_s": (
        lambda p: _host_link_bytes_per_s(p) / GB,
        lambda p, f: replace(p, host_link_bytes_per_s=_host_link_bytes_per_s(p) * f),
    ),
    # Whoever names it asks for kernels that the host launches one by one.
    "host_launch_us": (
        lambda p: _host_launch_s(p) / US,
        lambda p, f: replace(p, host_launch_s=_host_launch_s(p) * f, eager=True),
    ),
}


def changed_number(key: str, now: float, change: object) -> float:
    """Return the number that a change asks for.

    Args:
        key: Name of the number, for error messages.
        now: The present number.
        change: A new number, or a factor over the present one as text such as ``2x``.

    Raises:
        ConfigError: The change is neither of these, or the result is not > 0.
    """
    if isinstance(change, str):
        factor = re.fullmatch(r"(\d+(?:\.\d+)?)x", change, re.ASCII)
        value = now * float(factor[1]) if factor else math.nan
    else:
        value = (
            float(change)
            if isinstance(change, int | float) and not isinstance(change, bool)
            else math.nan
        )
    if not 0 < value < math.inf:
        raise ConfigError(f"{key}: expected a number > 0 or a factor such as '2x', got {change!r}")
    return value


def changed_profile(profile: Profile, changes: dict[str, object]) -> Profile:
    """Return a profile with changed numbers.

    Args:
        profile: The profile of the device.
        changes: New numbers by key of `DEVICE_KEYS`.

    Raises:
        UnknownNameError: A key is not in `DEVICE_KEYS`.
        ConfigError: A change is neither a number > 0 nor a factor, or the profile is that of a CPU,
            whose prices do not depend on such numbers.
    """
    if changes and profile.execution == "serial":
        raise ConfigError(
            f"{profile.name}: a measured CPU is priced from its own calls, whatever the numbers of "
            f"{', '.join(changes)}: expected a GPU or TPU"
        )
    for key, change in changes.items():
        if key not in DEVICE_KEYS:
            raise UnknownNameError("device number", key, DEVICE_KEYS)
        now, apply = DEVICE_KEYS[key]
        factor = changed_number(key, now(profile), change) / now(profile)
        growth = profile.growth | {key: profile.growth.get(key, 1.0) * factor}
        profile = replace(apply(profile, factor), growth=growth)
    if changes:
        digest = hashlib.sha256(f"{profile.digest}{profile.growth}".encode()).hexdigest()[:12]
        profile = replace(profile, digest=digest)
    return profile
