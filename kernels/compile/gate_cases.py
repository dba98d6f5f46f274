"""List what is compiled ahead of time of the gates: logits, product keys, and the router."""

from collections.abc import Iterator

from moesim_kernels.compile.specialization import FORMATS, PLAIN, Case, dot_format
from moesim_kernels.ops.counting_sort import MANY_ROUTED_TOKENS, ROUTED_TOKENS
from moesim_kernels.ops.fused_gate import BLOCK_H, _fused_gate_kernel, fused_tile
from moesim_kernels.ops.gate_logits import MOST_PARTED, MOST_PARTS, _gate_logits_kernel, gate_tile
from moesim_kernels.ops.product_key import (
    BLOCK_K,
    BLOCK_R,
    BLOCK_S,
    WARPS,
    _half_logits_kernel,
    _pair_kernel,
)
from moesim_kernels.ops.router_kernel import MAX_OPTIONS_ROW, MAX_ROW, _route_kernel, route_warps
from moesim_kernels.tiles.tiles import Limits


def _gate(limits: Limits) -> Iterator[Case]:
    for dtype in PLAIN:
        for tokens, experts in ((16, 256), (256, 256), (2048, 64), (2048, 256)):
            block_t, block_e, block_k, warps, stages = gate_tile(
                tokens, experts, FORMATS[dtype][1] // 8, limits
            )
            for even in (True, False):
                yield Case(
                    kernel=f"gate logits{'' if even else ' masked'}",
                    dtype=dtype,
                    tile=f"{block_t}x{block_e}x{block_k}",
                    function=_gate_logits_kernel,
                    constexprs={
                        "DOT": dot_format(dtype),
                        "EVEN": even,
                        "BLOCK_T": block_t,
                        "BLOCK_E": block_e,
                        "BLOCK_K": block_k,
                    },
                    num_warps=warps,
                    num_stages=stages,
                )


def _product() -> Iterator[Case]:
    for dtype in PLAIN:
        for parts in (1, 4):
            yield Case(
                kernel=f"product logits of {parts}",
                dtype=dtype,
                tile=f"{BLOCK_R}x{BLOCK_S}x{BLOCK_K}",
                function=_half_logits_kernel,
                constexprs={
                    "PARTS": parts,
                    "BLOCK_R": BLOCK_R,
                    "BLOCK_S": BLOCK_S,
                    "BLOCK_K": BLOCK_K,
                },
                num_warps=WARPS,
            )
    for rows, best in ((512, 2), (8, 16), (1, 64)):
        yield Case(
            kernel="product pairs",
            dtype="f32",
            tile=f"{rows}x{best * best}",
            function=_pair_kernel,
            constexprs={
                "BEST": best,
                "FOUND": best,
                "WATCHED": True,
                "BLOCK_R": rows,
                "BLOCK_B": best,
                "BLOCK_F": best,
            },
        )


def route_case(
    name: str,
    groups: int,
    lanes: int,
    *,
    rows: int,
    top_k: int,
    sigmoid: bool,
    full: bool = False,
    parts: int = 1,
    mapped: bool = False,
    segments: bool = False,
) -> Case:
    """Return the router for this many groups of ``lanes`` padded experts, with every option if
    ``full``.
    """
    constexprs = {
        "SIGMOID": sigmoid,
        "GROUPED": groups > 1,
        "BIASED": full,
        "NOISY": full,
        "COUNTED": full,
        "MASKED": full,
        "WATCHED": full,
        "BINS": groups * lanes if segments else 0,
        "PARTS": parts,
        "BLOCK_T": rows,
        "BLOCK_G": groups,
        "BLOCK_S": lanes,
        "BLOCK_K": top_k,
    }
    constexprs |= {"ASCENDING": mapped, "MAPPED": mapped} | ({} if mapped else {"kept_ptr": None})
    # Absent options are None, as in a launch.
    if not full:
        constexprs |= {"bias_ptr": None, "counts_ptr": None, "missing_ptr": None, "watch_ptr": None}
    if not segments:
        constexprs["table_ptr"] = None
    return Case(
        kernel=name,
        dtype="f32",
        tile=f"{rows}x{groups * lanes}",
        function=_route_kernel,
        constexprs=constexprs,
        num_warps=route_warps(groups * lanes * (2 * rows if segments else 1)),
        # With noise a fused product and sum would round once where the reference rounds twice.
        fp_fusion=not full,
    )


def _routes() -> Iterator[Case]:
    yield route_case("route softmax", 1, 256, rows=16, top_k=8, sigmoid=False)
    yield route_case("route sigmoid groups", 8, 32, rows=16, top_k=8, sigmoid=True)
    # The widest rows a router takes, without and with bias and noise.
    yield route_case(
        "route softmax of parts", 1, 64, rows=4, top_k=8, sigmoid=False, parts=MOST_PARTS
    )
    yield route_case(
        "route softmax of parts", 1, MOST_PARTED, rows=1, top_k=8, sigmoid=False, parts=4
    )
    yield route_case(
        "route softmax of kept groups", 1, 256, rows=4, top_k=8, sigmoid=False, mapped=True
    )
    for rows, experts in ((ROUTED_TOKENS, 64), (ROUTED_TOKENS, 256), (MANY_ROUTED_TOKENS, 128)):
        yield route_case(
            "route softmax of parts for a plan",
            1,
            experts,
            rows=rows,
            top_k=8,
            sigmoid=False,
            parts=4,
            segments=True,
        )
    yield route_case("route sigmoid groups of parts", 8, 32, rows=4, top_k=8, sigmoid=True, parts=4)
    yield route_case("route softmax", 1, MAX_ROW, rows=1, top_k=8, sigmoid=False)
    yield route_case(
        "route softmax noise bias counts",
        1,
        MAX_OPTIONS_ROW,
        rows=1,
        top_k=8,
        sigmoid=False,
        full=True,
    )
    yield route_case(
        "route sigmoid groups noise bias counts", 8, 32, rows=4, top_k=8, sigmoid=True, full=True
    )


def _fused(limits: Limits) -> Iterator[Case]:
    for groups, experts, full in ((1, 64, False), (1, 256, False), (8, 32, False), (8, 32, True)):
        block_t, warps, stages = fused_tile(groups * experts, limits, full)
        absent = {
            "bias_ptr": None,
            "missing_ptr": None,
            "counts_ptr": None,
            "table_ptr": None,
            "watch_ptr": None,
        }
        for dtype, even in (("bf16", True), ("bf16", False), ("f16", True)):
            yield Case(
                kernel=f"fused gate{' grouped' if groups > 1 else ''}{' with all' if full else ''}"
                f"{'' if even else ' masked'}",
                dtype=dtype,
                tile=f"{block_t}x{groups * experts}x{BLOCK_H}",
                function=_fused_gate_kernel,
                constexprs={
                    "SIGMOID": full,
                    "GROUPED": groups > 1,
                    "BIASED": full,
                    "MASKED": full,
                    "WATCHED": full,
                    "NOISY": full,
                    "COUNTED": full,
                    "EVEN": even,
                    "DOT": dot_format(dtype),
                    "BINS": groups * experts if full else 0,
                    "SEGMENT_T": ROUTED_TOKENS,
                    "BLOCK_T": block_t,
                    "BLOCK_G": groups,
                    "BLOCK_S": experts,
                    "BLOCK_K": 8,
                    "BLOCK_H": BLOCK_H,
                }
                | ({} if full else absent),
                num_warps=warps,
                num_stages=stages,
                fp_fusion=not full,
            )


def gate_cases(limits: Limits) -> Iterator[Case]:
    """Yield every kernel of the gates."""
    yield from _gate(limits)
    yield from _fused(limits)
    yield from _product()
    yield from _routes()
