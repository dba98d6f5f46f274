"""What is compiled ahead of time: every kernel, the GEMMs with every block of rows and format `tile_config` ships."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from moesim_kernels.fp8 import BLOCK_STEP, SMALLEST, _quantise_blocks_kernel, _quantise_rows_kernel
from moesim_kernels.gate_logits import MOST_PARTED, MOST_PARTS, _gate_logits_kernel, gate_tile
from moesim_kernels.gpu_memory import BLOCK, WARPS, _gather_kernel, _stream_kernel
from moesim_kernels.grouped_down import MOST_COLUMNS, UNROLLED, _combine_kernel
from moesim_kernels.grouped_linear import _linear_kernel, linear_tile
from moesim_kernels.grouped_outer import _outer_kernel, outer_tile
from moesim_kernels.grouped_swiglu import _swiglu_kernel, keeps_registers
from moesim_kernels.hopper_tiles import TILES
from moesim_kernels.operands import LARGEST, SCALE_BLOCK
from moesim_kernels.persistent import (
    DESCRIBED_ROWS,
    _persistent_linear_kernel,
    _persistent_swiglu_kernel,
    gathers_by_descriptor,
    gemm_path,
)
from moesim_kernels.plan import (
    _offsets_kernel,
    _prefix_kernel,
    _rank_kernel,
    _scatter_kernel,
    _sparse_offsets_kernel,
    _sparse_rank_kernel,
    _sparse_tiles_kernel,
    _tile_map_kernel,
)
from moesim_kernels.plan_kernels import (
    COMPARED,
    COUNTED,
    MOST_EXPERTS,
    SEGMENT,
    SUM_E,
    SUM_S,
    SUMMED,
    _count_kernel,
    _place_kernel,
    _sum_kernel,
)
from moesim_kernels.product_key import BLOCK_K, BLOCK_R, BLOCK_S, _half_logits_kernel, _pair_kernel
from moesim_kernels.product_key import WARPS as PRODUCT_WARPS
from moesim_kernels.router import MAX_OPTIONS_ROW, MAX_ROW, _route_kernel, route_warps
from moesim_kernels.runtime import tl
from moesim_kernels.swiglu_grad import BLOCK_I, _swiglu_grad_kernel
from moesim_kernels.tiles import LIMITS, Limits, Tile, tile_config
from moesim_kernels.tiny_expert import BLOCK_H, BLOCK_P, _tiny_in_kernel, _tiny_out_kernel
from moesim_kernels.wide_swiglu import _wide_swiglu_kernel

#: formats of the grouped GEMMs: name -> Triton's name and bits; the last two with a float32 scale for each block
FORMATS = {"bf16": ("bf16", 16), "f16": ("fp16", 16), "f32": ("fp32", 32), "fp8": ("fp8e4nv", 8),
           "fp8_fnuz": ("fp8e4b8", 8)}
_FP8 = {"fp8": "float8_e4m3fn", "fp8_fnuz": "float8_e4m3fnuz"}
_PLAIN = ("bf16", "f16", "f32")
_OPERANDS = {"x_ptr", "a_ptr", "b_ptr", "w_ptr", "y_ptr", "out_ptr", "values_ptr", "keys_ptr",
             "saved_ptr", "gate_up_ptr", "z_ptr", "d_gate_up_ptr", "weighted_ptr"}
_FLOAT32 = {"logits_ptr", "weights_ptr", "source_ptr", "target_ptr", "act_ptr", "scales_ptr",
            "bias_ptr", "d_weights_ptr", "queries_ptr"}
# A launch makes sizes of 1 compile-time constants, which not every expression survives.
_ONES = dict.fromkeys(("num_tokens", "num_experts", "num_groups", "num_limited_groups", "top_k", "max_tiles",
                       "num_elements", "num_rows", "num_columns", "hidden", "width", "inner", "num_pairs",
                       "num_segments", "num_neurons"), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kernel, specialised.

    Attributes:
        kernel: Name, with what it is specialised for.
        dtype: Format of its operands, one of `FORMATS`, or "i32".
        tile: Sizes of what a program takes, such as "128x128x64".
        function: The kernel.
        constexprs: Its compile-time constants.
        num_warps: Warps of a program.
        num_stages: Stages of the software pipeline; None for Triton's default.
        fp_fusion: Whether a product and a sum may become one instruction.
        supported: Whether the target's hardware has the format.
    """

    kernel: str
    dtype: str
    tile: str
    function: Any
    constexprs: dict
    num_warps: int = 4
    num_stages: int | None = None
    fp_fusion: bool = True
    supported: bool = True

    @property
    def options(self) -> dict[str, int]:
        """Launch options for the compiler."""
        stages = {} if self.num_stages is None else {"num_stages": self.num_stages}
        return {"num_warps": self.num_warps} | stages | ({} if self.fp_fusion else {"enable_fp_fusion": False})

    def signature(self) -> dict[str, str]:
        """Triton's type of each parameter."""
        return {name: self._type(name) for name in self.function.arg_names}

    def _type(self, name: str) -> str:
        if name in self.constexprs:
            return "constexpr"
        if name.endswith("_desc"):
            rows = {"a_desc": "BLOCK_M", "w_desc": "BLOCK_N"}.get(name)
            block = [self.constexprs[rows] if rows else 1, self.constexprs["BLOCK_K"]]
            if self.constexprs.get("DESCRIBED"):
                block = [1, 2, *block]
            return f"tensordesc<{FORMATS[self.dtype][0]}{block}>"
        if not name.endswith("_ptr"):
            return "fp32" if name in ("inverse_temperature", "noise_std") else "i32"
        if name == "out_ptr" and self.constexprs.get("GATHER") and not self.constexprs.get("TRANSPOSED"):
            return "*fp32"
        if self.dtype in _FP8 and name == ("x_ptr" if "values_ptr" in self.function.arg_names else "out_ptr"):
            return "*bf16"
        if name in _OPERANDS:
            return f"*{FORMATS[self.dtype][0]}"
        return "*fp32" if name in _FLOAT32 or name.endswith("_scales_ptr") else "*i32"


def _dot(dtype: str) -> Any:
    return {"bf16": tl.bfloat16, "f16": tl.float16, "f32": tl.float32, "fp8": tl.float8e4nv,
            "fp8_fnuz": tl.float8e4b8}[dtype]


def _outer(name: str, dtype: str, limits: Limits, a_top_k: int, b_top_k: int, size: int = 4096) -> Case:
    tile = outer_tile(size, size, FORMATS[dtype][1], limits)
    return Case(kernel=name, dtype=dtype, tile=f"{tile.block_n}x{tile.block_c}x{tile.block_r}", function=_outer_kernel,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
                constexprs={"A_TOP_K": a_top_k, "B_TOP_K": b_top_k, "DOT": _dot(dtype), "BLOCK_R": tile.block_r,
                            "BLOCK_N": tile.block_n, "BLOCK_C": tile.block_c})


def _gemm(limits: Limits, function: Any, block_m: int, dtype: str, columns: int = 4096, tile: Tile | None = None,
          **flags: bool) -> Case:
    bits, scaled = FORMATS[dtype][1], dtype in _FP8
    accumulators = 1 if "linear" in function.__name__ else 2
    gathered = flags.get("GATHER", False) and not flags.get("TRANSPOSED", False)
    if tile is None and flags.get("TRANSPOSED"):
        tile = linear_tile(block_m, columns, operand_bits=bits, result_bits=bits, block_m=block_m, transposed=True,
                           limits=limits)
    tile = tile or tile_config(block_m, columns, operand_bits=bits, result_bits=32 if gathered else max(bits, 16),
                               num_accumulators=accumulators, limits=limits)
    constexprs = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": 4,
                  "DOT": _dot(dtype)} | flags
    if "SAVED" in function.arg_names and not flags.get("SAVED"):
        constexprs |= {"SAVED": False, "saved_ptr": None}
    if function is _linear_kernel:
        constexprs.setdefault("TRANSPOSED", False)
    if "SCALED" in function.arg_names:
        constexprs["SCALED"] = scaled
    if "TOP_K" in function.arg_names:
        constexprs["TOP_K"] = 8
    unused = {name for name in function.arg_names if name.endswith("_scales_ptr") and not scaled}
    if "GATHER_ROWS" in flags:
        unused.add("x_ptr" if flags["GATHER_ROWS"] else "x_desc")
    if "DESCRIBED" in flags:
        unused.add("w_ptr" if flags["DESCRIBED"] else "w_desc")
    name = "swiglu" if accumulators == 2 else "logits" if gathered else "linear"
    if "persistent" in function.__name__ or flags.get("DESCRIBED"):
        name = f"{'described' if 'DESCRIBED' in flags else 'persistent'} {name}"
    elif not flags.get("EVEN_H") and not flags.get("EVEN_K"):
        name = f"{name} masked"
    name += " transposed" if flags.get("TRANSPOSED") else " saved" if flags.get("SAVED") else ""
    return Case(kernel=name, dtype=dtype, tile=f"{tile.block_m}x{tile.block_n}x{tile.block_k}", function=function,
                constexprs=constexprs | dict.fromkeys(unused), num_warps=tile.num_warps, num_stages=tile.num_stages,
                supported=not scaled or limits.fp8 == _FP8[dtype])


def _persistent(target: str, limits: Limits) -> Iterator[Case]:
    if gemm_path(target, element_bytes=2, depth=4096) != "descriptors":
        return
    gather = gathers_by_descriptor(target)
    for dtype in ("bf16", "f16", "fp8"):
        for block_m in (16, 32, 64, 128):
            if gather or dtype == "fp8":
                yield _gemm(limits, _persistent_swiglu_kernel, block_m, dtype, GATHER_ROWS=gather)
            elif block_m >= DESCRIBED_ROWS:
                for saved in (False, True):
                    yield _gemm(limits, _wide_swiglu_kernel, block_m, dtype, DESCRIBED=True, EVEN_H=True, SAVED=saved)
            yield _gemm(limits, _persistent_linear_kernel, block_m, dtype)


def _hopper(limits: Limits) -> Iterator[Case]:
    """The tiles that the rule for Hopper chooses, with pointers or descriptors as it does."""
    for dtype in ("bf16", "f16"):
        for block_m, (up, down) in TILES.items():
            if block_m >= DESCRIBED_ROWS:
                yield _gemm(limits, _wide_swiglu_kernel, block_m, dtype, tile=up, DESCRIBED=True, EVEN_H=True)
                yield _gemm(limits, _persistent_linear_kernel, block_m, dtype, tile=down)
            else:
                yield _gemm(limits, _wide_swiglu_kernel, block_m, dtype, tile=up, DESCRIBED=False, EVEN_H=True)
                yield _gemm(limits, _linear_kernel, block_m, dtype, tile=down, EVEN_K=True, GATHER=False)
            described = block_m >= DESCRIBED_ROWS
            yield _gemm(limits, _wide_swiglu_kernel, block_m, dtype, tile=up, DESCRIBED=described, EVEN_H=True,
                        SAVED=True)
            yield _gemm(limits, _linear_kernel, block_m, dtype, tile=down, EVEN_K=True, GATHER=True, TRANSPOSED=True)


def _scaled(limits: Limits) -> Iterator[Case]:
    for dtype, name in _FP8.items():
        for block_m in (16, 32, 64, 128):
            yield _gemm(limits, _swiglu_kernel, block_m, dtype, EVEN_H=True)
            yield _gemm(limits, _linear_kernel, block_m, dtype, EVEN_K=True, GATHER=False)
        yield _gemm(limits, _swiglu_kernel, 128, dtype, EVEN_H=False)
        yield _gemm(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=False)
        numbers = {"LARGEST": LARGEST[getattr(torch, name)], "SMALLEST": SMALLEST}
        for kernel, function, tile, sizes in (
                ("quantise rows", _quantise_rows_kernel, "32x128", {"BLOCK_R": 32, "BLOCK_C": SCALE_BLOCK}),
                ("quantise blocks", _quantise_blocks_kernel, f"{BLOCK_STEP}x128", {"BLOCK": SCALE_BLOCK,
                                                                                   "STEP": BLOCK_STEP})):
            yield Case(kernel=kernel, dtype=dtype, tile=tile, function=function, constexprs=numbers | sizes,
                       supported=limits.fp8 == name)


def _gemms(target: str, limits: Limits) -> Iterator[Case]:
    for dtype in _PLAIN:
        up, flags = (_swiglu_kernel, {}) if dtype == "f32" else (_wide_swiglu_kernel, {"DESCRIBED": False})
        for block_m in (16, 32, 64, 128):
            yield _gemm(limits, up, block_m, dtype, EVEN_H=True, **flags)
            if flags and not gathers_by_descriptor(target) and keeps_registers(target, block_m, described=False):
                yield _gemm(limits, up, block_m, dtype, EVEN_H=True, SAVED=True, **flags)
            yield _gemm(limits, _linear_kernel, block_m, dtype, EVEN_K=True, GATHER=False)
        yield _gemm(limits, up, 128, dtype, EVEN_H=False, **flags)
        yield _gemm(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=False)
        yield _gemm(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=True)
        yield _outer("outer gate up", dtype, limits, 1, 8)
        yield _outer("outer down", dtype, limits, 8, 1)
        for block_m in (16, 32, 64, 128):
            yield _gemm(limits, _linear_kernel, block_m, dtype, EVEN_K=True, GATHER=True, TRANSPOSED=True)
        yield _gemm(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=True, TRANSPOSED=True)
        yield Case(kernel="swiglu grad", dtype=dtype, tile=f"{BLOCK_I}", function=_swiglu_grad_kernel,
                   constexprs={"BLOCK_I": BLOCK_I})
    for columns in (16, 64):
        yield _gemm(limits, _wide_swiglu_kernel, 128, "bf16", columns, EVEN_H=True, DESCRIBED=False)


def _gate(limits: Limits) -> Iterator[Case]:
    for dtype in _PLAIN:
        for tokens, experts in ((16, 256), (256, 256), (2048, 64), (2048, 256)):
            block_t, block_e, block_k, warps, stages = gate_tile(tokens, experts, FORMATS[dtype][1] // 8, limits)
            for even in (True, False):
                yield Case(kernel=f"gate logits{'' if even else ' masked'}", dtype=dtype,
                           tile=f"{block_t}x{block_e}x{block_k}", function=_gate_logits_kernel,
                           constexprs={"DOT": _dot(dtype), "EVEN": even, "BLOCK_T": block_t, "BLOCK_E": block_e,
                                       "BLOCK_K": block_k}, num_warps=warps, num_stages=stages)


def _product() -> Iterator[Case]:
    for dtype in _PLAIN:
        for parts in (1, 4):
            yield Case(kernel=f"product logits of {parts}", dtype=dtype, tile=f"{BLOCK_R}x{BLOCK_S}x{BLOCK_K}",
                       function=_half_logits_kernel,
                       constexprs={"PARTS": parts, "BLOCK_R": BLOCK_R, "BLOCK_S": BLOCK_S, "BLOCK_K": BLOCK_K},
                       num_warps=PRODUCT_WARPS)
    for rows, best in ((512, 2), (8, 16), (1, 64)):
        yield Case(kernel="product pairs", dtype="f32", tile=f"{rows}x{best * best}", function=_pair_kernel,
                   constexprs={"BEST": best, "FOUND": best, "BLOCK_R": rows, "BLOCK_B": best, "BLOCK_F": best})


def _route(name: str, groups: int, lanes: int, *, rows: int, top_k: int, sigmoid: bool, full: bool = False,
           parts: int = 1, mapped: bool = False) -> Case:
    constexprs = {"SIGMOID": sigmoid, "GROUPED": groups > 1, "BIASED": full, "NOISY": full, "COUNTED": full,
                  "PARTS": parts, "BLOCK_T": rows, "BLOCK_G": groups, "BLOCK_S": lanes, "BLOCK_K": top_k}
    constexprs |= {"ASCENDING": mapped, "MAPPED": mapped} | ({} if mapped else {"kept_ptr": None})
    if not full:
        constexprs |= {"bias_ptr": None, "counts_ptr": None}
    return Case(kernel=name, dtype="f32", tile=f"{rows}x{groups * lanes}", function=_route_kernel,
                constexprs=constexprs, num_warps=route_warps(groups * lanes), fp_fusion=not full)


def _gathers() -> Iterator[Case]:
    for columns in (8, 1024):
        yield Case(kernel="gather", dtype="f32", tile=f"{BLOCK // columns}x{columns}", function=_gather_kernel,
                   constexprs={"BLOCK_R": BLOCK // columns, "BLOCK_C": columns}, num_warps=WARPS)


def _tiny() -> Iterator[Case]:
    for dtype in _PLAIN:
        # An expert of one neuron makes its width a compile-time constant.
        for width in ({}, {"width": 1}):
            size = " of 1 neuron" if width else ""
            for gated in (True, False):
                yield Case(kernel=f"tiny expert in {'swiglu' if gated else 'gelu'}{size}", dtype=dtype,
                           tile=f"{BLOCK_P}x{BLOCK_H}", function=_tiny_in_kernel,
                           constexprs={"GATED": gated, "BLOCK_P": BLOCK_P, "BLOCK_H": BLOCK_H} | width)
            yield Case(kernel=f"tiny expert out{size}", dtype=dtype, tile=f"{BLOCK_P}x{BLOCK_H}",
                       function=_tiny_out_kernel, constexprs={"BLOCK_P": BLOCK_P, "BLOCK_H": BLOCK_H} | width)


def _others() -> Iterator[Case]:
    for top_k in (8, 64):
        yield Case(kernel=f"combine {top_k}", dtype="bf16", tile="2x1024", function=_combine_kernel,
                   constexprs={"TOP_K": top_k, "UNROLLED": top_k <= UNROLLED, "BLOCK_T": 2, "BLOCK_H": MOST_COLUMNS})
    yield _route("route softmax", 1, 256, rows=16, top_k=8, sigmoid=False)
    yield _route("route sigmoid groups", 8, 32, rows=16, top_k=8, sigmoid=True)
    yield _route("route softmax of parts", 1, 64, rows=4, top_k=8, sigmoid=False, parts=MOST_PARTS)
    yield _route("route softmax of parts", 1, MOST_PARTED, rows=1, top_k=8, sigmoid=False, parts=4)
    yield _route("route softmax of kept groups", 1, 256, rows=4, top_k=8, sigmoid=False, mapped=True)
    yield _route("route sigmoid groups of parts", 8, 32, rows=4, top_k=8, sigmoid=True, parts=4)
    yield _route("route softmax", 1, MAX_ROW, rows=1, top_k=8, sigmoid=False)
    yield _route("route softmax noise bias counts", 1, MAX_OPTIONS_ROW, rows=1, top_k=8, sigmoid=False, full=True)
    yield _route("route sigmoid groups noise bias counts", 8, 32, rows=8, top_k=8, sigmoid=True, full=True)
    yield Case(kernel="stream", dtype="f32", tile=f"{BLOCK}", function=_stream_kernel, constexprs={"BLOCK": BLOCK},
               num_warps=WARPS)
    yield from _gathers()
    yield from _tiny()
    yield from _product()
    for counts, bins in (("none", 256), ("rows", 256), ("sums", MOST_EXPERTS)):
        yield Case(kernel=f"plan place {counts}", dtype="i32", tile=f"{SEGMENT}x{bins}", function=_place_kernel,
                   constexprs={"COUNTS": counts, "BLOCK_M": 128, "SEGMENT": SEGMENT, "COMPARED": COMPARED,
                               "COUNTED": COUNTED, "BINS": bins, "BLOCK_S": max(SUMMED // bins, 1)}, num_warps=8)
    for name, tile, function, constexprs, warps in (
            ("plan count", f"{SEGMENT}x{MOST_EXPERTS}", _count_kernel, {"SEGMENT": SEGMENT, "BINS": MOST_EXPERTS}, 4),
            ("plan sum", f"{SUM_S}x{SUM_E}", _sum_kernel, {"BINS": 256, "BLOCK_S": SUM_S, "BLOCK_E": SUM_E}, 8),
            ("plan rank", "128x128", _rank_kernel, {"BLOCK": 128, "CHUNKS": 8}, 8),
            ("plan prefix", "64x64", _prefix_kernel, {"BLOCK_S": 64, "BLOCK_E": 64}, 4),
            ("plan offsets", "4096", _offsets_kernel, {"BLOCK_M": 128, "BLOCK": 4096}, 4),
            ("plan scatter", "1024", _scatter_kernel, {"SEGMENT": 1024, "BLOCK": 1024}, 4),
            ("plan sparse rank", "128x128", _sparse_rank_kernel, {"BLOCK": 128}, 8),
            ("plan sparse tiles", "128x128", _sparse_tiles_kernel, {"BLOCK_M": 128, "BLOCK": 128}, 8),
            ("plan sparse offsets", "1024", _sparse_offsets_kernel, {"STEPS": 12, "BLOCK": 1024}, 4),
            ("plan tile map", "1024", _tile_map_kernel, {"STEPS": 9, "BLOCK_M": 128, "BLOCK": 1024}, 4)):
        yield Case(kernel=name, dtype="i32", tile=tile, function=function, constexprs=constexprs, num_warps=warps)


def _smallest(limits: Limits) -> Iterator[Case]:
    """Kernels whose sizes are all 1."""
    for case in (_gemm(limits, _wide_swiglu_kernel, 16, "bf16", EVEN_H=False, DESCRIBED=False),
                 _gemm(limits, _linear_kernel, 16, "bf16", EVEN_K=False, GATHER=True),
                 Case(kernel="combine", dtype="bf16", tile="1x16", function=_combine_kernel,
                      constexprs={"TOP_K": 1, "UNROLLED": True, "BLOCK_T": 1, "BLOCK_H": 16}),
                 Case(kernel="stream", dtype="f32", tile=f"{BLOCK}", function=_stream_kernel,
                      constexprs={"BLOCK": BLOCK}),
                 _outer("outer", "bf16", limits, 1, 1, 1),
                 Case(kernel="tiny_in", dtype="bf16", tile="16x1", function=_tiny_in_kernel,
                      constexprs={"GATED": True, "BLOCK_P": BLOCK_P, "BLOCK_H": 1}),
                 Case(kernel="tiny_out", dtype="bf16", tile="16x1", function=_tiny_out_kernel,
                      constexprs={"BLOCK_P": BLOCK_P, "BLOCK_H": 1}),
                 Case(kernel="gather", dtype="f32", tile="1x1", function=_gather_kernel,
                      constexprs={"BLOCK_R": 1, "BLOCK_C": 1}),
                 _route("route", 1, 1, rows=1, top_k=1, sigmoid=True),
                 Case(kernel="gate", dtype="bf16", tile="16x16x64", function=_gate_logits_kernel,
                      constexprs={"DOT": tl.bfloat16, "EVEN": False, "BLOCK_T": 16, "BLOCK_E": 16, "BLOCK_K": 64,
                                  "steps": 1})):
        names = case.function.arg_names
        yield Case(kernel=f"{case.kernel.split()[0]} sizes of 1", dtype=case.dtype, tile=case.tile,
                   function=case.function, num_warps=case.num_warps, num_stages=case.num_stages,
                   fp_fusion=case.fp_fusion,
                   constexprs={name: one for name, one in _ONES.items() if name in names} | case.constexprs)


def cases(target: str) -> list[Case]:
    """Everything that is compiled for ``target``, one of `LIMITS`; kernel, dtype and tile tell cases apart."""
    limits = LIMITS[target]
    hopper = _hopper(limits) if target == "sm_90" else ()
    found = (*_gemms(target, limits), *_scaled(limits), *_persistent(target, limits), *hopper, *_gate(limits),
             *_others(), *_smallest(limits))
    return list({(case.kernel, case.dtype, case.tile): case for case in found}.values())
