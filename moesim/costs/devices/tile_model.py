"""Price the grouped GEMMs of this project's Triton kernels by what each of their tiles does.

    step of a tile    the slowest of: products, shared memory, copies; and L2's bytes plus latency
    busy              waves of tiles over the SMs, each as many steps as the depth has, and a start
    moved             active experts' weights once, again for every further sweep that L2 lost
    time              (busy^p + moved^p)^(1/p)

Nearly every tile of a grouped GEMM waits for L2: on an H100, tiles of 16 to 128 rows move 28 to 37
bytes per cycle and SM, whatever their shape. What tells them apart is how many bytes they ask for:
a row block reads its expert's weights anew, and 16 rows read them for 16 rows. Where those weights
exceed what L2 keeps between two row blocks of an expert, they come from memory again, unless the
row blocks of the expert run at the same time. Memory is slow for short pieces: a step of 64 bytes
of every row reaches two thirds of the rate of one of 256.

The form of the model is ours. Its numbers are fitted to tiles timed on an H100
(`moesim.measured.tiles.calibrate`); what a kernel's registers leave of an SM follows the CUDA C++
Programming Guide, compute capabilities.

Shape legend: R rows of a table, or devices.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.phase import PhaseCost
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
#: rows from which a tensor core instruction takes its operands from shared memory (wgmma, compute
#: capability 9.0 on), and how many of them one such instruction takes
_WARPGROUP_ROWS = 64
#: bytes a cycle that an SM's shared memory delivers (CUDA C++ Programming Guide: 32 banks of 4)
_SHARED_BYTES = 128.0
_LANES = 128
#: registers of a thread: constant, and per element that it holds of accumulators, input block and
#: weight block; by form and whether operands stay in shared memory. Least squares over what Triton
#: 3.7.1 compiles for sm_90, within 9 registers on average.
_REGISTERS = {
    ("paired_pointers", False): (24.9, 1.19, 3.14, 0.25),
    ("paired_pointers", True): (11.3, 1.40, 0.26, 0.18),
    ("paired_descriptors", False): (34.9, 1.25, 7.06, -0.09),
    ("paired_descriptors", True): (17.4, 1.65, 0.73, -0.33),
    ("wide_pointers", False): (24.9, 1.19, 3.14, 0.25),
    ("wide_pointers", True): (11.3, 1.40, 0.26, 0.18),
    ("wide_descriptors", False): (24.9, 1.19, 3.14, 0.25),
    ("wide_descriptors", True): (11.3, 1.40, 0.26, 0.18),
    ("linear_pointers", False): (20.2, 2.00, 0.14, 0.40),
    ("linear_pointers", True): (17.7, 1.00, 0.37, 0.54),
    ("linear_descriptors", False): (25.4, 1.47, 0.10, 0.14),
    ("linear_descriptors", True): (26.8, 1.39, -0.05, 0.13),
    ("single_descriptors", False): (25.4, 1.47, 0.10, 0.14),
    ("single_descriptors", True): (26.8, 1.39, -0.05, 0.13),
}
#: an SM's slowest step hides the others: p of the norm over them; and the power with which row
#: blocks that do not all run at once lose step (chosen, not fitted: 4 and 6 do as well)
_STEP_NORM, _IN_STEP = 6.0, 4.0


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileModel:
    """The price of tiles on one GPU.

    Attributes:
        profile: The GPU.
        calibration: Fitted parameters, the keys of `moesim.measured.tiles.calibrate.BOUNDS`.
    """

    profile: Profile
    calibration: Calibration

    def price(self, work: TileWork, fmt: str) -> PhaseCost:
        """Price grouped GEMMs.

        Args:
            work: The GEMMs.
            fmt: Format in which the matrix units multiply.

        Returns:
            PhaseCost of shape (R,). What busy SMs and memory cannot overlap is its latency.

        Raises:
            ConfigError: The profile has no rate for the format.
        """
        busy = self._busy_s_R(work, fmt)
        moved = self._moved_s_R(work)
        power = self.calibration["overlap_power"]
        time = (busy**power + moved**power) ** (1.0 / power)
        return PhaseCost(
            compute_s_D=busy, memory_s_D=moved, latency_s_D=time - np.maximum(busy, moved)
        )

    def resident_R(self, work: TileWork) -> Array:
        """Return the programs that an SM holds at once: float64 of shape (R,), at least 1.

        Registers, shared memory and warps limit them. Persistent kernels launch as many as
        `moesim.costs.tiles.Tile.ctas_per_sm` estimates.
        """
        tile, form = work.tile, work.form_R
        warpgroup = self._warpgroup_R(work)
        threads = 32.0 * tile.num_warps
        fits = np.array([[_REGISTERS[name, own] for own in (False, True)] for name in FORMS])
        per = fits[form, np.asarray(warpgroup, dtype=np.int64)]
        held = (
            per[..., 0]
            + per[..., 1] * tile.block_m * tile.block_n / threads
            + per[..., 2] * tile.block_m * tile.block_k / threads
            + per[..., 3] * tile.block_n * tile.block_k / threads
        )
        registers = np.ceil(32.0 * np.clip(held, 32.0, _MOST_REGISTERS) / 256.0) * 256.0
        # an instruction that reads shared memory keeps the block of its step there, too
        buffers = np.maximum(tile.num_stages - np.where(warpgroup, 0, 1), 1)
        shared = buffers * (tile.block_m + tile.block_n) * tile.block_k * work.element_bytes + KIB
        available = self.profile.shared_memory_per_sm_bytes
        resident = np.minimum(
            np.minimum(_REGISTERS_PER_SM // (registers * tile.num_warps), available // shared),
            _WARPS_PER_SM // tile.num_warps,
        )
        launched = tile.ctas_per_sm(work.element_bytes, available)
        persistent = np.isin(work.form_R, [FORMS.index(name) for name in _PERSISTENT])
        return np.maximum(np.where(persistent, np.minimum(resident, launched), resident), 1.0)

    def _is_R(self, work: TileWork, word: str) -> Array:
        return np.array([word in name for name in FORMS])[work.form_R]

    def _gathers_R(self, work: TileWork) -> Array:
        return self._is_R(work, "paired") | self._is_R(work, "wide")

    def _described_R(self, work: TileWork) -> Array:
        return self._is_R(work, "descriptors")

    def _warpgroup_R(self, work: TileWork) -> Array:
        hopper_on = (self.profile.compute_capability or 0.0) >= 9.0
        return np.broadcast_to(
            np.logical_and(hopper_on, np.asarray(work.tile.block_m) >= _WARPGROUP_ROWS),
            work.form_R.shape,
        )

    def _of_form(self, work: TileWork, name: str) -> Array:
        return np.array([self.calibration[f"{name}_{form}"] for form in FORMS])[work.form_R]

    def _busy_s_R(self, work: TileWork, fmt: str) -> Array:
        c, tile, profile = self.calibration, work.tile, self.profile
        steps = np.ceil(work.depth_R / tile.block_k)
        tiles = work.blocks_R * np.ceil(work.columns_R / tile.block_n)
        resident = self.resident_R(work)
        slots = profile.num_sms * resident
        on_chip = self._on_chip_cycles_R(work, fmt)
        from_l2 = self._l2_cycles_R(work)
        latency = c["load_latency_cycles"] / np.maximum(tile.num_stages - 1, 1)
        between = self._of_form(work, "step_cycles")

        def step(programs: Array) -> Array:
            # programs on one SM share its units; what one waits for between steps, others fill
            return _norm(programs * on_chip, on_chip + between, programs * from_l2 + latency)

        start = (
            c["tile_cycles"]
            + c["load_latency_cycles"]
            + c["store_cycles"] * tile.block_m * tile.block_n / (32.0 * tile.num_warps)
        )
        full = np.floor(tiles / slots)
        left = tiles - full * slots
        last = np.maximum(np.ceil(left / profile.num_sms), 1.0)
        cycles = full * (steps * step(resident) + start) + (left > 0) * (steps * step(last) + start)
        return cycles / profile.clock_hz

    def _on_chip_cycles_R(self, work: TileWork, fmt: str) -> Array:
        """Return the cycles of one step of a tile alone on an SM, its operands at hand."""
        c, tile, profile = self.calibration, work.tile, self.profile
        warpgroup, described = self._warpgroup_R(work), self._described_R(work)
        gathers = self._gathers_R(work)
        per_clock = profile.peak(fmt) / (profile.num_sms * profile.clock_hz)
        # the peak of Hopper and later is that of instructions which read shared memory
        hopper_on = (profile.compute_capability or 0.0) >= 9.0
        rate = np.where(
            warpgroup | np.logical_not(hopper_on), c["mma_efficiency"], c["mma_sync_efficiency"]
        )
        if work.element_bytes >= 4:
            # exact float32 products run on the vector lanes, two operations a cycle each
            per_clock, rate = 2.0 * _LANES, np.ones_like(rate)
        products = 2.0 * tile.block_m * tile.block_n * tile.block_k / (per_clock * rate)
        # products of gate and of up each read the input block
        dots = np.where(self._is_R(work, "paired"), 2.0, 1.0)
        across = tile.block_n / dots
        rows, columns = _warps(tile.block_m, across, tile.num_warps)
        high = np.maximum(tile.block_m / _WARPGROUP_ROWS, 1.0)
        own_input = np.maximum(tile.num_warps / 4.0 / high, 1.0) * tile.block_m * dots
        shared = np.where(
            warpgroup,
            own_input + tile.block_n * high,
            # a warp of eight columns loads halves of a matrix
            tile.block_m * columns * dots
            + tile.block_n * rows * np.where(across / columns < 16, c["narrow_warp_factor"], 1.0),
        )
        shared = shared * tile.block_k * work.element_bytes / _SHARED_BYTES * c["shared_factor"]
        # the accelerator takes a row of a box at a time, 128 bytes of it
        box_rows = np.where(
            described, tile.block_n + np.where(gathers, 0, tile.block_m), 0
        ) * np.ceil(tile.block_k * work.element_bytes / 128.0)
        busiest = _norm(products, shared, box_rows * c["box_row_cycles"])
        if not work.scaled:
            return busiest
        # the product of a step is complete before it is scaled, one element a lane and cycle
        scaling = tile.block_m * np.asarray(tile.block_n) / _LANES
        return busiest + c["scale_cycles"] * scaling

    def _l2_cycles_R(self, work: TileWork) -> Array:
        """Return the cycles L2 takes for the operands of one step, without its latency."""
        c, tile = self.calibration, work.tile
        described = self._described_R(work)
        block_input = self._gathers_R(work) | ~described
        # pointers load rows that exist; a block by descriptor is loaded whole
        existing = np.minimum(tile.block_m, work.rows_R / np.maximum(work.blocks_R, 1))
        input_rows = np.where(block_input, existing, tile.block_m)
        step_bytes = tile.block_k * work.element_bytes
        short = np.where(step_bytes < 128.0, c["l2_short_share"], 1.0)
        read = input_rows * self._of_form(work, "input_factor") / np.where(block_input, short, 1.0)
        weights = tile.block_n / np.where(described, 1.0, short)
        return (read + weights) * step_bytes / c["l2_bytes_per_cycle"]

    def _moved_s_R(self, work: TileWork) -> Array:
        c, tile, profile = self.calibration, work.tile, self.profile
        described = self._described_R(work)
        matrix = work.columns_R * work.depth_R * work.element_bytes
        active = np.maximum(work.active_R, 1)
        sweeps = np.maximum(work.groups_R / active, 1.0)
        at_once = np.clip(
            profile.num_sms
            * self.resident_R(work)
            / np.ceil(work.columns_R / tile.block_n)
            / np.asarray(tile.group_m),
            1.0,
            sweeps,
        )
        # sweeps of an expert that run at the same time read its weights together while in step
        together = (at_once / sweeps) ** _IN_STEP
        sweeps = sweeps - (sweeps - np.maximum(sweeps / at_once, 1.0)) * together
        kept, power = (
            np.where(described, c[f"{name}_descriptors"], c[f"{name}_pointers"])
            for name in ("l2_reuse", "l2_reuse_power")
        )
        lost = 1.0 / (1.0 + (kept * profile.l2_bytes / matrix) ** power)
        weights = matrix * work.active_R * (1.0 + (sweeps - 1.0) * lost)
        if work.warm_bytes_R is not None:
            # weights that fit into half of L2 stay; beyond it the share falls with the square
            fit = 0.5 * profile.l2_bytes / np.maximum(work.warm_bytes_R, 1.0)
            weights = weights * (1.0 - np.minimum(1.0, fit) ** 2)
        step_bytes = tile.block_k * work.element_bytes
        share = np.where(
            step_bytes < 128.0,
            np.where(described, c["dram_64_descriptors"], c["dram_64_pointers"]),
            np.where(
                step_bytes < 256.0,
                np.where(described, c["dram_128_descriptors"], c["dram_128_pointers"]),
                np.where(step_bytes < 512.0, c["dram_256"], 1.0),
            ),
        )
        outputs = work.columns_R / np.where(self._gathers_R(work), 2.0, 1.0)
        rows = work.rows_R * (work.depth_R / work.top_k_R + outputs) * work.element_bytes
        bandwidth = profile.hbm_bandwidth_bytes_per_s
        return weights / (bandwidth * c["dram_efficiency"] * share) + rows / bandwidth


def _norm(*values: Array) -> Array:
    largest = np.maximum.reduce([np.asarray(value, dtype=np.float64) for value in values])
    safe = np.where(largest > 0, largest, 1.0)
    return largest * sum((value / safe) ** _STEP_NORM for value in values) ** (1.0 / _STEP_NORM)


def _warps(rows: Array | int, columns: Array, warps: Array | int) -> tuple[Array, Array]:
    """Return how Triton lays warps over a product of 16-row instructions: down and across.

    The taller side of what a warp would get is halved until all warps have a part (Triton,
    AccelerateMatmul, MIT licence: the rule, not the code).
    """
    down, across = np.ones(np.shape(columns)), np.ones(np.shape(columns))
    for _ in range(4):
        open_ = down * across < warps
        tall = (rows / 16 / down >= columns / 16 / across) & (down < np.asarray(rows) / 16)
        down, across = (
            np.where(open_ & tall, 2 * down, down),
            np.where(open_ & ~tall, 2 * across, across),
        )
    return down, across
