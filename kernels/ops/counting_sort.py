"""Sort pairs by expert, stably and in linear time, and map tiles to experts: the plan of up to
4,096 experts.

    for each segment of 256 pairs:                                       # _count_kernel
        counts[segment, e] = number of its pairs that go to expert e
    for each segment:                                                    # _sum_kernel, or inline
        before[e] = pairs of e in earlier segments;  first[e] = pairs of experts below e
    for each pair p of a segment:                                        # _place_kernel
        sorted[first[e] + before[e] + earlier pairs of e in its segment] = p
    for each expert and its j-th tile:
        tile_expert, tile_row[tiles of experts below + j] = e, first[e] + j x BLOCK_M

The work is linear in the pairs: a pair is compared with those of its own segment and with no
others. How much is counted beforehand depends on the sizes alone:

- up to 2,048 pairs nothing is: the program of every segment counts all pairs itself (one kernel);
- with a small table of counts (segments x experts), every program sums the rows before its own (two
  kernels);
- with a large table, a kernel in between turns its columns into sums over the segments (three
  kernels).

Sums of integers are the same in any order, so every run gives the same plan. Ids outside 0..E-1 are
read as the nearest expert, so a wrong routing gives wrong numbers but no wrong addresses.
"""

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.runtime import jit, tl, triton
from moesim_kernels.tiles.tiles import tile_bound

#: pairs of a segment, each of which is compared with the others; and how many of them at once
SEGMENT, COMPARED = 256, 32
#: the most pairs that every program counts for itself, and how many it reads at once
MOST_RECOUNTED, COUNTED = 2048, 1024
#: the most numbers of a table of counts whose rows every program adds up for itself; how many it
#: reads at once
MOST_RESUMMED, SUMMED = 2**14, 4096
#: the most experts whose counts a program keeps in registers
MOST_EXPERTS = 4096
#: experts and segments of a step of the sums
SUM_E, SUM_S = 64, 64


@jit
def _expert_of(ids_ptr, p, num_pairs, num_experts):
    ids = tl.load(ids_ptr + p, mask=p < num_pairs, other=0)
    return tl.minimum(tl.maximum(ids, 0), num_experts - 1)


@jit
def _count_kernel(
    ids_ptr,
    counts_ptr,
    num_pairs,
    num_experts,
    SEGMENT: tl.constexpr,
    BINS: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    p = tl.program_id(0) * SEGMENT + tl.arange(0, SEGMENT)
    counts = tl.histogram(_expert_of(ids_ptr, p, num_pairs, num_experts), BINS, mask=p < num_pairs)
    tl.store(counts_ptr + tl.program_id(0).to(tl.int64) * BINS + tl.arange(0, BINS), counts)


@jit
def _sum_kernel(
    counts_ptr,
    num_segments,
    BINS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """Turn every segment's counts into the sum of those before it; the totals follow behind the
    last segment.
    """
    await_inputs(PDL)
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros((BLOCK_E,), tl.int32)
    for start in range(0, num_segments, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = counts_ptr + s[:, None].to(tl.int64) * BINS + e[None, :]
        counts = tl.load(at, mask=(s < num_segments)[:, None], other=0)
        tl.store(
            at,
            total[None, :] + tl.cumsum(counts, axis=0) - counts,
            mask=(s < num_segments)[:, None],
        )
        total += tl.sum(counts, axis=0)
    tl.store(counts_ptr + num_segments.to(tl.int64) * BINS + e, total)


@jit
def _place_kernel(
    ids_ptr,
    counts_ptr,
    sorted_pairs_ptr,
    offsets_ptr,
    tile_expert_ptr,
    tile_row_ptr,
    num_tiles_ptr,
    num_pairs,
    num_experts,
    max_tiles,
    COUNTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SEGMENT: tl.constexpr,
    COMPARED: tl.constexpr,
    COUNTED: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    await_inputs(PDL)
    segment = tl.program_id(0)
    num_segments = tl.num_programs(0)
    e = tl.arange(0, BINS)
    if COUNTS == "none":
        total = tl.zeros((BINS,), tl.int32)
        before = tl.zeros((BINS,), tl.int32)
        for start in range(0, num_pairs, COUNTED):
            q = start + tl.arange(0, COUNTED)
            others = _expert_of(ids_ptr, q, num_pairs, num_experts)
            total += tl.histogram(others, BINS, mask=q < num_pairs)
            before += tl.histogram(others, BINS, mask=q < tl.minimum(segment * SEGMENT, num_pairs))
    elif COUNTS == "rows":
        # Summed over the rows at the end: a sum in every step would cross the program's warps each
        # time.
        totals = tl.zeros((BLOCK_S, BINS), tl.int32)
        befores = tl.zeros((BLOCK_S, BINS), tl.int32)
        for start in range(0, num_segments, BLOCK_S):
            s = start + tl.arange(0, BLOCK_S)
            counts = tl.load(
                counts_ptr + s[:, None] * BINS + e[None, :],
                mask=(s < num_segments)[:, None],
                other=0,
            )
            totals += counts
            befores += tl.where((s < segment)[:, None], counts, 0)
        total = tl.sum(totals, axis=0)
        before = tl.sum(befores, axis=0)
    else:
        before = tl.load(counts_ptr + segment.to(tl.int64) * BINS + e)
        total = tl.load(counts_ptr + num_segments.to(tl.int64) * BINS + e)
    first = tl.cumsum(total, axis=0) - total
    tiles = (total + BLOCK_M - 1) // BLOCK_M
    first_tile = tl.cumsum(tiles, axis=0) - tiles
    num_tiles = tl.sum(tiles, axis=0)
    if segment == 0:
        tl.store(offsets_ptr, 0)
        tl.store(offsets_ptr + 1 + e, first + total, mask=e < num_experts)
        tl.store(num_tiles_ptr, num_tiles)
    # All experts' j-th tiles at once; programs take every j in turns.
    for j in range(segment, tl.max(tiles, axis=0), num_segments):
        tl.store(tile_expert_ptr + first_tile + j, e, mask=j < tiles)
        tl.store(tile_row_ptr + first_tile + j, first + j * BLOCK_M, mask=j < tiles)
    for start in range(num_tiles + segment * SEGMENT, max_tiles, num_segments * SEGMENT):
        unused = start + tl.arange(0, SEGMENT)
        tl.store(tile_expert_ptr + unused, -1, mask=unused < max_tiles)
        tl.store(tile_row_ptr + unused, -1, mask=unused < max_tiles)
    p = segment * SEGMENT + tl.arange(0, SEGMENT)
    ids = _expert_of(ids_ptr, p, num_pairs, num_experts)
    earlier = tl.zeros((SEGMENT, COMPARED), tl.int32)
    for start in range(0, SEGMENT, COMPARED):
        q = segment * SEGMENT + start + tl.arange(0, COMPARED)
        others = _expert_of(ids_ptr, q, num_pairs, num_experts)
        earlier += ((ids[:, None] == others[None, :]) & (q[None, :] < p[:, None])).to(tl.int32)
    row = tl.gather(first + before, ids, axis=0) + tl.sum(earlier, axis=1)
    tl.store(sorted_pairs_ptr + row, p, mask=p < num_pairs)


def counted(num_pairs: int, num_experts: int) -> str:
    """Return what is counted beforehand: "none", the "rows" of every segment, or also their "sums"
    over the segments.
    """
    if num_pairs <= MOST_RECOUNTED:
        return "none"
    table = triton.cdiv(num_pairs, SEGMENT) * triton.next_power_of_2(num_experts)
    return "rows" if table <= MOST_RESUMMED else "sums"


def sorted_plan(ids_TK: torch.Tensor, num_experts: int, block_m: int) -> list[torch.Tensor]:
    """Return the tensors of a plan with at least one pair and at most `MOST_EXPERTS` experts.

    Args:
        ids_TK: Expert ids, int32 of shape (T, K), contiguous.
        num_experts: Number of experts E.
        block_m: Number of rows in a tile.

    Returns:
        Pairs in the order of their experts, the first row of each expert, the experts and the first
        rows of the tiles, and the number of tiles, as `moesim_kernels.ops.plan.Plan` has them.
    """
    num_pairs, max_tiles = ids_TK.numel(), tile_bound(ids_TK.numel(), num_experts, block_m)
    counts, bins = counted(num_pairs, num_experts), max(triton.next_power_of_2(num_experts), 16)
    segments = triton.cdiv(num_pairs, SEGMENT)
    table = {"none": 0, "rows": segments, "sums": segments + 1}[counts] * bins
    # One allocation, its pieces on multiples of 16 bytes, which launches tell from other addresses.
    sizes = [
        size
        for wanted in (num_pairs, num_experts + 1, max_tiles, max_tiles, 1, table)
        for size in (wanted, -wanted % 4)
    ]
    pieces = torch.empty(sum(sizes), dtype=torch.int32, device=ids_TK.device).split(sizes)
    sorted_pairs, offsets_E1, tile_expert, tile_row, num_tiles, counts_SE = pieces[::2]
    if counts != "none":
        launch(
            _count_kernel,
            (segments,),
            ids_TK,
            counts_SE,
            num_pairs,
            num_experts,
            SEGMENT=SEGMENT,
            BINS=bins,
            num_warps=4,
        )
    if counts == "sums":
        block_e = min(SUM_E, bins)
        launch(
            _sum_kernel,
            (bins // block_e,),
            counts_SE,
            segments,
            BINS=bins,
            BLOCK_S=SUM_S,
            BLOCK_E=block_e,
            num_warps=8,
        )
    launch(
        _place_kernel,
        (segments,),
        ids_TK,
        counts_SE,
        sorted_pairs,
        offsets_E1,
        tile_expert,
        tile_row,
        num_tiles,
        num_pairs,
        num_experts,
        max_tiles,
        COUNTS=counts,
        BLOCK_M=block_m,
        SEGMENT=SEGMENT,
        COMPARED=COMPARED,
        COUNTED=COUNTED,
        BINS=bins,
        BLOCK_S=max(SUMMED // bins, 1),
        num_warps=8,
    )
    return [sorted_pairs, offsets_E1, tile_expert, tile_row, num_tiles]
