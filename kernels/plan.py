"""The tile plan: (token, expert) pairs sorted by expert and cut into row tiles, on the device.

Nothing here waits for the GPU: the number of tiles depends on the routing and stays on the device, grids use
`tile_bound`, and programs past the last tile return at once. Pair p = t x K + j is token t's j-th expert. The counting
sort is stable (pairs of one expert keep their order) and uses no atomics, so every run gives the same plan. Up to 4,096
experts it is that of `moesim_kernels.plan_kernels`. For more, whose counts do not fit a program:

1. rank: each pair's number among its expert's pairs in a segment, by comparing ids; the last one knows the count;
2. prefix: exclusive sums of the counts over the segments, and each expert's total;
3. offsets: exclusive sums of rows and of tiles over the experts;
4. scatter: pair p goes to expert offset + segment prefix + rank;
5. tile map: each tile finds its expert by bisection of the tile offsets.

Far more experts than pairs (decoding, many tiny experts) would make that work on tables of idle experts. Then pairs are
compared with each other instead: how many have a lower expert or are an earlier pair of the same gives a pair's row,
and every pair whose rank is a multiple of a tile's rows starts a tile. The plan is the same to the bit.
"""

from dataclasses import dataclass

import torch
from moesim_kernels.launches import launch
from moesim_kernels.plan_kernels import MOST_EXPERTS, sorted_plan
from moesim_kernels.runtime import jit, require_triton, tl, triton
from moesim_kernels.tiles import Tile, tile_bound, tile_config, tiles_per_expert

__all__ = ["Plan", "Tile", "make_plan", "make_plan_reference", "tile_bound", "tile_config", "tiles_per_expert"]

_TENSORS = ("sorted_pairs", "expert_offsets_E1", "tile_expert", "tile_row", "num_tiles")
_RANK_BLOCK = 128
_RANK_CHUNKS = 8
#: pairs are compared with each other where experts are this many times as many, and pairs at most so many
_SPARSE_RATIO, _SPARSE_PAIRS = 4, 2**14


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where every pair is computed. All tensors are int32 on the routing's device.

    Attributes:
        sorted_pairs: Pairs in expert order, stable; shape (P,).
        expert_offsets_E1: First row of each expert in ``sorted_pairs``, then P; shape (E + 1,).
        tile_expert: Expert of each tile, -1 past the last one; shape (tile bound,).
        tile_row: First row of each tile in ``sorted_pairs``, -1 past the last one; shape (tile bound,).
        num_tiles: Tiles in use; shape (1,).
        block_m: Rows of a tile.
        top_k: Experts a token uses.
    """

    sorted_pairs: torch.Tensor
    expert_offsets_E1: torch.Tensor
    tile_expert: torch.Tensor
    tile_row: torch.Tensor
    num_tiles: torch.Tensor
    block_m: int
    top_k: int

    @property
    def num_rows(self) -> int:
        """Pairs P."""
        return self.sorted_pairs.shape[0]

    @property
    def num_experts(self) -> int:
        """Experts E."""
        return self.expert_offsets_E1.shape[0] - 1

    @property
    def max_tiles(self) -> int:
        """The static bound on tiles that grids are made from."""
        return self.tile_expert.shape[0]


@jit
def work_tile(work, sorted_pairs_ptr, offsets_ptr, tile_expert_ptr, tile_row_ptr, num_tiles, num_blocks_n,
              BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr):
    """Piece ``work`` of a grouped GEMM: expert (-1: nothing), rows, which exist, their pairs, column block.

    Tiles run in groups of GROUP_M over all column blocks, so neighbours share weights or tokens in L2.
    """
    first = work // (GROUP_M * num_blocks_n) * GROUP_M
    height = tl.minimum(num_tiles - first, GROUP_M)
    inside = work % (GROUP_M * num_blocks_n)
    tile = first + inside % height
    expert = tl.load(tile_expert_ptr + tile)
    rows = tl.load(tile_row_ptr + tile) + tl.arange(0, BLOCK_M)
    # Idle tiles begin at row -1 and end at 0.
    exists = (rows >= 0) & (rows < tl.load(offsets_ptr + expert + 1, mask=expert >= 0, other=0))
    pairs = tl.load(sorted_pairs_ptr + rows, mask=exists, other=0)
    return expert.to(tl.int64), rows, exists, pairs, inside // height


@jit
def _rank_kernel(ids_ptr, rank_ptr, counts_ptr, num_pairs, num_experts, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):
    segment = tl.program_id(0) // CHUNKS
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + p, mask=p < num_pairs, other=-1)
    rank = tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.int32)
    for chunk in range(CHUNKS):
        q = (segment * CHUNKS + chunk) * BLOCK + tl.arange(0, BLOCK)
        others = tl.load(ids_ptr + q, mask=q < num_pairs, other=-2)
        same = ids[:, None] == others[None, :]
        total += tl.sum(same.to(tl.int32), axis=1)
        rank += tl.sum((same & (q[None, :] < p[:, None])).to(tl.int32), axis=1)
    tl.store(rank_ptr + p, rank, mask=p < num_pairs)
    last = (p < num_pairs) & (rank == total - 1)
    tl.store(counts_ptr + segment.to(tl.int64) * num_experts + ids, total, mask=last)


@jit
def _prefix_kernel(counts_ptr, totals_ptr, num_segments, num_experts, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr):
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros((BLOCK_E,), tl.int32)
    for start in range(0, num_segments, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = counts_ptr + s[:, None].to(tl.int64) * num_experts + e[None, :]
        mask = (s[:, None] < num_segments) & (e[None, :] < num_experts)
        counts = tl.load(at, mask=mask, other=0)
        tl.store(at, total[None, :] + tl.cumsum(counts, axis=0) - counts, mask=mask)
        total += tl.sum(counts, axis=0)
    tl.store(totals_ptr + e, total, mask=e < num_experts)


@jit
def _offsets_kernel(totals_ptr, offsets_ptr, tile_offsets_ptr, num_experts, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    rows_before = tl.zeros((BLOCK,), tl.int32)
    tiles_before = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_experts, BLOCK):
        e = start + tl.arange(0, BLOCK)
        rows = tl.load(totals_ptr + e, mask=e < num_experts, other=0)
        tiles = (rows + BLOCK_M - 1) // BLOCK_M
        tl.store(offsets_ptr + 1 + e, rows_before + tl.cumsum(rows, axis=0), mask=e < num_experts)
        tl.store(tile_offsets_ptr + 1 + e, tiles_before + tl.cumsum(tiles, axis=0), mask=e < num_experts)
        rows_before += tl.sum(rows, axis=0)
        tiles_before += tl.sum(tiles, axis=0)


@jit
def _scatter_kernel(ids_ptr, rank_ptr, prefix_ptr, offsets_ptr, sorted_pairs_ptr, num_pairs, num_experts,
                    SEGMENT: tl.constexpr, BLOCK: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = p < num_pairs
    ids = tl.load(ids_ptr + p, mask=mask, other=0)
    row = tl.load(offsets_ptr + ids, mask=mask, other=0) + tl.load(rank_ptr + p, mask=mask, other=0)
    row += tl.load(prefix_ptr + (p // SEGMENT).to(tl.int64) * num_experts + ids, mask=mask, other=0)
    tl.store(sorted_pairs_ptr + row, p, mask=mask)


@jit
def _tile_map_kernel(offsets_ptr, tile_offsets_ptr, tile_expert_ptr, tile_row_ptr, max_tiles, num_experts,
                     STEPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    used = tile < tl.load(tile_offsets_ptr + num_experts)
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32) + num_experts
    for _ in range(STEPS):
        middle = (low + high) // 2
        right = tl.load(tile_offsets_ptr + middle) <= tile
        low = tl.where(right, middle, low)
        high = tl.where(right, high, middle)
    row = tl.load(offsets_ptr + low) + (tile - tl.load(tile_offsets_ptr + low)) * BLOCK_M
    tl.store(tile_expert_ptr + tile, tl.where(used, low, -1), mask=tile < max_tiles)
    tl.store(tile_row_ptr + tile, tl.where(used, row, -1), mask=tile < max_tiles)


@jit
def _sparse_rank_kernel(ids_ptr, rank_ptr, row_ptr, sorted_pairs_ptr, sorted_ids_ptr, num_pairs, BLOCK: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + p, mask=p < num_pairs, other=-1)
    rank = tl.zeros((BLOCK,), tl.int32)
    lower = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_pairs, BLOCK):
        q = start + tl.arange(0, BLOCK)
        others = tl.load(ids_ptr + q, mask=q < num_pairs, other=2147483647)
        rank += tl.sum(((ids[:, None] == others[None, :]) & (q[None, :] < p[:, None])).to(tl.int32), axis=1)
        lower += tl.sum((others[None, :] < ids[:, None]).to(tl.int32), axis=1)
    tl.store(rank_ptr + p, rank, mask=p < num_pairs)
    tl.store(row_ptr + p, lower + rank, mask=p < num_pairs)
    tl.store(sorted_pairs_ptr + lower + rank, p, mask=p < num_pairs)
    tl.store(sorted_ids_ptr + lower + rank, ids, mask=p < num_pairs)


@jit
def _sparse_tiles_kernel(ids_ptr, rank_ptr, row_ptr, tile_expert_ptr, tile_row_ptr, num_tiles_ptr, num_pairs,
                         BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ptr + p, mask=p < num_pairs, other=0)
    starts = (p < num_pairs) & (tl.load(rank_ptr + p, mask=p < num_pairs, other=1) % BLOCK_M == 0)
    before = tl.zeros((BLOCK,), tl.int32)
    total = 0
    for start in range(0, num_pairs, BLOCK):
        q = start + tl.arange(0, BLOCK)
        other_starts = (q < num_pairs) & (tl.load(rank_ptr + q, mask=q < num_pairs, other=1) % BLOCK_M == 0)
        other_row = tl.load(row_ptr + q, mask=q < num_pairs, other=0)
        before += tl.sum((other_starts[None, :] & (other_row[None, :] < row[:, None])).to(tl.int32), axis=1)
        total += tl.sum(other_starts.to(tl.int32), axis=0)
    tl.store(tile_expert_ptr + before, tl.load(ids_ptr + p, mask=starts, other=0), mask=starts)
    tl.store(tile_row_ptr + before, row, mask=starts)
    if tl.program_id(0) == 0:
        tl.store(num_tiles_ptr, total)


@jit
def _sparse_offsets_kernel(sorted_ids_ptr, offsets_ptr, num_pairs, num_experts, STEPS: tl.constexpr,
                           BLOCK: tl.constexpr):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32) + num_pairs
    for _ in range(STEPS):
        middle = (low + high) // 2
        lower = (low < high) & (tl.load(sorted_ids_ptr + middle, mask=middle < num_pairs, other=2147483647) < e)
        low = tl.where(lower, middle + 1, low)
        high = tl.where(lower, high, middle)
    tl.store(offsets_ptr + e, low, mask=e <= num_experts)


def is_sparse(num_pairs: int, num_experts: int) -> bool:
    """Whether a plan is made by comparing pairs with each other."""
    return num_experts >= _SPARSE_RATIO * num_pairs and num_pairs <= _SPARSE_PAIRS


def _check(ids_TK: torch.Tensor, num_experts: int, block_m: int) -> None:
    if ids_TK.ndim != 2 or ids_TK.dtype != torch.int32 or ids_TK.shape[1] < 1:
        raise ValueError(f"ids_TK: expected int32 of shape (T, K >= 1), got {ids_TK.dtype} {tuple(ids_TK.shape)}")
    if num_experts < 1 or block_m < 1 or block_m & (block_m - 1):
        raise ValueError(f"expected num_experts >= 1 and block_m a power of two, got {num_experts}, {block_m}")
    if ids_TK.numel() >= 2**31 - 2**20:
        raise ValueError(f"ids_TK: expected fewer than 2**31 - 2**20 pairs, got {ids_TK.numel()}")


def check_ids(ids_TK: torch.Tensor, num_experts: int) -> None:
    """Refuse experts that do not exist; waits for the device.

    Raises:
        ValueError: An id outside 0..E-1.
    """
    if ids_TK.numel():
        low, high = (int(value) for value in ids_TK.aminmax())
        if low < 0 or high >= num_experts:
            # Only a routing that is refused pays for finding where it is wrong.
            bad_P = ((ids_TK < 0) | (ids_TK >= num_experts)).flatten().int()
            pair = int(bad_P.argmax())
            raise ValueError(f"ids_TK: expected ids from 0 to {num_experts - 1}, got {int(ids_TK.flatten()[pair])} for "
                             f"token {pair // ids_TK.shape[1]}")


def make_plan(ids_TK: torch.Tensor, num_experts: int, block_m: int) -> Plan:
    """Plan the grouped GEMMs of one routing, without waiting for the device.

    Args:
        ids_TK: Expert ids, int32 of shape (T, K), contiguous; each in 0..E-1 (not checked on a GPU: that would be a
            wait).
        num_experts: Experts E.
        block_m: Rows of a tile, a power of two.

    Returns:
        The plan, on the device of ``ids_TK``.

    Raises:
        ValueError: A wrong shape, format or size; on a CPU also an id out of range.
        RuntimeError: No Triton to launch with.
    """
    _check(ids_TK, num_experts, block_m)
    require_triton(ids_TK)
    if ids_TK.device.type == "cpu":
        check_ids(ids_TK, num_experts)
    num_pairs, max_tiles = ids_TK.numel(), tile_bound(ids_TK.numel(), num_experts, block_m)
    if num_pairs and num_experts <= MOST_EXPERTS:
        made = sorted_plan(ids_TK, num_experts, block_m)
        return Plan(**dict(zip(_TENSORS, made, strict=True)), block_m=block_m, top_k=ids_TK.shape[1])
    num_chunks = triton.cdiv(num_pairs, _RANK_BLOCK)
    chunks = min(_RANK_CHUNKS, triton.next_power_of_2(max(num_chunks, 1)))
    num_segments = triton.cdiv(num_chunks, chunks)

    def ints(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=ids_TK.device)

    if num_pairs and is_sparse(num_pairs, num_experts):
        return _sparse_plan(ids_TK, num_experts, block_m)
    rank_P, sorted_pairs, tile_expert, tile_row = ints(num_pairs), ints(num_pairs), ints(max_tiles), ints(max_tiles)
    counts_SE, totals_E = ints(num_segments, num_experts).zero_(), ints(num_experts).zero_()
    offsets_E1, tile_offsets_E1 = ints(num_experts + 1).zero_(), ints(num_experts + 1).zero_()
    plan = Plan(sorted_pairs=sorted_pairs, expert_offsets_E1=offsets_E1, tile_expert=tile_expert, tile_row=tile_row,
                num_tiles=tile_offsets_E1[num_experts:], block_m=block_m, top_k=ids_TK.shape[1])
    if num_pairs == 0:
        return plan
    launch(_rank_kernel, (num_chunks,), ids_TK, rank_P, counts_SE, num_pairs, num_experts, BLOCK=_RANK_BLOCK,
           CHUNKS=chunks, num_warps=8)
    block_s, block_e = min(64, triton.next_power_of_2(num_segments)), min(64, triton.next_power_of_2(num_experts))
    launch(_prefix_kernel, (triton.cdiv(num_experts, block_e),), counts_SE, totals_E, num_segments, num_experts,
           BLOCK_S=block_s, BLOCK_E=block_e)
    launch(_offsets_kernel, (1,), totals_E, offsets_E1, tile_offsets_E1, num_experts, BLOCK_M=block_m,
           BLOCK=min(4096, triton.next_power_of_2(num_experts)))
    launch(_scatter_kernel, (triton.cdiv(num_pairs, 1024),), ids_TK, rank_P, counts_SE, offsets_E1, sorted_pairs,
           num_pairs, num_experts, SEGMENT=_RANK_BLOCK * chunks, BLOCK=1024)
    launch(_tile_map_kernel, (triton.cdiv(max_tiles, 1024),), offsets_E1, tile_offsets_E1, tile_expert, tile_row,
           max_tiles, num_experts, STEPS=num_experts.bit_length(), BLOCK_M=block_m, BLOCK=1024)
    return plan


def _sparse_plan(ids_TK: torch.Tensor, num_experts: int, block_m: int) -> Plan:
    num_pairs, max_tiles = ids_TK.numel(), tile_bound(ids_TK.numel(), num_experts, block_m)

    def ints(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=ids_TK.device)

    rank_P, row_P, sorted_ids, sorted_pairs = (ints(num_pairs) for _ in range(4))
    tile_expert, tile_row, offsets_E1, num_tiles = ints(max_tiles), ints(max_tiles), ints(num_experts + 1), ints(1)
    tile_expert.fill_(-1)
    tile_row.fill_(-1)
    grid = (triton.cdiv(num_pairs, _RANK_BLOCK),)
    launch(_sparse_rank_kernel, grid, ids_TK, rank_P, row_P, sorted_pairs, sorted_ids, num_pairs, BLOCK=_RANK_BLOCK,
           num_warps=8)
    launch(_sparse_tiles_kernel, grid, ids_TK, rank_P, row_P, tile_expert, tile_row, num_tiles, num_pairs,
           BLOCK_M=block_m, BLOCK=_RANK_BLOCK, num_warps=8)
    launch(_sparse_offsets_kernel, (triton.cdiv(num_experts + 1, 1024),), sorted_ids, offsets_E1, num_pairs,
           num_experts, STEPS=num_pairs.bit_length(), BLOCK=1024)
    return Plan(sorted_pairs=sorted_pairs, expert_offsets_E1=offsets_E1, tile_expert=tile_expert, tile_row=tile_row,
                num_tiles=num_tiles, block_m=block_m, top_k=ids_TK.shape[1])


def make_plan_reference(ids_TK: torch.Tensor, num_experts: int, block_m: int) -> Plan:
    """`make_plan` in torch: same arguments, results and ValueErrors; waits for the device."""
    _check(ids_TK, num_experts, block_m)
    check_ids(ids_TK, num_experts)
    counts_E = torch.bincount(ids_TK.flatten(), minlength=num_experts)
    tiles_E = (counts_E + block_m - 1) // block_m
    offsets_E1 = torch.nn.functional.pad(counts_E.cumsum(0), (1, 0))
    tile_offsets_E1 = torch.nn.functional.pad(tiles_E.cumsum(0), (1, 0))
    expert_M = torch.repeat_interleave(tiles_E)
    row_M = offsets_E1[expert_M] + (torch.arange(len(expert_M), device=ids_TK.device)
                                    - tile_offsets_E1[expert_M]) * block_m
    unused = (0, tile_bound(ids_TK.numel(), num_experts, block_m) - len(expert_M))
    return Plan(sorted_pairs=ids_TK.flatten().argsort(stable=True).int(), expert_offsets_E1=offsets_E1.int(),
                tile_expert=torch.nn.functional.pad(expert_M, unused, value=-1).int(),
                tile_row=torch.nn.functional.pad(row_M, unused, value=-1).int(),
                num_tiles=tile_offsets_E1[num_experts:].int(), block_m=block_m, top_k=ids_TK.shape[1])
