"""Price kernels on a device that runs tiles in waves over SMs.

A tiled GEMM is priced from what it does: the tiles that its expert histogram needs, the waves they
form, the K-iterations of a tile and what each costs beyond its matrix instructions, and the weight
and activation streams. The parameters are fitted (calibration file ``triton-moe``). The structure
is ours and follows the wave models of Triton and CUTLASS tuning (for example RaMP, arXiv
2604.26039, which prices tiles from the expert histogram).

Shape legend: D devices or rows, L local experts.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.devices.separate import SeparateKernels
from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.work import GemmSpec, GemmWork
from moesim.hardware import Profile

Array = np.ndarray
_CUDA_LANES_PER_SM = 128
_WIDEN_OPERATIONS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WaveKernels(SeparateKernels):
    """Primitives of one GPU: grouped GEMM, top-k, stream, gather, launch."""

    profile: Profile
    calibration: Calibration

    rows_may_differ: ClassVar[bool] = True

    def launches(self, count: float | Array) -> PhaseCost:
        """Price ``count`` dependent launches that do nothing else.

        Inside a graph a launch takes the calibrated cycles, since front ends run on the chip's
        clock; they also hold what a kernel needs to start and to drain, so that they are more than
        the profile's time between two empty kernels. Without graphs (`Profile.eager`) a launch is
        no faster than the host, whose time no kernel is taken to hide: an upper bound, reached
        where kernels are shorter than their launch.
        """
        each = self.calibration["kernel_launch_cycles"] / self.profile.clock_hz
        if self.profile.eager and self.profile.host_launch_s is not None:
            each = max(each, self.profile.host_launch_s)
        latency = np.asarray(count) * each
        return PhaseCost(
            compute_s_D=np.zeros_like(latency),
            memory_s_D=np.zeros_like(latency),
            latency_s_D=latency,
        )

    def stream(self, num_bytes_D: Array) -> PhaseCost:
        """Price reading and writing bytes in order: bytes over the achieved
        activation bandwidth.
        """
        seconds = np.asarray(num_bytes_D, dtype=np.float64) / self._bandwidth(
            "activation_bandwidth_efficiency"
        )
        return PhaseCost(
            compute_s_D=np.zeros_like(seconds),
            memory_s_D=seconds,
            latency_s_D=np.zeros_like(seconds),
        )

    def gather(self, num_bytes_D: Array, access_bytes: float) -> PhaseCost:
        """Price reading rows of ``access_bytes`` at random places: `stream`, slowed by the
        profile's gather curve.
        """
        return self.stream(np.asarray(num_bytes_D) * self.profile.gather_slowdown(access_bytes))

    def gather_sum(self, rows_D: Array, sums_D: Array, row_bytes: Size) -> PhaseCost:
        """Price weighted sums of rows: each row is gathered, each sum is written in order."""
        read = np.asarray(rows_D) * row_bytes * self.profile.gather_slowdown(row_bytes)
        return self.stream(read + np.asarray(sums_D) * row_bytes)

    def align(self, rows_D: Array, num_experts: int) -> PhaseCost:
        """Price sorting choices by expert, without its launches: each 4-byte choice is read twice,
        and its 4-byte position written.
        """
        return self.stream(np.asarray(rows_D) * 12.0)

    def limit_groups(self, rows_D: Array, groups: int, per_group: int, kept: int) -> PhaseCost:
        """Price one more kernel over all logits: the two best of each group, the best groups, and a
        mask.
        """
        return sequence(
            self.top_k(rows_D, groups * per_group, 2), self.launches(1.0 * (np.asarray(rows_D) > 0))
        )

    def pairs(self, rows_D: Array, halves: int) -> PhaseCost:
        """Price nothing: the kernel that chooses among pairs adds them up."""
        return self.launches(0.0 * np.asarray(rows_D))

    def weighted_logits(self, elements_D: Array, passes: float) -> PhaseCost:
        """Price passes over float32 logits, each a kernel of its own that reads and writes every
        logit.
        """
        elements = np.asarray(elements_D, dtype=np.float64)
        return sequence(
            self.stream(passes * 8.0 * elements), self.launches(passes * (elements > 0))
        )

    def top_k(self, rows_D: Array, columns: int, k: int, *, scored: bool = True) -> PhaseCost:
        """Price top-k of float32 rows in one kernel, which includes their softmax.

        It reads 4 bytes per logit and writes 8 per choice. The selection is k rounds of a maximum
        over the row on the CUDA cores (one comparison per lane and clock), see
        `moesim_kernels.ops.router`.
        """
        rows = np.asarray(rows_D, dtype=np.float64)
        memory = self.stream(rows * (4.0 * columns + 8.0 * k)).memory_s_D
        lanes = self.profile.num_sms * _CUDA_LANES_PER_SM * self.profile.clock_hz
        return PhaseCost(
            compute_s_D=rows * columns * k / lanes,
            memory_s_D=memory,
            latency_s_D=np.zeros_like(memory),
        )

    def grouped_gemm(self, load: Load, n: Size, k: Size, gemm: GemmSpec) -> PhaseCost:
        """Price one grouped GEMM: (count x k) times (k x n) for each expert.

        Per K-iteration a tile takes its matrix instructions, 2 BM BN BK over the SM's FLOP per
        clock, plus ``iteration_overhead_cycles`` (on compute capability 10 with BM >= 64 and no
        block scales the instruction is asynchronous: the larger of the two). Compute is the larger
        of two times: a throughput time, ceil(tiles / SMs) waves of full tiles, and a latency time,
        ceil(tiles / (SMs x CTAs per SM)) waves of chains whose iterations wait for their loads.

        Memory is the active experts' weights plus the activations, each over its own achieved
        bandwidth; rows of the weight block shorter than 128 bytes use the bandwidth less well. The
        smaller of compute and memory overlaps only in part. Blocks that hold nothing, and blocks of
        masked choices, which only write zeros, cost a few cycles each. A depth that is not a
        multiple of 16 loses aligned loads and costs ``misaligned_factor``.

        Gathered or scattered rows move as slowly as the profile's gather curve says for a whole
        row, of which every K-iteration reads the next piece; what short pieces cost is in the
        fitted parameters. Where experts differ in width, every tile counts its own expert's
        iterations: waves are those of equally many tiles of mean depth, and no wave is shorter than
        the longest tile.

        Args:
            load: What the experts compute, with the row blocks of this tile's block_m.
            n: Columns of the result; where experts differ, ndarray of shape (D, L).
            k: Depth; where experts differ, ndarray of shape (D, L).
            gemm: Tile, formats, and where the operands lie; widening a weight costs two operations
                on the CUDA lanes in every K-iteration (assumed, no measured rows).

        Returns:
            PhaseCost of shape (D,).
        """
        c, p = self.calibration, self.profile
        work = GemmWork.of(load, n, k, gemm.tile)
        tiles, iterations, longest = work.tiles_D, work.iterations_D, work.longest_D

        flops_per_clock = p.peak(gemm.fmt) / (p.num_sms * p.clock_hz) * c["mma_efficiency"]
        mma = 2.0 * gemm.tile.block_m * gemm.tile.block_n * gemm.tile.block_k / flops_per_clock
        overhead = c[
            "block_scale_iteration_cycles" if gemm.block_scaled else "iteration_overhead_cycles"
        ]
        if gemm.weight_only:
            overhead = (
                overhead
                + _WIDEN_OPERATIONS * gemm.tile.block_n * gemm.tile.block_k / _CUDA_LANES_PER_SM
            )
        tcgen05 = p.compute_capability is not None and 10.0 <= p.compute_capability < 11.0
        # block scales are applied to the accumulator after every K-iteration, so the iteration must
        # wait for its product
        asynchronous = np.logical_and(
            tcgen05 and not gemm.block_scaled, np.asarray(gemm.tile.block_m) >= 64
        )
        iteration = np.where(asynchronous, np.maximum(mma, overhead), mma + overhead)

        warm = gemm.warm_bytes_D
        # weights that fit into half of L2 are warm; beyond it the share falls with the square
        hot = (
            0.0 if warm is None else np.minimum(1.0, 0.5 * p.l2_bytes / np.maximum(warm, 1.0)) ** 2
        )
        wait = c["load_latency_cycles"] * (1.0 - c["warm_latency_saving"] * hot)
        # a software pipeline hides the loads behind the iterations of its stages
        chain = np.maximum(wait / np.maximum(gemm.tile.num_stages - 1, 1), iteration)
        ctas = gemm.tile.ctas_per_sm(gemm.input_bytes, p.shared_memory_per_sm_bytes)
        throughput = np.ceil(tiles / p.num_sms) * (
            iterations * iteration + c["tile_overhead_cycles"]
        )
        latency = np.ceil(tiles / (p.num_sms * ctas)) * (
            iterations * chain + c["tile_overhead_cycles"] + wait
        )
        if longest is not iterations:
            latency = np.maximum(
                latency, (tiles > 0) * (longest * chain + c["tile_overhead_cycles"] + wait)
            )
        idle = load.idle_blocks_D * work.columns_D * c["idle_block_cycles"]
        masked = (
            np.ceil(load.masked_rows_D / gemm.tile.block_m)
            * work.columns_D
            * c["masked_block_cycles"]
        )
        compute = (np.maximum(throughput, latency) + (idle + masked) / p.num_sms) / p.clock_hz

        short = np.where(
            gemm.tile.block_k * gemm.weight_bytes < 127.0, c["short_row_efficiency"], 1.0
        )
        weights = work.weights_D * gemm.weight_bytes
        # weights that stay in L2 between calls stream at the working set's rate
        if gemm.warm_bytes_D is not None:
            weights = weights / p.cache_speed_up(gemm.warm_bytes_D)
        read = p.gather_slowdown(k * gemm.input_bytes) if gemm.gather_inputs else 1.0
        written = p.gather_slowdown(n * gemm.output_bytes) if gemm.scatter_outputs else 1.0
        activations = work.inputs_D * (gemm.input_bytes * read) + work.outputs_D * (
            gemm.output_bytes * written
        )
        memory = weights / (self._bandwidth("weight_bandwidth_efficiency") * short)
        memory = memory + activations / self._bandwidth("activation_bandwidth_efficiency")
        slower = 1.0 + work.misaligned_D * (c["misaligned_factor"] - 1.0)
        return PhaseCost(
            compute_s_D=slower * compute,
            memory_s_D=slower * memory,
            latency_s_D=slower * c["overlap_loss"] * np.minimum(compute, memory),
        )

    def _bandwidth(self, efficiency: str) -> float:
        return self.profile.hbm_bandwidth_bytes_per_s * self.calibration[efficiency]
