"""Price a layer whose experts run in a library that is priced as a whole.

The experts, from tokens on their device to weighted outputs, take what
`moesim.costs.devices.fused_model` says of the library's format. The gate, the packing of tokens and
the shared experts are other kernels, which serving engines launch beside any library: they are
priced as those of SGLang's Triton stack (calibration ``triton-moe``).

Shape legend: D devices or rows, L local experts.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.devices.fused_formats import format_named, format_parameters
from moesim.costs.devices.fused_model import FusedWork, TileRule, fused_parts_R
from moesim.costs.devices.gpu import WaveKernels
from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost
from moesim.costs.shape import ExpertShape

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusedKernels(WaveKernels):
    """Primitives of a GPU whose experts run in one library.

    Attributes:
        library: Calibration of that library; ``calibration`` is that of the kernels beside it.
    """

    library: Calibration

    def experts(self, shape: ExpertShape, load: Load, num_tokens_D: Array) -> PhaseCost:
        """Price the experts as a whole, see `moesim.costs.devices.primitives.Kernels`.

        Raises:
            ConfigError: Experts differ in width, or the library was not measured in the format.
        """
        assert load.widths_DL is None, "records of such libraries refuse experts that differ"
        assert load.counts_DL is not None, "blocks are counted from the histogram"
        rule, parameters = self._format(shape)
        work = FusedWork.of(
            load.counts_DL,
            rule=rule,
            tokens_D=num_tokens_D,
            choices_D=load.rows_D + load.masked_rows_D,
            num_experts=shape.num_experts,
            hidden=shape.hidden,
            width=shape.width,
            num_up=shape.num_up,
            fmt="bfloat16" if shape.fmt == "float16" else shape.fmt,
            weight_bytes=shape.weight_bytes,
            input_bytes=shape.input_bytes,
        )
        busy = load.rows_D > 0
        compute, memory, other = fused_parts_R(work, self.profile, rule, parameters)
        return PhaseCost(
            compute_s_D=busy * compute, memory_s_D=busy * memory, latency_s_D=busy * other
        )

    def tile_name(self, shape: ExpertShape, counts_DL: Array) -> str:
        """Return rows x columns of a tile on the busiest device, which is all that is known."""
        rule, _ = self._format(shape)
        rows_D, active_D = counts_DL.sum(axis=-1), (counts_DL > 0).sum(axis=-1)
        busiest = int(rows_D.argmax())
        expected = rows_D.sum() / shape.num_experts
        rows = rule.block_m(float(rows_D[busiest]), float(active_D[busiest]), float(expected))
        return f"{rows}x128"

    def _format(self, shape: ExpertShape) -> tuple[TileRule, dict[str, float]]:
        dtype = format_named(shape.fmt, shape.weight_bytes, block_scaled=shape.block_scaled)
        return format_parameters(self.library, dtype, self.profile)
