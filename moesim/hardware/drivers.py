"""Find the profile of a GPU by what its driver calls it."""

from moesim.files.toml import index_names
from moesim.hardware.profile import Profile, load_profile

#: words of a slice, and of variants of a GPU that are other GPUs
_OTHERS = {"mig", "laptop", "d", "3e", "super", "ti"}


def profile_of_driver(device_name: str) -> Profile | None:
    """Return the profile of the GPU a driver calls by this name; None without one.

    This is the profile of this name or alias, otherwise the longest profile name whose every word
    occurs in the driver's name. A profile of an SXM module does not describe a PCIe or NVL card:
    drivers name these (an SXM H100 is an "H100 80GB HBM3"). No profile describes a slice (MIG) of
    its GPU, nor a variant with other memory or fewer SMs (an "RTX 4090 D", a laptop's GPU, an
    "H20-3e").

    Raises:
        ConfigError: The profile's file is not valid.
    """
    names = index_names("devices")
    lower = device_name.lower()
    words = set(lower.replace("-", " ").split())
    like = [name for name in names if words.issuperset(name.split("-"))]
    found = lower if lower in names else max(like, key=len) if like else None
    profile = load_profile(found) if found else None
    if profile is None or profile.execution != "waves":
        return None
    # An exact name or alias is trusted; a match by words must not contradict the form factor.
    card = bool(words & _OTHERS) or (profile.name.endswith("-sxm") and words & {"pcie", "nvl"})
    unsaid = profile.name == "h100-sxm" and not words & {"sxm", "sxm5", "hbm3"}
    return None if found != lower and (card or unsaid) else profile
