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
(`moesim.measured.tiles.fit`); what a kernel's registers leave of an SM follows the CUDA C++
Programming Guide, compute capabilities.

Shape legend: R rows of a table, or devices.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.devices.tile_work import (
    FORMS,
    WARPGROUP_ROWS,
    TileWork,
    hopper_on,
    resident_R,
    warpgroup_R,
)
from moesim.costs.phase import PhaseCost
from moesim.hardware import Profile

Array = np.ndarray
#: bytes a cycle that an SM's shared memory delivers (CUDA C++ Programming Guide: 32 banks of 4)
_SHARED_BYTES = 128.0
_LANES = 128
#: an SM's slowest step hides the others: p of the norm over them; and the power with which row
#: blocks that do not all run at once lose step (chosen, not fitted: 4 and 6 do as well)
_STEP_NORM, _IN_STEP = 6.0, 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileModel:
    """The price of tiles on one GPU.

    Attributes:
        profile: The GPU.
        calibration: Fitted parameters, the keys of `moesim.measured.tiles.fit.BOUNDS`.
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

    def _of_form(self, work: TileWork, name: str) -> Array:
        return np.array([self.calibration[f"{name}_{form}"] for form in FORMS])[work.form_R]

    def _busy_s_R(self, work: TileWork, fmt: str) -> Array:
        c, tile, profile = self.calibration, work.tile, self.profile
        steps = np.ceil(work.depth_R / tile.block_k)
        tiles = work.blocks_R * np.ceil(work.columns_R / tile.block_n)
        resident = resident_R(work, self.profile)
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
        warpgroup, described = warpgroup_R(work, profile), work.described_R
        gathers = work.gathers_R
        per_clock = profile.peak(fmt) / (profile.num_sms * profile.clock_hz)
        # the peak of Hopper and later is that of instructions which read shared memory
        rate = np.where(
            warpgroup | np.logical_not(hopper_on(profile)),
            c["mma_efficiency"],
            c["mma_sync_efficiency"],
        )
        if work.element_bytes >= 4:
            # exact float32 products run on the vector lanes, two operations a cycle each
            per_clock, rate = 2.0 * _LANES, np.ones_like(rate)
        products = 2.0 * tile.block_m * tile.block_n * tile.block_k / (per_clock * rate)
        # products of gate and of up each read the input block
        dots = np.where(work.paired_R, 2.0, 1.0)
        across = tile.block_n / dots
        rows, columns = _warps(tile.block_m, across, tile.num_warps)
        high = np.maximum(tile.block_m / WARPGROUP_ROWS, 1.0)
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
        described = work.described_R
        block_input = work.gathers_R | ~described
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
        described = work.described_R
        matrix = work.columns_R * work.depth_R * work.element_bytes
        active = np.maximum(work.active_R, 1)
        sweeps = np.maximum(work.groups_R / active, 1.0)
        at_once = np.clip(
            profile.num_sms
            * resident_R(work, self.profile)
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
        outputs = work.columns_R / np.where(work.gathers_R, 2.0, 1.0)
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
