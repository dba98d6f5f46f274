"""Describe one kernel with its compile-time constants, as Triton's compiler takes it.

A parameter's type follows from its name and the format of the operands, so that kernels need no
second list of their parameters.
"""

from dataclasses import dataclass
from typing import Any

from moesim_kernels.ops.runtime import tl

#: formats of the grouped GEMMs: name -> Triton's name and bits; the last two have a float32 scale
#: for each block
FORMATS = {
    "bf16": ("bf16", 16),
    "f16": ("fp16", 16),
    "f32": ("fp32", 32),
    "fp8": ("fp8e4nv", 8),
    "fp8_fnuz": ("fp8e4b8", 8),
}
# The 8-bit formats' names in torch. Below: pointers to the operands' format, and to float32.
FP8_NAMES = {"fp8": "float8_e4m3fn", "fp8_fnuz": "float8_e4m3fnuz"}
_OPERANDS = {
    "x_ptr",
    "a_ptr",
    "b_ptr",
    "w_ptr",
    "y_ptr",
    "out_ptr",
    "values_ptr",
    "keys_ptr",
    "saved_ptr",
    "gate_up_ptr",
    "z_ptr",
    "d_gate_up_ptr",
    "weighted_ptr",
}
_FLOAT32 = {
    "logits_ptr",
    "weights_ptr",
    "source_ptr",
    "target_ptr",
    "act_ptr",
    "scales_ptr",
    "bias_ptr",
    "d_weights_ptr",
    "queries_ptr",
}


# Formats without scales.
PLAIN = ("bf16", "f16", "f32")


def dot_format(dtype: str) -> Any:
    """Return the format in which operands of ``dtype`` are multiplied."""
    # Compiled kernels multiply in the operands' own format; only the interpreter casts.
    return {
        "bf16": tl.bfloat16,
        "f16": tl.float16,
        "f32": tl.float32,
        "fp8": tl.float8e4nv,
        "fp8_fnuz": tl.float8e4b8,
    }[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kernel, specialized.

    Attributes:
        kernel: Name of the kernel, with what it is specialized for.
        dtype: Number format of its operands, one of `FORMATS`, or "i32".
        tile: Sizes of what a program takes, such as "128x128x64".
        function: Function of the kernel.
        constexprs: Compile-time constants by parameter name.
        num_warps: Number of warps in a program.
        num_stages: Number of stages of the software pipeline; None for Triton's default.
        fp_fusion: Whether a product and a sum may become one instruction.
        early: Whether it is launched before the kernel in front of it has ended.
        supported: Whether the hardware of the target has the format.
    """

    kernel: str
    dtype: str
    tile: str
    function: Any
    constexprs: dict
    num_warps: int = 4
    num_stages: int | None = None
    fp_fusion: bool = True
    early: bool = False
    supported: bool = True

    @property
    def options(self) -> dict[str, int]:
        """The launch options for the compiler."""
        stages = {} if self.num_stages is None else {"num_stages": self.num_stages}
        return (
            {"num_warps": self.num_warps}
            | stages
            | ({} if self.fp_fusion else {"enable_fp_fusion": False})
            | ({"launch_pdl": True} if self.early else {})
        )

    def signature(self) -> dict[str, str]:
        """Return Triton's type of each parameter."""
        return {name: self._type(name) for name in self.function.arg_names}

    def _type(self, name: str) -> str:
        if name in self.constexprs:
            return "constexpr"
        if name.endswith("_desc"):
            # A descriptor's type contains its block; gathers take single rows.
            rows = {"a_desc": "BLOCK_M", "w_desc": "BLOCK_N"}.get(name)
            block = [self.constexprs[rows] if rows else 1, self.constexprs["BLOCK_K"]]
            if self.constexprs.get("DESCRIBED"):
                # Gate rows and up rows are an axis of their own, below the experts.
                block = [1, 2, *block]
            return f"tensordesc<{FORMATS[self.dtype][0]}{block}>"
        if not name.endswith("_ptr"):
            return "fp32" if name in ("inverse_temperature", "noise_std") else "i32"
        if name == "missing_ptr":
            return "*i1"
        # Gate logits are stored in float32.
        transposed = self.constexprs.get("TRANSPOSED")
        if name == "out_ptr" and self.constexprs.get("GATHER") and not transposed:
            return "*fp32"
        # Gradients are added up in float32.
        if name == "out_ptr" and self.constexprs.get("ADDED"):
            return "*fp32"
        # Quantizers read bfloat16, and scaled products store it.
        if self.dtype in FP8_NAMES and name == (
            "x_ptr" if "values_ptr" in self.function.arg_names else "out_ptr"
        ):
            return "*bf16"
        if name in _OPERANDS:
            return f"*{FORMATS[self.dtype][0]}"
        return "*fp32" if name in _FLOAT32 or name.endswith("_scales_ptr") else "*i32"
