"""Describe a grouped GEMM of this project's kernels: its form, its tile, what an SM holds of it.

Shape legend: R rows of a table, or devices.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.costs.tiles import Tile
from moesim.hardware import Profile
from moesim.units import KIB

Array = np.ndarray
#: what a kernel computes: gate and up columns side by side in two products, as one wide product, or
#: rows of a plan times one matrix (linear, and single); and how it reads weights. Paired and linear
#: kernels with descriptors are persistent; all others launch one program for each tile.
TileForm = Literal[
    "paired_pointers",
    "paired_descriptors",
    "wide_pointers",
    "wide_descriptors",
    "linear_pointers",
    "linear_descriptors",
    "single_descriptors",
]
FORMS: tuple[TileForm, ...] = TileForm.__args__  # type: ignore[attr-defined]
_PERSISTENT = ("paired_descriptors", "linear_descriptors")
_REGISTERS_PER_SM, _WARPS_PER_SM, _MOST_REGISTERS = 65536, 64, 255
#: rows of a tensor core instruction that takes its operands from shared memory (wgmma, compute
#: capability 9.0 on)
WARPGROUP_ROWS = 64
#: registers of a thread: constant, and per element that it holds of accumulators, input block and
#: weight block; by form and whether operands stay in shared memory. Least squares over what Triton
#: 3.7.1 compiles for sm_90, within 9 registers on average.
_REGISTERS = {
    ("paired_pointers", False): (24.9, 1.19, 3.14, 0.25),
    ("paired_pointers", True): (11.3, 1.40, 0.26, 0.18),
    ("paired_descriptors", False): (34.9, 1.25, 7.06, -0.09),
    ("paired_descriptors", True): (17.4, 1.65, 0.73, -0.33),
    ("wide_pointers", False): (8.3, 1.84, 0.34, 0.39),
    ("wide_pointers", True): (4.2, 1.88, 0.00, 0.10),
    ("wide_descriptors", False): (8.3, 1.84, 0.34, 0.39),
    ("wide_descriptors", True): (63.8, 1.19, 0.25, -0.69),
    ("linear_pointers", False): (20.2, 2.00, 0.14, 0.40),
    ("linear_pointers", True): (17.7, 1.00, 0.37, 0.54),
    ("linear_descriptors", False): (25.4, 1.47, 0.10, 0.14),
    ("linear_descriptors", True): (26.8, 1.39, -0.05, 0.13),
    ("single_descriptors", False): (25.4, 1.47, 0.10, 0.14),
    ("single_descriptors", True): (26.8, 1.39, -0.05, 0.13),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileWork:
    """One grouped GEMM of a kernel, or a table of them.

    Attributes:
        form_R: Index into `FORMS`, integers of shape (R,).
        tile: Tile, whose fields may have shape (R,). Its block_n counts columns of the product:
            gate and up together in an up projection.
        rows_R: Rows of all experts.
        active_R: Experts with at least one row.
        blocks_R: Row blocks: the sum over experts of ceil(rows / block_m).
        groups_R: The same sum for blocks of group_m x block_m rows.
        columns_R: Columns of the product: 2 x I of an up projection, otherwise N.
        depth_R: Inner dimension.
        element_bytes: Bytes of an operand element.
        top_k_R: Rows that share one input row: top_k where the kernel gathers tokens, otherwise 1.
        warm_bytes_R: Bytes of weights that back-to-back calls find in L2; None if it is cold.
        scaled: Whether a scale is applied to every product of a step.
    """

    form_R: Array
    tile: Tile
    rows_R: Array
    active_R: Array
    blocks_R: Array
    groups_R: Array
    columns_R: Array
    depth_R: Array
    element_bytes: float
    top_k_R: Array
    warm_bytes_R: Array | None = None
    scaled: bool = False

    def _is_R(self, word: str) -> Array:
        return np.array([word in name for name in FORMS])[self.form_R]

    @property
    def gathers_R(self) -> Array:
        """Whether a kernel gathers tokens and multiplies gate and up columns: bool, shape (R,)."""
        return self._is_R("paired") | self._is_R("wide")

    @property
    def paired_R(self) -> Array:
        """Whether gate and up are two products: bool, shape (R,)."""
        return self._is_R("paired")

    @property
    def described_R(self) -> Array:
        """Whether descriptors read the weights: bool, shape (R,)."""
        return self._is_R("descriptors")


def hopper_on(profile: Profile) -> bool:
    """Return whether a GPU's tensor cores read shared memory by themselves: compute capability 9.0
    and later.
    """
    return (profile.compute_capability or 0.0) >= 9.0


def warpgroup_R(work: TileWork, profile: Profile) -> Array:
    """Return whether products take their operands from shared memory: bool, shape (R,)."""
    tall = np.asarray(work.tile.block_m) >= WARPGROUP_ROWS
    return np.broadcast_to(np.logical_and(hopper_on(profile), tall), work.form_R.shape)


def resident_R(work: TileWork, profile: Profile) -> Array:
    """Return the programs that an SM holds at once: float64 of shape (R,), at least 1.

    Registers, shared memory and warps limit them. Persistent kernels launch as many as
    `moesim.costs.tiles.Tile.ctas_per_sm` estimates.
    """
    tile, form = work.tile, work.form_R
    own = warpgroup_R(work, profile)
    threads = 32.0 * tile.num_warps
    fits = np.array([[_REGISTERS[name, shared] for shared in (False, True)] for name in FORMS])
    per = fits[form, np.asarray(own, dtype=np.int64)]
    held = (
        per[..., 0]
        + per[..., 1] * tile.block_m * tile.block_n / threads
        + per[..., 2] * tile.block_m * tile.block_k / threads
        + per[..., 3] * tile.block_n * tile.block_k / threads
    )
    registers = np.ceil(32.0 * np.clip(held, 32.0, _MOST_REGISTERS) / 256.0) * 256.0
    # an instruction that reads shared memory keeps the block of its step there, too
    buffers = np.maximum(tile.num_stages - np.where(own, 0, 1), 1)
    shared = buffers * (tile.block_m + tile.block_n) * tile.block_k * work.element_bytes + KIB
    available = profile.shared_memory_per_sm_bytes
    resident = np.minimum(
        np.minimum(_REGISTERS_PER_SM // (registers * tile.num_warps), available // shared),
        _WARPS_PER_SM // tile.num_warps,
    )
    launched = tile.ctas_per_sm(work.element_bytes, available)
    persistent = np.isin(work.form_R, [FORMS.index(name) for name in _PERSISTENT])
    return np.maximum(np.where(persistent, np.minimum(resident, launched), resident), 1.0)
