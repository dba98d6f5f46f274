"""Make communication kernels by name."""

from dataclasses import replace

from moesim.costs.calibration import load_calibration
from moesim.costs.comm.deepep import DeepEpLowLatency, DeepEpNormal
from moesim.costs.comm.nccl import COLLECTIVES, Nccl
from moesim.costs.comm.nvl72 import Nvl72
from moesim.costs.comm.work import CommKernel, Ports
from moesim.errors import UnknownNameError
from moesim.hardware import Profile

_RINGS = {f"nccl_{c}": c for c in COLLECTIVES if c != "alltoall"}
NAMES = ("nccl", *_RINGS, "deepep_normal", "deepep_ll", "nvl72", "nvl72_two_sided")


def comm_kernel(
    name: str, ports: Ports, profile: Profile, *, few_shot: bool = True, num_sms: int | None = None
) -> CommKernel:
    """Return a communication kernel, calibrated for a device as far as possible.

    On a device that nobody measured (MI300X with RCCL, for example) the parameters of H100 are used
    with that device's own port rates, at level ``spec_sheet``.

    Args:
        name: One of `NAMES`; ``nccl`` is its all-to-all, ``nvl72`` the one-sided form.
        ports: The device's side of the fabric.
        profile: The profile of the device.
        few_shot: Whether to use factors from a few measured rows of the device, where there are
            any.
        num_sms: SMs of DeepEP's normal mode; None for DeepEP's default of 20.

    Raises:
        UnknownNameError: There is no such kernel.
        ConfigError: The calibration file is missing or malformed.
    """
    if name == "nccl" or name in _RINGS:
        calibration = load_calibration("nccl", profile, few_shot=few_shot)
        return Nccl(ports=ports, calibration=calibration, collective=_RINGS.get(name, "alltoall"))
    if name == "deepep_normal":
        normal = DeepEpNormal(
            ports=ports, calibration=load_calibration("deepep-normal", profile, few_shot=few_shot)
        )
        return normal if num_sms is None else replace(normal, num_sms=num_sms)
    if name == "deepep_ll":
        return DeepEpLowLatency(
            ports=ports, calibration=load_calibration("deepep-ll", profile, few_shot=few_shot)
        )
    if name in ("nvl72", "nvl72_two_sided"):
        calibration = load_calibration("nvl72", profile, few_shot=few_shot)
        return Nvl72(
            ports=ports,
            calibration=calibration,
            variant="one_sided" if name == "nvl72" else "two_sided",
        )
    raise UnknownNameError("communication kernel", name, NAMES)
