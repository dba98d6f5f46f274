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

from dataclasses import dataclass

import torch
from moesim_kernels.ops.chain import await_inputs
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.runtime import cdiv, jit, next_power_of_2, tl
from moesim_kernels.ops.watch import IDS, WEIGHTS, note
from moesim_kernels.tiles.tiles import tile_bound

#: pairs of a segment, each of which is compared with the others; and how many of them at once
SEGMENT, COMPARED = 256, 32
#: the most pairs that every program counts for itself, and how many it reads at once
MOST_RECOUNTED, COUNTED = 2048, 1024
#: the most numbers of a table of counts whose rows every program adds up for itself; how many it
#: reads at once
MOST_RESUMMED, SUMMED = 2**15, 4096
#: the most experts whose counts a program keeps in registers
MOST_EXPERTS = 4096
#: experts and segments of a step of the sums
SUM_E, SUM_S = 64, 64
#: the most experts that a router counts for a plan, and tokens of its segments, of few and of many
MOST_ROUTED, ROUTED_TOKENS, MANY_ROUTED_TOKENS = 256, 16, 32
#: number of tokens from which a router's segments are the larger ones
_MANY_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Pairs counted by expert in segments of consecutive tokens, which a plan begins with.

    Attributes:
        counts_SE: Counts, int32 of shape (segments + 1, experts padded to a power of two); the last
            row is room for the totals.
        tokens: Number of tokens in a segment, a power of two.
        pairs: Number of pairs in a segment.
    """

    counts_SE: torch.Tensor
    tokens: int
    pairs: int


def new_segments(
    num_tokens: int, top_k: int, num_experts: int, device: torch.device
) -> Segments | None:
    """Return memory in which a router counts its choices for a plan; None where the plan counts
    for itself or has no use for counts.
    """
    wide = num_tokens <= _MANY_TOKENS or bins_of(num_experts) > MOST_ROUTED // 2
    tokens = ROUTED_TOKENS if wide else MANY_ROUTED_TOKENS
    # A segment has at most as many pairs as the plan compares.
    while tokens * top_k > SEGMENT:
        tokens //= 2
    if num_experts > MOST_ROUTED or num_tokens * top_k <= MOST_RECOUNTED or not tokens:
        return None
    shape = (cdiv(num_tokens, tokens) + 1, bins_of(num_experts))
    counts_SE = torch.empty(shape, dtype=torch.int32, device=device)
    return Segments(counts_SE=counts_SE, tokens=tokens, pairs=tokens * top_k)


def bins_of(num_experts: int) -> int:
    """Return the experts of a row of counts, padded."""
    return max(next_power_of_2(num_experts), 16)


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
    weights_ptr,
    watch_ptr,
    num_pairs,
    num_experts,
    max_tiles,
    segment_pairs,
    top_k,
    COUNTS: tl.constexpr,
    WATCHED: tl.constexpr,
    WEIGHED: tl.constexpr,
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
            before += tl.histogram(
                others, BINS, mask=q < tl.minimum(segment * segment_pairs, num_pairs)
            )
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
    # A segment of a router may be shorter than a block.
    p = segment * segment_pairs + tl.arange(0, SEGMENT)
    end = tl.minimum((segment + 1) * segment_pairs, num_pairs)
    if WATCHED:
        given = tl.load(ids_ptr + p, mask=p < end, other=0)
        note(watch_ptr, IDS, (given < 0) | (given >= num_experts), p // top_k)
    if WEIGHED:
        weights = tl.load(weights_ptr + p, mask=p < end, other=0.0)
        note(watch_ptr, WEIGHTS, (tl.abs(weights) < float("inf")) == 0, p // top_k)
    ids = _expert_of(ids_ptr, p, num_pairs, num_experts)
    earlier = tl.zeros((SEGMENT, COMPARED), tl.int32)
    for start in range(0, SEGMENT, COMPARED):
        q = segment * segment_pairs + start + tl.arange(0, COMPARED)
        others = _expert_of(ids_ptr, q, num_pairs, num_experts)
        earlier += ((ids[:, None] == others[None, :]) & (q[None, :] < p[:, None])).to(tl.int32)
    row = tl.gather(first + before, ids, axis=0) + tl.sum(earlier, axis=1)
    tl.store(sorted_pairs_ptr + row, p, mask=p < end)


def counted(num_pairs: int, num_experts: int, segment_pairs: int = SEGMENT) -> str:
    """Return what is counted beforehand: "none", the "rows" of every segment, or also their "sums"
    over the segments.
    """
    if num_pairs <= MOST_RECOUNTED:
        return "none"
    table = cdiv(num_pairs, segment_pairs) * bins_of(num_experts)
    return "rows" if table <= MOST_RESUMMED else "sums"


def sorted_plan(
    ids_TK: torch.Tensor,
    num_experts: int,
    block_m: int,
    routed: Segments | None = None,
    watch: torch.Tensor | None = None,
    weights_TK: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Return the tensors of a plan with at least one pair and at most `MOST_EXPERTS` experts.

    Args:
        ids_TK: Expert ids, int32 of shape (T, K), contiguous.
        num_experts: Number of experts E.
        block_m: Number of rows in a tile.
        routed: What a router counted of these ids; None if nothing was counted.
        watch: Memory where the first token with an id out of range is noted
            (`moesim_kernels.ops.watch`); None for no watch.
        weights_TK: Router weights, float32 of the shape of ``ids_TK``, that are watched, too.

    Returns:
        Pairs in the order of their experts, the first row of each expert, the experts and the first
        rows of the tiles, and the number of tiles, as `moesim_kernels.ops.plan.Plan` has them.
    """
    num_pairs, max_tiles = ids_TK.numel(), tile_bound(ids_TK.numel(), num_experts, block_m)
    segment_pairs = SEGMENT if routed is None else routed.pairs
    counts, bins = counted(num_pairs, num_experts, segment_pairs), bins_of(num_experts)
    segments = cdiv(num_pairs, segment_pairs)
    rows = {"none": 0, "rows": segments, "sums": segments + 1}[counts]
    table = rows * bins if routed is None else 0
    # One allocation, its pieces on multiples of 16 bytes, which launches tell from other addresses.
    sizes = [
        size
        for wanted in (num_pairs, num_experts + 1, max_tiles, max_tiles, 1, table)
        for size in (wanted, -wanted % 4)
    ]
    pieces = torch.empty(sum(sizes), dtype=torch.int32, device=ids_TK.device).split(sizes)
    sorted_pairs, offsets_E1, tile_expert, tile_row, num_tiles, counts_SE = pieces[::2]
    if routed is not None:
        counts_SE = routed.counts_SE
    elif counts != "none":
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
        None if watch is None else weights_TK,
        watch,
        num_pairs,
        num_experts,
        max_tiles,
        segment_pairs,
        ids_TK.shape[1],
        COUNTS=counts,
        WATCHED=watch is not None,
        WEIGHED=watch is not None and weights_TK is not None,
        BLOCK_M=block_m,
        SEGMENT=next_power_of_2(segment_pairs),
        COMPARED=min(COMPARED, next_power_of_2(segment_pairs)),
        COUNTED=COUNTED,
        BINS=bins,
        BLOCK_S=max(SUMMED // bins, 1),
        num_warps=8,
    )
    return [sorted_pairs, offsets_E1, tile_expert, tile_row, num_tiles]
