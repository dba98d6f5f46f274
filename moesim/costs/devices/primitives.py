"""Define the primitives of which every phase is composed, and choose the model that prices them on
a device.
"""

from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np

from moesim.costs.calibration import BESIDE, Calibration, load_calibration
from moesim.costs.devices.fused_kernels import FusedKernels
from moesim.costs.devices.gpu import WaveKernels
from moesim.costs.devices.serial import SerialKernels
from moesim.costs.devices.systolic import SystolicKernels
from moesim.costs.devices.tile_kernels import TileKernels
from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost
from moesim.costs.shape import ExpertShape
from moesim.costs.tiles import Tile
from moesim.costs.work import ExpertSizes, GemmSpec
from moesim.hardware import Profile

Array = np.ndarray


class Kernels(Protocol):
    """What a device model must price. All arrays have shape (D,) unless their name says otherwise.

    Attributes:
        rows_may_differ: Whether sizes may also be arrays with one value for each row.
        expert_kernels: Kernels of the expert phase where a token uses several experts, and where it
            uses one.
        activation_apart: Whether the activation is a kernel of its own, which reads and writes
            memory.
    """

    rows_may_differ: ClassVar[bool]
    expert_kernels: ClassVar[tuple[int, int]]
    activation_apart: ClassVar[bool]

    def __hash__(self) -> int:
        """Return the hash of the object itself: a model is equal to no other."""

    def expert_tiles(self, counts_DL: Array, sizes: ExpertSizes) -> tuple[Tile, Tile]:
        """Return the tiles of the up and of the down projection, which have the same block_m.

        Args:
            counts_DL: Rows of each expert of each device, ndarray of shape (D, L).
            sizes: Sizes of the experts.
        """

    def experts(self, shape: ExpertShape, load: Load, num_tokens_D: Array) -> PhaseCost | None:
        """Price the routed experts as a whole, from tokens to weighted outputs on one device; None
        where they are priced kernel by kernel.

        Args:
            shape: Sizes and formats of the experts.
            load: The histogram of the rows they compute.
            num_tokens_D: Distinct tokens present.
        """

    def tile_name(self, shape: ExpertShape, counts_DL: Array) -> str:
        """Return the tile of the up projection in words, as far as the library tells."""

    def launches(self, count: float | Array) -> PhaseCost:
        """Price dependent launches that do nothing else."""

    def stream(self, num_bytes_D: Array) -> PhaseCost:
        """Price bytes that are read or written in order."""

    def gather(self, num_bytes_D: Array, access_bytes: float) -> PhaseCost:
        """Price bytes that are read in rows at random places."""

    def gather_sum(self, rows_D: Array, sums_D: Array, row_bytes: Size) -> PhaseCost:
        """Price weighted sums, written in order, of rows at random places."""

    def align(self, rows_D: Array, num_experts: int) -> PhaseCost:
        """Price sorting choices by expert."""

    def top_k(self, rows_D: Array, columns: int, k: int, *, scored: bool = True) -> PhaseCost:
        """Price top-k of float32 rows; if ``scored``, of their softmax, in one kernel where a
        device fuses them.
        """

    def limit_groups(self, rows_D: Array, groups: int, per_group: int, kept: int) -> PhaseCost:
        """Price group scores from each group's two best experts, the best groups, and the mask over
        the experts of all others.
        """

    def pairs(self, rows_D: Array, halves: int) -> PhaseCost:
        """Price the sums and indices of all pairs of two lists, where that is separate work."""

    def weighted_logits(self, elements_D: Array, passes: float) -> PhaseCost:
        """Price passes over float32 logits that a gate makes in addition to scores and top-k, such
        as noise or normalization.
        """

    def grouped_gemm(self, load: Load, n: Size, k: Size, gemm: GemmSpec) -> PhaseCost:
        """Price (count x k) times (k x n) for each expert; n or k has shape (D, L) where experts
        differ.
        """


def kernels_for(profile: Profile) -> Kernels:
    """Return the cost model of a device, the same object as long as its calibration file stays.

    Raises:
        ConfigError: The calibration file is missing or malformed.
    """
    if profile.execution == "serial":
        return _model(profile)
    calibration = load_calibration(profile.calibration, profile)
    if calibration.model == "fused":
        return _model(profile, load_calibration(BESIDE, profile), calibration)
    return _model(profile, calibration)


@lru_cache(maxsize=256)
def _model(
    profile: Profile, calibration: Calibration | None = None, library: Calibration | None = None
) -> Kernels:
    if calibration is None:
        return SerialKernels(profile=profile)
    if library is not None:
        return FusedKernels(profile=profile, calibration=calibration, library=library)
    if profile.execution == "systolic":
        return SystolicKernels(profile=profile, calibration=calibration)
    if calibration.model == "tiles":
        return TileKernels(profile=profile, calibration=calibration)
    return WaveKernels(profile=profile, calibration=calibration)
