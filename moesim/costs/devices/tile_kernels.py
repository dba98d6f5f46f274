"""Price a layer that runs this project's Triton kernels: the library ``moesim-triton``.

    gate       logits, over whose depth programs share if tokens are few; then the selection, with
               noise, bias, groups and counts
    plan       two kernels, linear in the pairs
    experts    up projection with SwiGLU in its epilogue, down projection, combine
    a kernel   its gap to the kernel before, its start, and what it does

The grouped GEMMs are priced tile by tile (`moesim.costs.devices.tile_model`) with the tiles that
the kernels choose (`moesim.costs.devices.tile_choice`). The rest is counted in bytes and rounds.
What one costs is assumed, since no rows of these kernels may be fitted yet: a kernel that does next
to nothing ran 1.0 to 1.9 us on an H100 and stood 0.2 to 0.4 us apart from its neighbor in a CUDA
graph (own measurement, 2026-11-27: H100 80GB HBM3, layers of 21 kernels); streams reached 0.8 to
0.9 of the memory's rate.

Shape legend: D devices or rows, L local experts.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.devices.tile_choice import (
    architecture,
    best_pairs,
    expected_counts,
    form_of,
)
from moesim.costs.devices.tile_model import TileModel
from moesim.costs.devices.tile_work import FORMS, TileWork
from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost
from moesim.costs.shape import ExpertShape
from moesim.costs.tiles import Tile
from moesim.costs.work import ExpertSizes, GemmSpec, by_width
from moesim.errors import ConfigError
from moesim.hardware import Profile
from moesim.units import US

Array = np.ndarray
_CUDA_LANES_PER_SM = 128
#: a plan reads every choice twice and writes its place twice, 4 bytes each
_PLAN_BYTES = 16.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileKernels:
    """Primitives of a GPU that runs this project's kernels; what each is told, see
    `moesim.costs.devices.primitives.Kernels`.
    """

    profile: Profile
    calibration: Calibration

    # tiles are chosen for one layer's sizes
    rows_may_differ: ClassVar[bool] = False
    #: plan (2), up, down, combine; a token with one expert is weighted by the combine, too
    expert_kernels: ClassVar[tuple[int, int]] = (5, 5)
    activation_apart: ClassVar[bool] = False

    def expert_tiles(self, counts_DL: Array, sizes: ExpertSizes) -> tuple[Tile, Tile]:
        """Choose for the device with the most rows, since every device launches the same tiles.

        The up tile's block_n counts the columns of the product, gate and up together.
        """
        rows, experts = int(counts_DL.sum(axis=-1).max()), counts_DL.shape[-1]
        model = TileModel(profile=self.profile, calibration=self.calibration)
        target = architecture(self.profile)
        # as the kernels do, which do not see the histogram
        up, down = best_pairs(model, expected_counts(rows, experts), sizes, target)[0]
        return replace(up, block_n=up.block_n * sizes.num_up), down

    def experts(self, shape: ExpertShape, load: Load, num_tokens_D: Array) -> PhaseCost | None:
        """Return None: the experts are priced kernel by kernel."""
        return None

    def tile_name(self, shape: ExpertShape, counts_DL: Array) -> str:
        """Return the tile of the up projection, in words."""
        return str(self.expert_tiles(counts_DL, shape.sizes)[0])

    def launches(self, count: float | Array) -> PhaseCost:
        """Price the gaps and the starts of ``count`` kernels in a CUDA graph."""
        c = self.calibration
        seconds = np.asarray(count) * ((c["kernel_gap_us"] + c["kernel_start_us"]) * US)
        return _latency(seconds)

    def stream(self, num_bytes_D: Array) -> PhaseCost:
        """Price bytes that are read or written in order, over the achieved bandwidth."""
        seconds = np.asarray(num_bytes_D, dtype=np.float64) / (
            self.profile.hbm_bandwidth_bytes_per_s * self.calibration["stream_efficiency"]
        )
        zero = np.zeros_like(seconds)
        return PhaseCost(compute_s_D=zero, memory_s_D=seconds, latency_s_D=zero)

    def gather(self, num_bytes_D: Array, access_bytes: float) -> PhaseCost:
        """Price reading rows of ``access_bytes`` at random places: `stream`, slowed by the
        profile's gather curve.
        """
        return self.stream(np.asarray(num_bytes_D) * self.profile.gather_slowdown(access_bytes))

    def gather_sum(self, rows_D: Array, sums_D: Array, row_bytes: Size) -> PhaseCost:
        """Price the combine: a token's rows lie side by side, so everything is a stream."""
        return self.stream((np.asarray(rows_D) + np.asarray(sums_D)) * row_bytes)

    def align(self, rows_D: Array, num_experts: int) -> PhaseCost:
        """Price the plan, without its launches: a counting sort that is linear in the choices."""
        rows = np.asarray(rows_D, dtype=np.float64)
        chained = _latency(rows * (self.calibration["plan_ns_per_row"] * 1e-9))
        moved = self.stream(rows * _PLAN_BYTES)
        return PhaseCost(
            compute_s_D=moved.compute_s_D,
            memory_s_D=moved.memory_s_D,
            latency_s_D=chained.latency_s_D,
        )

    def top_k(self, rows_D: Array, columns: int, k: int, *, scored: bool = True) -> PhaseCost:
        """Price the selection: k rounds of a maximum over the row on the CUDA cores, each of which
        waits for the one before.
        """
        rows = np.asarray(rows_D, dtype=np.float64)
        memory = self.stream(rows * (4.0 * columns + 8.0 * k)).memory_s_D
        lanes = self.profile.num_sms * _CUDA_LANES_PER_SM * self.profile.clock_hz
        rounds = k * self.calibration["route_round_us"] * US
        return PhaseCost(
            compute_s_D=rows * columns * k * self.calibration["route_cycles_per_logit"] / lanes,
            memory_s_D=memory,
            latency_s_D=np.where(rows > 0, rounds, 0.0),
        )

    def limit_groups(self, rows_D: Array, groups: int, per_group: int, kept: int) -> PhaseCost:
        """Price the group scores: two more rounds, and one for each group kept, in the same
        kernel.
        """
        return self.top_k(rows_D, groups, 2 + kept)

    def pairs(self, rows_D: Array, halves: int) -> PhaseCost:
        """Price nothing: the kernel that chooses among pairs adds them up."""
        return _latency(0.0 * np.asarray(rows_D))

    def weighted_logits(self, elements_D: Array, passes: float) -> PhaseCost:
        """Price nothing: noise is drawn where a logit is selected."""
        return _latency(0.0 * np.asarray(elements_D))

    def grouped_gemm(self, load: Load, n: Size, k: Size, gemm: GemmSpec) -> PhaseCost:
        """Price one grouped GEMM tile by tile.

        A GEMM that gathers its rows and leaves them in the plan's order is an up projection, of
        gate and up columns together; every other one multiplies with one matrix per expert.

        Raises:
            ConfigError: Weights would have to be widened, which these kernels do not do.
        """
        if gemm.weight_only:
            raise ConfigError(
                "precision: expected weights in the format of the products, got weight-only ones: "
                "the library moesim-triton does not widen them"
            )
        price = self._logits if gemm.logits else self._tiled
        return by_width(load, n, k, lambda part, n, k: price(part, n, k, gemm))

    def _logits(self, load: Load, n: Size, k: Size, gemm: GemmSpec) -> PhaseCost:
        """Price a gate's logits: programs share the depth where tiles are few, so that the memory
        or the matrix units are busy throughout.
        """
        c = self.calibration
        rows, active = load.rows_D, load.active_D
        rate = self.profile.peak(gemm.fmt) * c["logits_efficiency"]
        moved = self.stream(
            active * (n * k * gemm.weight_bytes)
            + rows * (k * gemm.input_bytes + n * gemm.output_bytes)
        )
        return PhaseCost(
            compute_s_D=2.0 * rows * n * k / rate,
            memory_s_D=moved.memory_s_D,
            latency_s_D=moved.latency_s_D,
        )

    def _tiled(self, load: Load, n: Size, k: Size, gemm: GemmSpec) -> PhaseCost:
        tile = gemm.tile
        up = gemm.gather_inputs and not gemm.scatter_outputs
        element_bytes = float(np.max(gemm.input_bytes))
        counts, shape = load.counts_DL, np.shape(load.rows_D)
        blocks, groups = (
            (load.blocks_D, load.blocks_D / tile.group_m)
            if counts is None
            else (
                (-(-counts // (tile.block_m * height))).sum(axis=-1) for height in (1, tile.group_m)
            )
        )
        work = TileWork(
            form_R=np.full(shape, FORMS.index(form_of(up, element_bytes, tile))),
            tile=tile,
            rows_R=load.rows_D,
            active_R=load.active_D,
            blocks_R=blocks,
            groups_R=groups,
            columns_R=np.broadcast_to(np.asarray(n, dtype=np.float64), shape),
            depth_R=np.broadcast_to(np.asarray(k, dtype=np.float64), shape),
            element_bytes=element_bytes,
            top_k_R=np.broadcast_to(np.asarray(gemm.row_copies, dtype=np.float64), shape),
            warm_bytes_R=gemm.warm_bytes_D,
            scaled=gemm.block_scaled,
        )
        model = TileModel(profile=self.profile, calibration=self.calibration)
        return model.price(work, gemm.fmt)


def _latency(seconds: Array) -> PhaseCost:
    zero = np.zeros_like(seconds)
    return PhaseCost(compute_s_D=zero, memory_s_D=zero, latency_s_D=seconds)
