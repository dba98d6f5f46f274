"""The plan against its twin, and both against what a plan must be."""

import numpy as np
import pytest
import torch
from moesim_kernels.ops.counting_sort import MOST_EXPERTS, counted
from moesim_kernels.ops.plan import (
    is_sparse,
    make_plan,
    make_plan_reference,
    tile_bound,
    tiles_per_expert,
)
from moesim_kernels.timing.bench import random_ids

TENSORS = ("sorted_pairs", "expert_offsets_E1", "tile_expert", "tile_row", "num_tiles")
CASES = [
    (0, 8, 2, 16, 0.0),
    (1, 1, 1, 16, 0.0),
    (255, 61, 8, 16, 1.2),
    (37, 61, 61, 64, 0.0),
    (371, 64, 2, 128, 0.0),
    (3, 4096, 4, 16, 0.0),
    (300, 3, 1, 16, 1.0),
    (1025, 1, 1, 32, 0.0),
    (911, 7, 2, 128, 2.0),
]


@pytest.mark.parametrize(("tokens", "experts", "top_k", "block_m", "skew"), CASES)
def test_plan(device, tokens, experts, top_k, block_m, skew):
    ids_TK = random_ids(tokens, experts, top_k, skew=skew, device=device)
    plan, want = make_plan(ids_TK, experts, block_m), make_plan_reference(ids_TK, experts, block_m)
    for name in TENSORS:
        assert getattr(plan, name).dtype == torch.int32
        assert torch.equal(getattr(plan, name), getattr(want, name)), name

    ids, pairs = ids_TK.flatten().cpu().numpy(), plan.sorted_pairs.cpu().numpy()
    counts = np.bincount(ids, minlength=experts)
    assert sorted(pairs) == list(range(tokens * top_k)), "a bijection of the pairs"
    assert (np.diff(ids[pairs]) >= 0).all(), "experts in order"
    assert all(np.diff(pairs)[np.diff(ids[pairs]) == 0] > 0), "stable inside an expert"
    assert plan.expert_offsets_E1.diff().tolist() == counts.tolist()
    tiles = tiles_per_expert(counts, block_m)
    num_tiles = int(plan.num_tiles)
    assert (
        num_tiles == tiles.sum() <= plan.max_tiles == tile_bound(tokens * top_k, experts, block_m)
    )
    experts_of_tiles = plan.tile_expert.cpu().numpy()
    assert np.bincount(experts_of_tiles[:num_tiles], minlength=experts).tolist() == tiles.tolist()
    assert (experts_of_tiles[num_tiles:] == -1).all()
    assert (plan.num_rows, plan.num_experts) == (tokens * top_k, experts)


@pytest.mark.parametrize("hot", [0, 30, 60])
def test_one_hot_expert(device, hot):
    ids_TK = torch.full((1500, 1), hot, dtype=torch.int32, device=device)
    plan = make_plan(ids_TK, 61, 128)
    assert plan.sorted_pairs.tolist() == list(range(1500))
    assert plan.expert_offsets_E1.tolist() == [0] * (hot + 1) + [1500] * (61 - hot)
    assert int(plan.num_tiles) == 12
    assert plan.tile_row[:12].tolist() == list(range(0, 1500, 128))


def test_worst_case_fills_the_bound(device):
    ids_TK = torch.tensor([*range(1, 8), *[0] * 17], dtype=torch.int32, device=device)[:, None]
    plan = make_plan(ids_TK, 8, 16)
    assert int(plan.num_tiles) == plan.max_tiles == 9


@pytest.mark.parametrize("plan", [make_plan, make_plan_reference])
def test_refuses(plan, device):
    with pytest.raises(ValueError, match="ids_TK: expected int32"):
        plan(torch.zeros(2, 2, dtype=torch.int64, device=device), 4, 16)
    with pytest.raises(ValueError, match="block_m a power of two"):
        plan(torch.zeros(2, 2, dtype=torch.int32, device=device), 4, 24)
    with pytest.raises(ValueError, match="num_experts >= 1"):
        plan(torch.zeros(2, 2, dtype=torch.int32, device=device), 0, 16)


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "skew", "block_m"),
    [
        (1, 61, 1, 0.0, 16),
        pytest.param(1, 200_003, 8, 0.0, 16, marks=pytest.mark.full),
        pytest.param(1, 1_000_003, 8, 0.0, 16, marks=pytest.mark.long),
        (16, 997, 8, 1.2, 16),
        (150, 4_096, 2, 3.0, 32),
        (40, 1_300, 8, 4.0, 2),
        (1, 8, 2, 0.0, 16),
    ],
)
def test_far_more_experts_than_pairs_give_the_same_plan(
    device, tokens, experts, top_k, skew, block_m
):
    drawn = random_ids(tokens, min(experts, 4096), top_k, skew=skew, device=device)
    for ids_TK in (drawn, drawn * 0 + experts - 1, (drawn * 0 + experts - 1 - drawn).int()):
        assert is_sparse(ids_TK.numel(), experts)
        plan, want = (
            make_plan(ids_TK, experts, block_m),
            make_plan_reference(ids_TK, experts, block_m),
        )
        for name in ("sorted_pairs", "expert_offsets_E1", "tile_expert", "tile_row", "num_tiles"):
            assert torch.equal(getattr(plan, name), getattr(want, name)), name
    assert not is_sparse(experts // 4 + 1, experts)
    assert not is_sparse(2**15, 2**20)


@pytest.mark.parametrize(
    ("pairs", "experts", "counts"),
    [
        (2048, 100, "none"),
        (2049, 100, "rows"),
        (5000, 8, "rows"),
        (9000, 700, "sums"),
        (3000, 4096, "sums"),
    ],
)
@pytest.mark.parametrize("skew", [0.0, 2.0])
def test_every_way_of_counting_gives_the_plan(device, pairs, experts, counts, skew):
    assert counted(pairs, experts) == counts
    ids_TK = random_ids(pairs, min(experts, 256), 1, skew=skew, seed=3, device=device)
    ids_TK = (ids_TK * (experts // min(experts, 256))).int()
    plan, want = make_plan(ids_TK, experts, 16), make_plan_reference(ids_TK, experts, 16)
    for name in TENSORS:
        assert torch.equal(getattr(plan, name), getattr(want, name)), name


def test_pieces_of_a_plan_begin_on_multiples_of_16_bytes(device):
    plan = make_plan(random_ids(37, 61, 3, device=device), 61, 16)
    base = plan.sorted_pairs.data_ptr()
    assert all((getattr(plan, name).data_ptr() - base) % 16 == 0 for name in TENSORS)


def test_more_experts_than_fit_a_program_have_a_way_of_their_own(device):
    experts = MOST_EXPERTS + 1
    ids_TK = random_ids(3000, 200, 1, skew=1.0, device=device) * 20
    assert not is_sparse(ids_TK.numel(), experts)
    plan, want = make_plan(ids_TK, experts, 32), make_plan_reference(ids_TK, experts, 32)
    for name in TENSORS:
        assert torch.equal(getattr(plan, name), getattr(want, name)), name
