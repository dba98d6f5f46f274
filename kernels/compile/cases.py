"""List what is compiled ahead of time: every kernel, and the GEMMs with every block of rows and
format that `tile_config` ships.
"""

from collections.abc import Iterator
from typing import Any

import torch
from moesim_kernels.compile.specialization import FORMATS, FP8_NAMES, Case
from moesim_kernels.ops.fp8 import (
    BLOCK_STEP,
    SMALLEST,
    _quantise_blocks_kernel,
    _quantise_rows_kernel,
)
from moesim_kernels.ops.grouped_down import _combine_kernel
from moesim_kernels.ops.grouped_linear import _linear_kernel
from moesim_kernels.ops.grouped_outer import BLOCK_C, BLOCK_N, BLOCK_R, _outer_kernel
from moesim_kernels.ops.grouped_swiglu import _swiglu_kernel
from moesim_kernels.ops.memory import BLOCK, WARPS, _gather_kernel, _stream_kernel
from moesim_kernels.ops.operands import LARGEST, SCALE_BLOCK
from moesim_kernels.ops.persistent import (
    _persistent_linear_kernel,
    _persistent_swiglu_kernel,
    gathers_by_descriptor,
    gemm_path,
)
from moesim_kernels.ops.plan_kernels import (
    _offsets_kernel,
    _prefix_kernel,
    _rank_kernel,
    _scatter_kernel,
    _sparse_offsets_kernel,
    _sparse_rank_kernel,
    _sparse_tiles_kernel,
    _tile_map_kernel,
)
from moesim_kernels.ops.router_kernel import MAX_OPTIONS_ROW, MAX_ROW, _route_kernel, route_warps
from moesim_kernels.ops.runtime import tl
from moesim_kernels.ops.tiny_expert import BLOCK_H, BLOCK_P, _tiny_in_kernel, _tiny_out_kernel
from moesim_kernels.tiles.tiles import LIMITS, Limits, tile_config

# Formats without scales.
_PLAIN = ("bf16", "f16", "f32")
# A launch turns sizes of 1 into compile-time constants, and not every expression supports that.
_ONES = dict.fromkeys(
    (
        "num_tokens",
        "num_experts",
        "num_groups",
        "num_limited_groups",
        "top_k",
        "max_tiles",
        "num_elements",
        "num_rows",
        "num_columns",
        "hidden",
        "width",
        "inner",
        "num_pairs",
        "num_segments",
        "num_neurons",
    ),
    1,
)


def _dot(dtype: str) -> Any:
    # Compiled kernels multiply in the operands' own format; only the interpreter casts.
    return {
        "bf16": tl.bfloat16,
        "f16": tl.float16,
        "f32": tl.float32,
        "fp8": tl.float8e4nv,
        "fp8_fnuz": tl.float8e4b8,
    }[dtype]


def _outer(name: str, dtype: str, a_top_k: int, b_top_k: int) -> Case:
    return Case(
        kernel=name,
        dtype=dtype,
        tile=f"{BLOCK_N}x{BLOCK_C}x{BLOCK_R}",
        function=_outer_kernel,
        num_stages=2,
        constexprs={
            "A_TOP_K": a_top_k,
            "B_TOP_K": b_top_k,
            "DOT": _dot(dtype),
            "BLOCK_R": BLOCK_R,
            "BLOCK_N": BLOCK_N,
            "BLOCK_C": BLOCK_C,
        },
    )


def _gemm(
    limits: Limits, function: Any, block_m: int, dtype: str, columns: int = 4096, **flags: bool
) -> Case:
    bits, scaled = FORMATS[dtype][1], dtype in FP8_NAMES
    # The names of the kernels tell which of them keep two accumulators.
    accumulators, gathered = 1 if "linear" in function.__name__ else 2, flags.get("GATHER", False)
    tile = tile_config(
        block_m,
        columns,
        operand_bits=bits,
        result_bits=32 if gathered else max(bits, 16),
        num_accumulators=accumulators,
        limits=limits,
    )
    constexprs = {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "GROUP_M": 4,
        "DOT": _dot(dtype),
        "SCALED": scaled,
    } | flags
    # A usual top-k stands for all.
    if "TOP_K" in function.arg_names:
        constexprs["TOP_K"] = 8
    # Pointers that a specialization does not read are None, as in a launch.
    unused = {name for name in function.arg_names if name.endswith("_scales_ptr") and not scaled}
    if "GATHER_ROWS" in flags:
        unused.add("x_ptr" if flags["GATHER_ROWS"] else "x_desc")
    name = "swiglu" if accumulators == 2 else "logits" if gathered else "linear"
    if "persistent" in function.__name__:
        name = f"persistent {name}"
    elif not flags.get("EVEN_H") and not flags.get("EVEN_K"):
        name = f"{name} masked"
    return Case(
        kernel=name,
        dtype=dtype,
        tile=f"{tile.block_m}x{tile.block_n}x{tile.block_k}",
        function=function,
        constexprs=constexprs | dict.fromkeys(unused),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        supported=not scaled or limits.fp8 == FP8_NAMES[dtype],
    )


def _persistent(target: str, limits: Limits) -> Iterator[Case]:
    if gemm_path(target, element_bytes=2, depth=4096) != "descriptors":
        # Targets without the accelerator have no persistent kernels.
        return
    gather = gathers_by_descriptor(target)
    for dtype in ("bf16", "f16", "fp8"):
        for block_m in (16, 32, 64, 128):
            yield _gemm(limits, _persistent_swiglu_kernel, block_m, dtype, GATHER_ROWS=gather)
            yield _gemm(limits, _persistent_linear_kernel, block_m, dtype)


def _scaled(limits: Limits) -> Iterator[Case]:
    for dtype, name in FP8_NAMES.items():
        for block_m in (16, 32, 64, 128):
            yield _gemm(limits, _swiglu_kernel, block_m, dtype, EVEN_H=True)
            yield _gemm(limits, _linear_kernel, block_m, dtype, EVEN_K=True, GATHER=False)
        # The masked variants are compiled for the largest block of rows only.
        yield _gemm(limits, _swiglu_kernel, 128, dtype, EVEN_H=False)
        yield _gemm(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=False)
        numbers = {"LARGEST": LARGEST[getattr(torch, name)], "SMALLEST": SMALLEST}
        for kernel, function, tile, sizes in (
            (
                "quantise rows",
                _quantise_rows_kernel,
                "32x128",
                {"BLOCK_R": 32, "BLOCK_C": SCALE_BLOCK},
            ),
            (
                "quantise blocks",
                _quantise_blocks_kernel,
                f"{BLOCK_STEP}x128",
                {"BLOCK": SCALE_BLOCK, "STEP": BLOCK_STEP},
            ),
        ):
            yield Case(
                kernel=kernel,
                dtype=dtype,
                tile=tile,
                function=function,
                constexprs=numbers | sizes,
                supported=limits.fp8 == name,
            )


def _gemms(limits: Limits) -> Iterator[Case]:
    for dtype in _PLAIN:
        for block_m in (16, 32, 64, 128):
            yield _gemm(limits, _swiglu_kernel, block_m, dtype, EVEN_H=True)
            yield _gemm(limits, _linear_kernel, block_m, dtype, EVEN_K=True, GATHER=False)
        yield _gemm(limits, _swiglu_kernel, 128, dtype, EVEN_H=False)
        yield _gemm(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=False)
        # Gate logits: gathered rows and float32 results.
        yield _gemm(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=True)
        yield _outer("outer gate up", dtype, 1, 8)
        yield _outer("outer down", dtype, 8, 1)
    # Narrow experts get narrower tiles.
    for columns in (16, 64):
        yield _gemm(limits, _swiglu_kernel, 128, "bf16", columns, EVEN_H=True)


def _route(
    name: str, groups: int, lanes: int, *, rows: int, top_k: int, sigmoid: bool, full: bool = False
) -> Case:
    constexprs = {
        "SIGMOID": sigmoid,
        "GROUPED": groups > 1,
        "BIASED": full,
        "NOISY": full,
        "COUNTED": full,
        "BLOCK_T": rows,
        "BLOCK_G": groups,
        "BLOCK_S": lanes,
        "BLOCK_K": top_k,
    }
    # Absent options are None, as in a launch.
    if not full:
        constexprs |= {"bias_ptr": None, "counts_ptr": None}
    return Case(
        kernel=name,
        dtype="f32",
        tile=f"{rows}x{groups * lanes}",
        function=_route_kernel,
        constexprs=constexprs,
        num_warps=route_warps(groups * lanes),
        # With noise a fused product and sum would round once where the reference rounds twice.
        fp_fusion=not full,
    )


def _gathers() -> Iterator[Case]:
    # A narrow and a wide row of the table.
    for columns in (8, 1024):
        yield Case(
            kernel="gather",
            dtype="f32",
            tile=f"{BLOCK // columns}x{columns}",
            function=_gather_kernel,
            constexprs={"BLOCK_R": BLOCK // columns, "BLOCK_C": columns},
            num_warps=WARPS,
        )


def _tiny() -> Iterator[Case]:
    for dtype in _PLAIN:
        # An expert of one neuron makes its width a compile-time constant.
        for width in ({}, {"width": 1}):
            size = " of 1 neuron" if width else ""
            for gated in (True, False):
                yield Case(
                    kernel=f"tiny expert in {'swiglu' if gated else 'gelu'}{size}",
                    dtype=dtype,
                    tile=f"{BLOCK_P}x{BLOCK_H}",
                    function=_tiny_in_kernel,
                    constexprs={"GATED": gated, "BLOCK_P": BLOCK_P, "BLOCK_H": BLOCK_H} | width,
                )
            yield Case(
                kernel=f"tiny expert out{size}",
                dtype=dtype,
                tile=f"{BLOCK_P}x{BLOCK_H}",
                function=_tiny_out_kernel,
                constexprs={"BLOCK_P": BLOCK_P, "BLOCK_H": BLOCK_H} | width,
            )


def _others() -> Iterator[Case]:
    yield Case(
        kernel="combine",
        dtype="bf16",
        tile="4x1024",
        function=_combine_kernel,
        constexprs={"BLOCK_T": 4, "BLOCK_H": 1024},
    )
    yield _route("route softmax", 1, 256, rows=16, top_k=8, sigmoid=False)
    yield _route("route sigmoid groups", 8, 32, rows=16, top_k=8, sigmoid=True)
    # The widest rows a router takes, without and with bias and noise.
    yield _route("route softmax", 1, MAX_ROW, rows=1, top_k=8, sigmoid=False)
    yield _route(
        "route softmax noise bias counts",
        1,
        MAX_OPTIONS_ROW,
        rows=1,
        top_k=8,
        sigmoid=False,
        full=True,
    )
    yield _route(
        "route sigmoid groups noise bias counts", 8, 32, rows=8, top_k=8, sigmoid=True, full=True
    )
    yield Case(
        kernel="stream",
        dtype="f32",
        tile=f"{BLOCK}",
        function=_stream_kernel,
        constexprs={"BLOCK": BLOCK},
        num_warps=WARPS,
    )
    yield from _gathers()
    yield from _tiny()
    # The plan's kernels, with the largest blocks that a launch uses.
    for name, tile, function, constexprs, warps in (
        ("plan rank", "128x128", _rank_kernel, {"BLOCK": 128, "CHUNKS": 8}, 8),
        ("plan prefix", "64x64", _prefix_kernel, {"BLOCK_S": 64, "BLOCK_E": 64}, 4),
        ("plan offsets", "4096", _offsets_kernel, {"BLOCK_M": 128, "BLOCK": 4096}, 4),
        ("plan scatter", "1024", _scatter_kernel, {"SEGMENT": 1024, "BLOCK": 1024}, 4),
        ("plan sparse rank", "128x128", _sparse_rank_kernel, {"BLOCK": 128}, 8),
        ("plan sparse tiles", "128x128", _sparse_tiles_kernel, {"BLOCK_M": 128, "BLOCK": 128}, 8),
        ("plan sparse offsets", "1024", _sparse_offsets_kernel, {"STEPS": 12, "BLOCK": 1024}, 4),
        ("plan tile map", "1024", _tile_map_kernel, {"STEPS": 9, "BLOCK_M": 128, "BLOCK": 1024}, 4),
    ):
        yield Case(
            kernel=name,
            dtype="i32",
            tile=tile,
            function=function,
            constexprs=constexprs,
            num_warps=warps,
        )


def _smallest(limits: Limits) -> Iterator[Case]:
    """Yield kernels whose sizes are all 1."""
    for case in (
        _gemm(limits, _swiglu_kernel, 16, "bf16", EVEN_H=False),
        _gemm(limits, _linear_kernel, 16, "bf16", EVEN_K=False, GATHER=True),
        Case(
            kernel="combine",
            dtype="bf16",
            tile="1x16",
            function=_combine_kernel,
            constexprs={"BLOCK_T": 1, "BLOCK_H": 16},
        ),
        Case(
            kernel="stream",
            dtype="f32",
            tile=f"{BLOCK}",
            function=_stream_kernel,
            constexprs={"BLOCK": BLOCK},
        ),
        _outer("outer", "bf16", 1, 1),
        Case(
            kernel="tiny_in",
            dtype="bf16",
            tile="16x1",
            function=_tiny_in_kernel,
            constexprs={"GATED": True, "BLOCK_P": BLOCK_P, "BLOCK_H": 1},
        ),
        Case(
            kernel="tiny_out",
            dtype="bf16",
            tile="16x1",
            function=_tiny_out_kernel,
            constexprs={"BLOCK_P": BLOCK_P, "BLOCK_H": 1},
        ),
        Case(
            kernel="gather",
            dtype="f32",
            tile="1x1",
            function=_gather_kernel,
            constexprs={"BLOCK_R": 1, "BLOCK_C": 1},
        ),
        _route("route", 1, 1, rows=1, top_k=1, sigmoid=True),
    ):
        names = case.function.arg_names
        yield Case(
            kernel=f"{case.kernel.split()[0]} sizes of 1",
            dtype=case.dtype,
            tile=case.tile,
            function=case.function,
            num_warps=case.num_warps,
            num_stages=case.num_stages,
            fp_fusion=case.fp_fusion,
            # Every size parameter of the kernel becomes the constant 1.
            constexprs={name: one for name, one in _ONES.items() if name in names}
            | case.constexprs,
        )


def cases(target: str) -> list[Case]:
    """Return everything that is compiled for ``target``, one of `LIMITS`; kernel, dtype, and tile
    identify a case.
    """
    limits = LIMITS[target]
    found = (
        *_gemms(limits),
        *_scaled(limits),
        *_persistent(target, limits),
        *_others(),
        *_smallest(limits),
    )
    # Small matrices can give two generators the same tile; it is compiled once.
    return list({(case.kernel, case.dtype, case.tile): case for case in found}.values())
