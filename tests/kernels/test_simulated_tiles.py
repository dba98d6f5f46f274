"""What the simulator charges for a grouped GEMM is what the kernels' plan does: the same numbers,
not close ones.

The kernel's side is counted from the plan alone, program by program, as `work_tile` reads it: which
tile and column block a program has, which rows exist, how often it multiplies. Every element counts
once, however many programs read it: that is what the simulator takes from memory.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moesim_kernels.ops.fp8 import quantise_blocks_reference, quantise_rows_reference
from moesim_kernels.ops.plan import Plan, make_plan, make_plan_reference
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.tiles.tiles import Tile, tile_bound, tiles_per_expert
from moesim_kernels.timing.bench import random_ids

from moesim.costs.load import Load
from moesim.costs.work import GemmWork
from moesim.model import Gate, Precision
from moesim.routing import RoutingSpec, route


@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize(
    ("num_experts", "top_k", "num_tokens"), [(8, 2, 1), (61, 4, 129), (128, 8, 40)]
)
@pytest.mark.parametrize("routing", ["uniform", "zipf:1.2", "power_law:1.2"])
def test_tiles_of_the_simulator_are_those_of_the_plan(
    device, routing, num_experts, top_k, num_tokens, block_m
):
    drawn = route(
        RoutingSpec.parse(routing),
        Gate(),
        num_experts=num_experts,
        top_k=top_k,
        num_tokens_S=np.array([num_tokens]),
        seed=1,
    )
    counts_E = drawn.num_tokens_E()
    load = Load.of(counts_E[None], np.array([num_tokens * top_k]), block_m)
    plan = make_plan(torch.from_numpy(drawn.expert_ids_TK).to(device), num_experts, block_m)
    assert (
        load.blocks_D.tolist()
        == [int(plan.num_tiles)]
        == [tiles_per_expert(counts_E, block_m).sum()]
    )


@dataclass(frozen=True)
class Done:
    """What the programs of one launch do."""

    programs: int
    working: int
    multiplications: int
    weights: int
    inputs: int
    outputs: int
    idle_tiles: int


def _run(plan: Plan, columns: int, depth: int, tile: Tile) -> Done:
    """Count a launch of (count x depth) times (depth x columns) for each expert."""
    blocks_n = -(-columns // tile.block_n)
    offsets = plan.expert_offsets_E1.tolist()
    seen: Counter[tuple[int, int]] = Counter()
    working = multiplications = 0
    weights, inputs, outputs = set(), set(), set()
    for pid in range(plan.max_tiles * blocks_n):
        first = pid // (tile.group_m * blocks_n) * tile.group_m
        height = min(plan.max_tiles - first, tile.group_m)
        inside = pid % (tile.group_m * blocks_n)
        at, block_n = first + inside % height, inside // height
        seen[at, block_n] += 1
        expert, row = int(plan.tile_expert[at]), int(plan.tile_row[at])
        if expert < 0:
            continue
        working += 1
        multiplications += -(-depth // tile.block_k) * tile.block_m * tile.block_n * tile.block_k
        widths = range(block_n * tile.block_n, min((block_n + 1) * tile.block_n, columns))
        rows = range(row, min(row + tile.block_m, offsets[expert + 1]))
        assert row >= offsets[expert]
        assert len(rows) > 0
        weights |= {(expert, n) for n in widths}
        inputs |= set(rows)
        outputs |= {(r, n) for r in rows for n in widths}
    assert set(seen.values()) <= {1}, "a tile and column block has one program"
    assert len(seen) == plan.max_tiles * blocks_n
    return Done(
        programs=plan.max_tiles * blocks_n,
        working=working,
        multiplications=multiplications,
        weights=len(weights) * depth,
        inputs=len(inputs) * depth,
        outputs=len(outputs),
        idle_tiles=int((plan.tile_expert < 0).sum()),
    )


routings = st.tuples(
    st.integers(1, 24), st.integers(0, 60), st.floats(0.0, 3.0), st.integers(0, 2**16)
).flatmap(lambda drawn: st.integers(1, drawn[0]).map(lambda top_k: (*drawn, top_k)))
tiles = st.builds(
    Tile,
    block_m=st.sampled_from([16, 32, 64]),
    block_n=st.sampled_from([16, 32, 128]),
    block_k=st.sampled_from([16, 64]),
    group_m=st.integers(1, 9),
)


@settings(max_examples=120, deadline=None)
@given(routing=routings, tile=tiles, columns=st.integers(1, 150), depth=st.integers(1, 300))
def test_tiles_bytes_and_flops_are_the_simulators(routing, tile, columns, depth):
    num_experts, num_tokens, skew, seed, top_k = routing
    ids_TK = random_ids(num_tokens, num_experts, top_k, skew=skew, seed=seed)
    plan = make_plan_reference(ids_TK, num_experts, tile.block_m)
    counts_E = torch.bincount(ids_TK.flatten(), minlength=num_experts).numpy()
    load = Load.of(counts_E[None], np.array([num_tokens * top_k]), tile.block_m)
    work = GemmWork.of(load, columns, depth, tile)
    done = _run(plan, columns, depth, tile)
    [work_tiles] = work.tiles_D
    charged = work_tiles * work.iterations_D * tile.block_m * tile.block_n * tile.block_k
    assert (done.working, done.multiplications) == (work_tiles, charged)
    assert [done.weights, done.inputs, done.outputs] == [
        work.weights_D[0],
        work.inputs_D[0],
        work.outputs_D[0],
    ]
    # The simulator's grid is that of vLLM and sglang, whose bound is one tile looser than ours
    # unless it divides.
    rows = num_tokens * top_k
    looser = rows > num_experts and (rows - num_experts) % tile.block_m > 0
    assert (
        plan.max_tiles
        == tile_bound(rows, num_experts, tile.block_m)
        == load.blocks_D[0] + done.idle_tiles
    )
    assert load.idle_blocks_D[0] == done.idle_tiles + looser


@settings(max_examples=25, deadline=None)
@given(routing=routings, block_m=st.sampled_from([16, 64]))
def test_the_kernels_plan_is_the_counted_one(routing, block_m):
    num_experts, num_tokens, skew, seed, top_k = routing
    ids_TK = random_ids(
        num_tokens, num_experts, top_k, skew=skew, seed=seed, device=kernel_device()
    )
    plan, counted = (
        make_plan(ids_TK, num_experts, block_m),
        make_plan_reference(ids_TK, num_experts, block_m),
    )
    for name in ("sorted_pairs", "expert_offsets_E1", "tile_expert", "tile_row", "num_tiles"):
        assert torch.equal(getattr(plan, name), getattr(counted, name)), name


@settings(max_examples=40, deadline=None)
@given(routing=routings, tile=tiles, blocks=st.integers(1, 3), depth=st.integers(1, 300))
def test_swiglu_is_two_products_of_half_the_columns(routing, tile, blocks, depth):
    """The fused kernel's programs each do a gate and an up block; the simulator charges one GEMM of
    both.
    """
    num_experts, num_tokens, skew, seed, top_k = routing
    ids_TK = random_ids(num_tokens, num_experts, top_k, skew=skew, seed=seed)
    counts_E = torch.bincount(ids_TK.flatten(), minlength=num_experts).numpy()
    load = Load.of(counts_E[None], np.array([num_tokens * top_k]), tile.block_m)
    width = blocks * tile.block_n
    work = GemmWork.of(load, 2 * width, depth, tile)
    done = _run(make_plan_reference(ids_TK, num_experts, tile.block_m), width, depth, tile)
    charged = work.tiles_D[0] * work.iterations_D * tile.block_m * tile.block_n * tile.block_k
    assert (2 * done.working, 2 * done.multiplications) == (work.tiles_D[0], charged)
    assert (2 * done.weights, done.inputs) == (work.weights_D[0], work.inputs_D[0])


@settings(max_examples=60, deadline=None)
@given(
    routing=routings,
    blocks_n=st.integers(1, 4),
    blocks_k=st.integers(1, 4),
    block_n=st.sampled_from([16, 64, 128]),
)
def test_bytes_of_block_scaled_operands_are_the_simulators(routing, blocks_n, blocks_k, block_n):
    """Values and scales that `quantise_rows` and `quantise_blocks` make, counted over the experts
    the plan reads.
    """
    num_experts, num_tokens, skew, seed, top_k = routing
    columns, depth, precision = 128 * blocks_n, 128 * blocks_k, Precision.named("fp8")
    ids_TK = random_ids(num_tokens, num_experts, top_k, skew=skew, seed=seed)
    tile = Tile(block_m=16, block_n=block_n, block_k=128)
    counts_E = torch.bincount(ids_TK.flatten(), minlength=num_experts).numpy()
    work = GemmWork.of(
        Load.of(counts_E[None], np.array([num_tokens * top_k]), tile.block_m), columns, depth, tile
    )
    done = _run(make_plan_reference(ids_TK, num_experts, tile.block_m), columns, depth, tile)
    active, rows = done.weights // (columns * depth), done.inputs // depth
    one = quantise_blocks_reference(torch.ones(1, columns, depth))
    row = quantise_rows_reference(torch.ones(1, depth))
    assert work.weights_D[0] * precision.weight_bytes == active * (
        one.values.nbytes + one.scales.nbytes
    )
    assert rows * precision.token_bytes("activations", depth) == rows * (
        row.values.nbytes + row.scales.nbytes
    )
    assert (done.working, done.multiplications) == (
        work.tiles_D[0],
        work.tiles_D[0] * work.iterations_D * tile.block_m * tile.block_n * tile.block_k,
    )


@settings(max_examples=40, deadline=None)
@given(routing=routings, tile=tiles, columns=st.integers(1, 150), programs=st.integers(1, 40))
def test_persistent_programs_do_the_work_of_the_plan_once(routing, tile, columns, programs):
    num_experts, num_tokens, skew, seed, top_k = routing
    ids_TK = random_ids(num_tokens, num_experts, top_k, skew=skew, seed=seed)
    plan = make_plan_reference(ids_TK, num_experts, tile.block_m)
    counts_E = torch.bincount(ids_TK.flatten(), minlength=num_experts).numpy()
    work = GemmWork.of(
        Load.of(counts_E[None], np.array([num_tokens * top_k]), tile.block_m), columns, 64, tile
    )
    num_tiles, blocks_n = int(plan.num_tiles), -(-columns // tile.block_n)
    done = [
        piece
        for program in range(programs)
        for piece in range(program, num_tiles * blocks_n, programs)
    ]
    assert sorted(done) == list(range(int(work.tiles_D[0])))
    assert (plan.tile_expert[:num_tiles] >= 0).all()
