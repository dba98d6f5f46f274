"""Price kernels on a device whose matrix units are systolic arrays: a TPU.

A grouped GEMM is priced as a Pallas kernel of the MegaBlox kind (JAX,
jax/experimental/pallas/ops/tpu/megablox/gmm.py, after Gale et al. 2022, arXiv 2211.15841): a grid
over column blocks, row tiles and depth, one step after another, while the blocks of the next step
are loaded from HBM to VMEM. Partial tiles are multiplied in full and masked. Time is the larger of
what the matrix units take and what HBM takes: the roofline of a pipelined kernel (Austin et al.
2025, How to Scale Your Model, chapters 1 and 2).

The project knows no measured TPU rows. The efficiencies are assumed (calibration file
``tpu-assumed``), prices have level ``none``, and their interval is a factor of 1.5 either way,
which is also assumed.

Shape legend: D devices, L local experts.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.devices.separate import SeparateKernels
from moesim.costs.load import Load, Size
from moesim.costs.phase import PhaseCost, sequence
from moesim.costs.work import GemmSpec
from moesim.errors import ConfigError
from moesim.hardware import Profile

Array = np.ndarray
#: an array is laid out in tiles of 8 sublanes x 128 lanes of 4 bytes; narrower formats pack more
#: rows into a sublane (JAX documentation, Pallas TPU, array layouts)
_SUBLANES, _LANES = 8, 128
#: float32 operations of the vector unit per clock and matrix unit: 8 x 128 lanes of 4 units each
#: per 4 MXUs (How to Scale Your Model, chapter 2, appendix A)
_VECTOR_OPERATIONS = 1024.0
#: accumulators are float32, and every block that is loaded has two buffers
_ACCUMULATOR_BYTES, _BUFFERS = 4.0, 2.0
#: operations that widen a weight or apply a block's scale to an accumulator (assumed), and elements
#: of a scale block
_WIDEN_OPERATIONS, _SCALE_OPERATIONS, _SCALE_BLOCK = 2.0, 2.0, 128


def padded(size: Size | Array, multiple: int) -> Array:
    """Round ``size`` up to a multiple, as a matrix unit or a layout does."""
    return -(-np.asarray(size) // multiple) * multiple


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SystolicKernels(SeparateKernels):
    """Primitives of one TPU chip with all its TensorCores: grouped GEMM, top-k, stream, gather,
    launch.
    """

    profile: Profile
    calibration: Calibration

    rows_may_differ: ClassVar[bool] = False

    def launches(self, count: float | Array) -> PhaseCost:
        """Price ``count`` ops of a compiled program, beyond their work: the profile's launch time
        each.
        """
        latency = np.asarray(count, dtype=np.float64) * self.profile.kernel_launch_s
        return PhaseCost(
            compute_s_D=np.zeros_like(latency),
            memory_s_D=np.zeros_like(latency),
            latency_s_D=latency,
        )

    def stream(self, num_bytes_D: Array) -> PhaseCost:
        """Price reading and writing bytes in order: bytes over the achieved HBM bandwidth."""
        return self._cost(memory=np.asarray(num_bytes_D, dtype=np.float64) / self._bandwidth())

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
        """Price sorting choices by expert: a bitonic network on the vector unit, and 12 bytes per
        choice.

        For 2^p choices the network takes p (p + 1) / 2 rounds, with half a comparison per choice
        and round (Batcher 1968, Sorting networks and their applications).
        """
        rows = np.asarray(rows_D, dtype=np.float64)
        stages = np.ceil(np.log2(np.maximum(rows, 1.0)))
        return self._cost(
            vector=rows * stages * (stages + 1) / 4.0, memory=rows * 12.0 / self._bandwidth()
        )

    def limit_groups(self, rows_D: Array, groups: int, per_group: int, kept: int) -> PhaseCost:
        """Price one more pass over all logits: the two best of each group, the best groups, and a
        mask.
        """
        return sequence(
            self.top_k(rows_D, groups * per_group, 2), self.launches(1.0 * (np.asarray(rows_D) > 0))
        )

    def pairs(self, rows_D: Array, halves: int) -> PhaseCost:
        """Price nothing: the op that chooses among pairs adds them up."""
        return self.launches(0.0 * np.asarray(rows_D))

    def weighted_logits(self, elements_D: Array, passes: float) -> PhaseCost:
        """Price passes that each read and write every float32 logit."""
        elements = np.asarray(elements_D, dtype=np.float64)
        return sequence(
            self.stream(passes * 8.0 * elements), self.launches(passes * (elements > 0))
        )

    def top_k(self, rows_D: Array, columns: int, k: int, *, scored: bool = True) -> PhaseCost:
        """Price top-k of float32 rows: k rounds of a maximum over rows padded to lanes; 4 bytes per
        logit, 8 per choice.
        """
        rows, width = np.asarray(rows_D, dtype=np.float64), padded(columns, _LANES)
        return self._cost(
            vector=rows * width * k, memory=rows * (4.0 * width + 8.0 * k) / self._bandwidth()
        )

    def grouped_gemm(self, load: Load, n: Size, k: Size, gemm: GemmSpec) -> PhaseCost:
        """Price one grouped GEMM: (count x k) times (k x n) for each expert.

        ``n`` and ``k`` are numbers or, where experts differ, ndarrays of shape (D, L). The tile and
        ``warm_bytes_D`` of the GEMM are ignored.

        Compute: a matrix unit of size S holds S x S weights while rows stream past. Shifting in the
        next weights takes S cycles, so fewer than S rows take as long as S rows (Jouppi et al.
        2017, arXiv 1704.04760, section 2). Each group's rows, n and k are rounded up to S: 2 rows n
        k FLOP at the peak times ``mxu_efficiency``. Weights that are widened, and block scales on
        accumulators, take additional vector operations, which are assumed not to overlap.

        Memory: the active experts' weights move once per kernel, since a block of weights stays
        while a group's row tiles pass (the order of gmm's grid); inputs move once per column block,
        since all rows pass for each; outputs move once. A column block is as wide as VMEM allows:
        two buffers of k x columns weights and of S x k inputs, and S x columns float32
        accumulators, in ``vmem_share`` of it. Rows are padded to sublanes and columns to lanes,
        which is how they are laid out.

        Gathered or scattered rows move once more, as slowly as the gather curve says for a row,
        since gmm reads in order.

        Latency: ``step_overhead_s`` elapses for each step (column block x row tile).

        Raises:
            ConfigError: The load has no rows of each expert, or the device has no rate for ``fmt``.
        """
        if load.counts_DL is None:
            raise ConfigError(
                f"{self.profile.name}: a systolic device is priced from the rows of each expert "
                "only"
            )
        size, counts = self.profile.mxu_size, np.asarray(load.counts_DL)
        n_DL, k_DL = np.broadcast_to(n, counts.shape), np.broadcast_to(k, counts.shape)
        tiles, depth, columns = -(-counts // size), padded(k_DL, size), padded(n_DL, size)
        volume = (tiles * depth * columns).sum(axis=-1)
        compute = (
            2.0 * size * volume / (self.profile.peak(gemm.fmt) * self.calibration["mxu_efficiency"])
        )
        vector = np.zeros_like(compute)
        if gemm.weight_only:
            vector = vector + _WIDEN_OPERATIONS * volume
        if gemm.block_scaled:
            scales = (tiles * columns * -(-depth // _SCALE_BLOCK)).sum(axis=-1)
            vector = vector + _SCALE_OPERATIONS * size * scales

        blocks = -(-columns // self._block_columns(depth, gemm.weight_bytes, gemm.input_bytes))
        k_lanes, n_lanes = padded(k_DL, _LANES), padded(n_DL, _LANES)
        weights = ((counts > 0) * k_lanes * n_lanes).sum(axis=-1) * gemm.weight_bytes
        rows = padded(counts, int(_SUBLANES * max(4.0 // float(np.min(gemm.input_bytes)), 1.0)))
        inputs, outputs = (
            (rows * k_lanes * blocks).sum(axis=-1) * gemm.input_bytes,
            (rows * n_lanes).sum(axis=-1),
        )
        slowdown = self.profile.gather_slowdown
        apart = [
            (counts * width * element * slowdown(np.maximum(width, 1) * element)).sum(axis=-1)
            for wanted, width, element in (
                (gemm.gather_inputs, k_DL, float(np.max(gemm.input_bytes))),
                (gemm.scatter_outputs, n_DL, gemm.output_bytes),
            )
            if wanted
        ]
        return self._cost(
            compute=compute,
            vector=vector,
            memory=(weights + inputs + outputs * gemm.output_bytes + sum(apart))
            / self._bandwidth(),
            latency=(tiles * blocks).sum(axis=-1) * self.calibration["step_overhead_s"],
        )

    def _block_columns(self, depth: Array, weight_bytes: float, input_bytes: Size) -> Array:
        """Return the columns of a block that VMEM holds: a multiple of the matrix unit's size, at
        least one.
        """
        size, budget = self.profile.mxu_size, self.profile.l2_bytes * self.calibration["vmem_share"]
        left = budget - _BUFFERS * size * depth * input_bytes
        per_column = _BUFFERS * depth * weight_bytes + size * _ACCUMULATOR_BYTES
        return np.maximum(left // (per_column * size), 1) * size

    def _bandwidth(self) -> float:
        return self.profile.hbm_bandwidth_bytes_per_s * self.calibration["hbm_efficiency"]

    def _cost(
        self,
        *,
        compute: Array | float = 0.0,
        vector: Array | float = 0.0,
        memory: Array | float = 0.0,
        latency: Array | float = 0.0,
    ) -> PhaseCost:
        lanes = self.profile.num_sms * _VECTOR_OPERATIONS * self.profile.clock_hz
        busy, memory, latency = np.broadcast_arrays(
            compute + np.asarray(vector) / lanes, memory, latency
        )
        return PhaseCost(compute_s_D=busy, memory_s_D=memory, latency_s_D=latency)
