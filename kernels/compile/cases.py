"""List what is compiled ahead of time: every kernel, and the GEMMs with every block of rows and
format that `tile_config` ships.
"""

from collections.abc import Iterator
from dataclasses import replace

from moesim_kernels.compile.gate_cases import gate_cases, route_case
from moesim_kernels.compile.gemm_cases import gemm_case, gemm_cases, outer_case
from moesim_kernels.compile.specialization import PLAIN, Case
from moesim_kernels.ops.chain import chains
from moesim_kernels.ops.counting_sort import (
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
from moesim_kernels.ops.gate_logits import _gate_logits_kernel
from moesim_kernels.ops.grouped_down import MOST_COLUMNS, UNROLLED, _combine_kernel
from moesim_kernels.ops.grouped_linear import _linear_kernel
from moesim_kernels.ops.memory import BLOCK, WARPS, _gather_kernel, _stream_kernel
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
from moesim_kernels.ops.runtime import tl
from moesim_kernels.ops.tiny_expert import BLOCK_H, BLOCK_P, _tiny_in_kernel, _tiny_out_kernel
from moesim_kernels.ops.wide_swiglu import _wide_swiglu_kernel
from moesim_kernels.tiles.tiles import LIMITS, Limits

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
    for dtype in PLAIN:
        # An expert of one neuron makes its width a compile-time constant.
        for width in ({}, {"width": 1}):
            size = " of 1 neuron" if width else ""
            for gated in (True, False):
                yield Case(
                    kernel=f"tiny expert in {'swiglu' if gated else 'gelu'}{size}",
                    dtype=dtype,
                    tile=f"{BLOCK_P}x{BLOCK_H}",
                    function=_tiny_in_kernel,
                    constexprs={
                        "GATED": gated,
                        "WATCHED": True,
                        "BLOCK_P": BLOCK_P,
                        "BLOCK_H": BLOCK_H,
                    }
                    | width,
                )
            yield Case(
                kernel=f"tiny expert out{size}",
                dtype=dtype,
                tile=f"{BLOCK_P}x{BLOCK_H}",
                function=_tiny_out_kernel,
                constexprs={"BLOCK_P": BLOCK_P, "BLOCK_H": BLOCK_H} | width,
            )


def _others() -> Iterator[Case]:
    for top_k in (8, 64):
        yield Case(
            kernel=f"combine {top_k}",
            dtype="bf16",
            tile="2x1024",
            function=_combine_kernel,
            constexprs={
                "TOP_K": top_k,
                "UNROLLED": top_k <= UNROLLED,
                "BLOCK_T": 2,
                "BLOCK_H": MOST_COLUMNS,
            },
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
    for counts, bins in (("none", 256), ("rows", 256), ("sums", MOST_EXPERTS)):
        yield Case(
            kernel=f"plan place {counts}",
            dtype="i32",
            tile=f"{SEGMENT}x{bins}",
            function=_place_kernel,
            constexprs={
                "COUNTS": counts,
                "WATCHED": True,
                "WEIGHED": True,
                "BLOCK_M": 128,
                "SEGMENT": SEGMENT,
                "COMPARED": COMPARED,
                "COUNTED": COUNTED,
                "BINS": bins,
                "BLOCK_S": max(SUMMED // bins, 1),
            },
            num_warps=8,
        )
    for name, tile, function, constexprs, warps in (
        (
            "plan count",
            f"{SEGMENT}x{MOST_EXPERTS}",
            _count_kernel,
            {"SEGMENT": SEGMENT, "BINS": MOST_EXPERTS},
            4,
        ),
        (
            "plan sum",
            f"{SUM_S}x{SUM_E}",
            _sum_kernel,
            {"BINS": 256, "BLOCK_S": SUM_S, "BLOCK_E": SUM_E},
            8,
        ),
        (
            "plan rank",
            "128x128",
            _rank_kernel,
            {"BLOCK": 128, "CHUNKS": 8, "COMPARED": COMPARED},
            8,
        ),
        ("plan prefix", "64x64", _prefix_kernel, {"BLOCK_S": 64, "BLOCK_E": 64}, 4),
        ("plan offsets", "4096", _offsets_kernel, {"BLOCK_M": 128, "BLOCK": 4096}, 4),
        ("plan scatter", "1024", _scatter_kernel, {"SEGMENT": 1024, "BLOCK": 1024}, 4),
        (
            "plan sparse rank",
            "128x128",
            _sparse_rank_kernel,
            {"BLOCK": 128, "COMPARED": COMPARED},
            8,
        ),
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
        gemm_case(limits, _wide_swiglu_kernel, 16, "bf16", EVEN_H=False, DESCRIBED=False),
        gemm_case(limits, _linear_kernel, 16, "bf16", EVEN_K=False, GATHER=True),
        Case(
            kernel="combine",
            dtype="bf16",
            tile="1x16",
            function=_combine_kernel,
            constexprs={"TOP_K": 1, "UNROLLED": True, "BLOCK_T": 1, "BLOCK_H": 16},
        ),
        Case(
            kernel="stream",
            dtype="f32",
            tile=f"{BLOCK}",
            function=_stream_kernel,
            constexprs={"BLOCK": BLOCK},
        ),
        outer_case("outer", "bf16", limits, 1, 1, 1),
        Case(
            kernel="tiny_in",
            dtype="bf16",
            tile="16x1",
            function=_tiny_in_kernel,
            constexprs={"GATED": True, "WATCHED": True, "BLOCK_P": BLOCK_P, "BLOCK_H": 1},
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
        route_case("route", 1, 1, rows=1, top_k=1, sigmoid=True),
        Case(
            kernel="gate",
            dtype="bf16",
            tile="16x16x64",
            function=_gate_logits_kernel,
            constexprs={
                "DOT": tl.bfloat16,
                "EVEN": False,
                "BLOCK_T": 16,
                "BLOCK_E": 16,
                "BLOCK_K": 64,
                "steps": 1,
            },
        ),
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
        *gemm_cases(target, limits),
        *gate_cases(limits),
        *_others(),
        *_smallest(limits),
    )
    # Links of a chain are compiled as they are launched.
    early = chains(target)
    found = (
        replace(case, constexprs=case.constexprs | {"PDL": early}, early=early)
        if "PDL" in case.function.arg_names
        else case
        for case in found
    )
    # Small matrices can give two generators the same tile; it is compiled once.
    return list({(case.kernel, case.dtype, case.tile): case for case in found}.values())
