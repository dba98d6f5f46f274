"""The primitives every phase is composed of, and which model prices them on which device."""

from typing import ClassVar, Protocol

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.gpu import WaveKernels
from moesim.costs.devices.serial import SerialKernels
from moesim.costs.devices.systolic import SystolicKernels
from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost
from moesim.costs.work import GemmSpec
from moesim.hardware import Profile

Array = np.ndarray


class Kernels(Protocol):
    """What a device model must price. All arrays have shape (D,) unless their name says otherwise.

    Attributes:
        rows_may_differ: Whether sizes may be arrays too, one for each row.
    """

    rows_may_differ: ClassVar[bool]

    def launches(self, count: float | Array) -> PhaseCost:
        """Dependent launches that do nothing else."""

    def stream(self, num_bytes_D: Array) -> PhaseCost:
        """Bytes read or written in order."""

    def gather(self, num_bytes_D: Array, access_bytes: float) -> PhaseCost:
        """Bytes read in rows at random places."""

    def gather_sum(self, rows_D: Array, sums_D: Array, row_bytes: Size) -> PhaseCost:
        """Weighted sums, written in order, of rows at random places."""

    def align(self, rows_D: Array, num_experts: int) -> PhaseCost:
        """Sorting choices by expert."""

    def top_k(self, rows_D: Array, columns: int, k: int, *, scored: bool = True) -> PhaseCost:
        """Top-k of float32 rows; ``scored``: of their softmax, in one kernel where a device fuses
        them.
        """

    def limit_groups(self, rows_D: Array, groups: int, per_group: int, kept: int) -> PhaseCost:
        """Scores of groups by their two best experts, the best groups, and the others' experts
        masked.
        """

    def pairs(self, rows_D: Array, halves: int) -> PhaseCost:
        """Sums and numbers of all pairs of two lists, where that is work of its own."""

    def weighted_logits(self, elements_D: Array, passes: float) -> PhaseCost:
        """Passes over float32 logits that a gate makes beside scores and top-k, such as noise or
        normalisation.
        """

    def grouped_gemm(self, load: Load, n: Size, k: Size, gemm: GemmSpec) -> PhaseCost:
        """For each expert, (count x k) times (k x n); n or k of shape (D, L) where experts differ.
        """


def kernels_for(profile: Profile) -> Kernels:
    """The cost model of a device.

    Raises:
        ConfigError: Its calibration file is missing or malformed.
    """
    if profile.execution == "serial":
        return SerialKernels(profile=profile)
    calibration = load_calibration(profile.calibration, profile)
    if profile.execution == "systolic":
        return SystolicKernels(profile=profile, calibration=calibration)
    return WaveKernels(profile=profile, calibration=calibration)
