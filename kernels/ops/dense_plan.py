"""Plan a plain GEMM as a grouped one: a single expert that every row goes to, in order."""

from functools import lru_cache

import torch
from moesim_kernels.ops.plan import Plan
from moesim_kernels.ops.runtime import capturing
from moesim_kernels.tiles.tiles import tile_bound


def dense_plan(num_rows: int, block_m: int, device: torch.device) -> Plan:
    """Return the plan of a plain GEMM. It is the same every time and made once.

    A plan made while a graph is recorded has no numbers before the graph runs, so it is not kept.
    """
    make = _made if capturing() else _kept
    return make(num_rows, block_m, device)


def _made(num_rows: int, block_m: int, device: torch.device) -> Plan:
    max_tiles = tile_bound(num_rows, 1, block_m)
    rows = torch.arange(num_rows, dtype=torch.int32, device=device)
    tiles = torch.arange(max_tiles, dtype=torch.int32, device=device)
    # Made by arange and not from a list, which would be a copy to the device that waits.
    offsets_E1 = torch.arange(2, dtype=torch.int32, device=device) * num_rows
    return Plan(
        sorted_pairs=rows,
        expert_offsets_E1=offsets_E1,
        tile_expert=torch.zeros_like(tiles),
        tile_row=tiles * block_m,
        num_tiles=torch.full_like(offsets_E1[:1], max_tiles),
        block_m=block_m,
        top_k=1,
    )


_kept = lru_cache(maxsize=64)(_made)
