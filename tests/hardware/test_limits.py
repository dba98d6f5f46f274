"""What a multiprocessor holds is stated once, in the device profiles; what kernels use of it agrees
with them.
"""

import pytest
from moesim_kernels.tiles.occupancy import MULTIPROCESSORS
from moesim_kernels.tiles.tiles import LIMITS

from moesim import load_profile
from moesim.files.toml import index_names

#: what NVIDIA's driver keeps of a multiprocessor's shared memory for each program
#: (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")
RESERVED_BYTES = 1024
#: architectures of profiles without a compute capability
AMD = {"mi300x": "gfx942", "mi355x": "gfx950"}


def target_of(name):
    """The compile target of a device profile; None where no kernel is compiled for it."""
    capability = load_profile(name).compute_capability
    if capability is None:
        return AMD.get(name)
    # compute capability 10.3 runs what is compiled for 10.0
    return {10.3: "sm_100"}.get(capability, f"sm_{round(10 * capability)}")


PROFILES = [load_profile(name) for name in index_names("devices")]
GPUS = sorted({profile.name for profile in PROFILES if profile.execution == "waves"})


def test_every_target_is_that_of_a_device():
    assert {target_of(name) for name in GPUS} == set(LIMITS) == set(MULTIPROCESSORS)


@pytest.mark.parametrize("name", GPUS)
def test_shared_memory_is_the_profiles(name):
    target, profile = target_of(name), load_profile(name)
    assert MULTIPROCESSORS[target].shared_bytes == profile.shared_memory_per_sm_bytes
    reserved = 0 if target.startswith("gfx") else RESERVED_BYTES
    assert LIMITS[target].shared_bytes == profile.shared_memory_per_sm_bytes - reserved
