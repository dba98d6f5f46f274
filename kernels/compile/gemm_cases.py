"""List the grouped GEMMs that are compiled ahead of time: with every block of rows and format that
`tile_config` ships, and with every tile that is chosen on Hopper.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from moesim_kernels.compile.specialization import FORMATS, FP8_NAMES, PLAIN, Case, dot_format
from moesim_kernels.ops.fp8 import (
    BLOCK_STEP,
    SMALLEST,
    _quantise_blocks_kernel,
    _quantise_rows_kernel,
)
from moesim_kernels.ops.gemm_paths import DESCRIBED_ROWS, gathers_by_descriptor, gemm_path
from moesim_kernels.ops.grouped_linear import _linear_kernel, linear_tile
from moesim_kernels.ops.grouped_outer import _outer_kernel, outer_tile
from moesim_kernels.ops.grouped_swiglu import _swiglu_kernel, keeps_registers
from moesim_kernels.ops.operands import LARGEST, SCALE_BLOCK
from moesim_kernels.ops.persistent import _persistent_linear_kernel, _persistent_swiglu_kernel
from moesim_kernels.ops.swiglu_grad import BLOCK_I, _swiglu_grad_kernel
from moesim_kernels.ops.wide_swiglu import _wide_swiglu_kernel
from moesim_kernels.tiles.tiles import Limits, Tile, tile_config
from moesim_kernels.tiles.training import TILES

from moesim.costs.devices.tile_choice import compiled_tiles


def outer_case(
    name: str,
    dtype: str,
    limits: Limits,
    a_top_k: int,
    b_top_k: int,
    size: int = 4096,
    added: bool = False,
) -> Case:
    """Return the outer products of a gradient of matrices of ``size`` rows and columns."""
    tile = outer_tile(size, size, FORMATS[dtype][1], limits, added)
    return Case(
        kernel=name,
        dtype=dtype,
        tile=f"{tile.block_n}x{tile.block_c}x{tile.block_r}",
        function=_outer_kernel,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        constexprs={
            "A_TOP_K": a_top_k,
            "B_TOP_K": b_top_k,
            "ADDED": added,
            "DOT": dot_format(dtype),
            "BLOCK_R": tile.block_r,
            "BLOCK_N": tile.block_n,
            "BLOCK_C": tile.block_c,
        },
    )


def gemm_case(
    limits: Limits,
    function: Any,
    block_m: int,
    dtype: str,
    columns: int = 4096,
    tile: Tile | None = None,
    **flags: bool,
) -> Case:
    """Return a grouped GEMM with its usual tile or a given one; ``flags`` are constants of its
    kernel.
    """
    bits, scaled = FORMATS[dtype][1], dtype in FP8_NAMES
    # A usual tile is told by its sizes; of given ones several differ in warps or stages alone.
    given = tile is not None
    # The names of the kernels tell which of them keep two accumulators.
    accumulators = 1 if "linear" in function.__name__ else 2
    gathered = flags.get("GATHER", False) and not flags.get("TRANSPOSED", False)
    if tile is None and flags.get("TRANSPOSED"):
        tile = linear_tile(
            block_m,
            columns,
            operand_bits=bits,
            result_bits=bits,
            block_m=block_m,
            transposed=True,
            limits=limits,
        )
    tile = tile or tile_config(
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
        "DOT": dot_format(dtype),
    } | flags
    if "SAVED" in function.arg_names and not flags.get("SAVED"):
        constexprs |= {"SAVED": False, "saved_ptr": None}
    if function is _linear_kernel:
        constexprs.setdefault("TRANSPOSED", False)
    if "WEIGHED" in function.arg_names and not flags.get("WEIGHED"):
        constexprs |= {"WEIGHED": False, "weights_ptr": None}
    if "SCALED" in function.arg_names:
        constexprs["SCALED"] = scaled
    # A usual top-k stands for all.
    if "TOP_K" in function.arg_names:
        constexprs["TOP_K"] = 8
    # Pointers that a specialization does not read are None, as in a launch.
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
    for flag in ("TRANSPOSED", "SAVED", "WEIGHED"):
        name += f" {flag.lower()}" if flags.get(flag) else ""
    return Case(
        kernel=name,
        dtype=dtype,
        tile=str(tile) if given else f"{tile.block_m}x{tile.block_n}x{tile.block_k}",
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
            if gather:
                yield gemm_case(
                    limits, _persistent_swiglu_kernel, block_m, dtype, GATHER_ROWS=gather
                )
            elif block_m >= DESCRIBED_ROWS or dtype == "fp8":
                for saved in (False,) if dtype == "fp8" else (False, True):
                    yield gemm_case(
                        limits,
                        _wide_swiglu_kernel,
                        block_m,
                        dtype,
                        DESCRIBED=True,
                        EVEN_H=True,
                        SAVED=saved,
                    )
            for flags in ({}, {"WEIGHED": True}):
                yield gemm_case(limits, _persistent_linear_kernel, block_m, dtype, **flags)


def _chosen(limits: Limits) -> Iterator[Case]:
    """Yield the tiles that are chosen among on Hopper, in the format they were timed in."""
    for tile in _distinct(compiled_tiles("sm_90", 16, "up")):
        yield gemm_case(
            limits,
            _wide_swiglu_kernel,
            tile.block_m,
            "bf16",
            tile=tile,
            DESCRIBED=bool(tile.descriptors),
            EVEN_H=True,
        )
    for tile in _distinct(compiled_tiles("sm_90", 16, "down")):
        if tile.descriptors:
            yield gemm_case(limits, _persistent_linear_kernel, tile.block_m, "bf16", tile=tile)
        else:
            yield gemm_case(
                limits, _linear_kernel, tile.block_m, "bf16", tile=tile, EVEN_K=True, GATHER=False
            )


def _distinct(tiles: Iterable[Tile]) -> list[Tile]:
    # Groups of row blocks only reorder programs: they are compiled once.
    return list(dict.fromkeys(replace(tile, group_m=1) for tile in tiles))


def _training(limits: Limits) -> Iterator[Case]:
    """Yield the tiles of training on Hopper: pre-activations are kept, weights read transposed."""
    for dtype in ("bf16", "f16"):
        for block_m, (up, down) in TILES.items():
            described = block_m >= DESCRIBED_ROWS
            for saved in (False, True):
                yield gemm_case(
                    limits,
                    _wide_swiglu_kernel,
                    block_m,
                    dtype,
                    tile=up,
                    DESCRIBED=described,
                    EVEN_H=True,
                    SAVED=saved,
                )
            if described:
                yield gemm_case(limits, _persistent_linear_kernel, block_m, dtype, tile=down)
            else:
                yield gemm_case(
                    limits, _linear_kernel, block_m, dtype, tile=down, EVEN_K=True, GATHER=False
                )
            yield gemm_case(
                limits,
                _linear_kernel,
                block_m,
                dtype,
                tile=down,
                EVEN_K=True,
                GATHER=True,
                TRANSPOSED=True,
            )


def _scaled(limits: Limits) -> Iterator[Case]:
    for dtype, name in FP8_NAMES.items():
        for block_m in (16, 32, 64, 128):
            yield gemm_case(
                limits, _wide_swiglu_kernel, block_m, dtype, EVEN_H=True, DESCRIBED=False
            )
            for weighed in ({}, {"WEIGHED": True}):
                yield gemm_case(
                    limits, _linear_kernel, block_m, dtype, EVEN_K=True, GATHER=False, **weighed
                )
        # The masked variants are compiled for the largest block of rows only.
        yield gemm_case(limits, _wide_swiglu_kernel, 128, dtype, EVEN_H=False, DESCRIBED=False)
        yield gemm_case(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=False)
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


def _gemms(target: str, limits: Limits) -> Iterator[Case]:
    for dtype in PLAIN:
        up, flags = (
            (_swiglu_kernel, {}) if dtype == "f32" else (_wide_swiglu_kernel, {"DESCRIBED": False})
        )
        for block_m in (16, 32, 64, 128):
            yield gemm_case(limits, up, block_m, dtype, EVEN_H=True, **flags)
            if (
                flags
                and not gathers_by_descriptor(target)
                and keeps_registers(target, block_m, described=False)
            ):
                yield gemm_case(limits, up, block_m, dtype, EVEN_H=True, SAVED=True, **flags)
            for weighed in ({}, {"WEIGHED": True}):
                yield gemm_case(
                    limits, _linear_kernel, block_m, dtype, EVEN_K=True, GATHER=False, **weighed
                )
        yield gemm_case(limits, up, 128, dtype, EVEN_H=False, **flags)
        yield gemm_case(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=False)
        # Gate logits: gathered rows and float32 results.
        yield gemm_case(limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=True)
        yield outer_case("outer gate up", dtype, limits, 1, 8)
        yield outer_case("outer down", dtype, limits, 8, 1)
        yield outer_case("outer added", dtype, limits, 8, 1, added=True)
        for block_m in (16, 32, 64, 128):
            yield gemm_case(
                limits, _linear_kernel, block_m, dtype, EVEN_K=True, GATHER=True, TRANSPOSED=True
            )
        yield gemm_case(
            limits, _linear_kernel, 128, dtype, EVEN_K=False, GATHER=True, TRANSPOSED=True
        )
        yield Case(
            kernel="swiglu grad",
            dtype=dtype,
            tile=f"{BLOCK_I}",
            function=_swiglu_grad_kernel,
            constexprs={"BLOCK_I": BLOCK_I},
        )
    # Narrow experts get narrower tiles.
    for columns in (16, 64):
        yield gemm_case(
            limits, _wide_swiglu_kernel, 128, "bf16", columns, EVEN_H=True, DESCRIBED=False
        )


def gemm_cases(target: str, limits: Limits) -> Iterator[Case]:
    """Yield every grouped GEMM, with its quantizers and gradients, for one target."""
    yield from _gemms(target, limits)
    yield from _scaled(limits)
    yield from _persistent(target, limits)
    if target == "sm_90":
        yield from _chosen(limits)
        yield from _training(limits)
