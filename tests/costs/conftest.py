"""A chip one can compute by hand."""

from dataclasses import replace

import pytest

from moesim.costs.devices.primitives import kernels_for


@pytest.fixture(scope="session")
def plain(h100):
    """10 SMs at 1 GHz and 1000 FLOP per clock; 1 GB/s; a launch takes 1 us; half of what overlaps
    is lost; rows at random places take twice as long as in order.
    """
    chip = replace(
        h100,
        num_sms=10,
        clock_hz=1e9,
        peak_flops_per_s={"bfloat16": 10 * 1e9 * 1000.0},
        hbm_bandwidth_bytes_per_s=1e9,
        gather_access_bytes=(1e6, 1e12),
        gather_efficiency=(0.4, 0.8),
    )
    kernels = kernels_for(chip)
    parameters = dict.fromkeys(kernels.calibration.parameters, 0.0) | {
        "mma_efficiency": 1.0,
        "weight_bandwidth_efficiency": 1.0,
        "activation_bandwidth_efficiency": 1.0,
        "short_row_efficiency": 1.0,
        "misaligned_factor": 1.0,
        "overlap_loss": 0.5,
        "kernel_launch_cycles": 1000.0,
    }
    return replace(kernels, calibration=replace(kernels.calibration, parameters=parameters))
