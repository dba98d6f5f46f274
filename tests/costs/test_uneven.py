"""Experts of different widths: each counts with its own, and equal ones cost what one
width costs.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.costs.devices.primitives import kernels_for
from moesim.costs.load import Load
from moesim.costs.phases.experts import ExpertShape, price_experts, price_layer_experts, slot_widths
from moesim.costs.tiles import Tile, heuristic_tile
from moesim.costs.work import GemmSpec, GemmWork
from moesim.hardware import load_profile
from moesim.model.precision import Precision
from moesim.placement import place

COUNTS = st.lists(st.integers(0, 700), min_size=12, max_size=12).map(
    lambda rows: np.array(rows).reshape(2, 6)
)
WIDTHS = st.lists(st.sampled_from([0, 16, 24, 100, 256, 1000]), min_size=12, max_size=12).map(
    lambda widths: np.array(widths).reshape(2, 6)
)
TILES = st.sampled_from(
    [Tile(block_m=16, block_n=64, block_k=64), Tile(block_m=128, block_n=128, block_k=32)]
)


@pytest.fixture(scope="module")
def chips(h100):
    """One device of each kind of kernel prices."""
    terms = (
        "group_s",
        "row_count_away_s",
        "mkn_s",
        "kn_s",
        "kn_few_s",
        "n_s",
        "kn_missing_byte_s",
        "mk_s",
        "mn_s",
    )
    tables = {
        "gemm_bfloat16": dict.fromkeys(terms, 1e-9),
        "launch": {"call_s": 1e-6},
        "stream": {"byte_s": 1e-10},
        "align": {"element_s": 1e-8},
    }
    serial = replace(h100, execution="serial", serial=tables)
    return {
        "waves": kernels_for(h100),
        "serial": kernels_for(serial),
        "systolic": kernels_for(load_profile("tpu-ironwood")),
    }


def same(one, other):
    for part in ("compute_s_D", "memory_s_D", "latency_s_D"):
        assert getattr(one, part) == pytest.approx(getattr(other, part), rel=1e-12, abs=1e-18), part


@pytest.mark.parametrize("kind", ["waves", "serial", "systolic"])
@pytest.mark.parametrize("recipe", ["bf16", "fp8", "int4"])
@given(
    counts=COUNTS,
    width=st.sampled_from([16, 100, 512]),
    tile=TILES,
    masked=st.integers(0, 500),
    warm=st.booleans(),
)
def test_equal_widths_cost_what_one_width_costs(
    chips, make_layer, kind, recipe, counts, width, tile, masked, warm
):
    if kind == "serial" and recipe == "fp8":
        return
    layer = make_layer(expert_intermediate_size=width, precision=Precision.named(recipe))
    shape, tokens = ExpertShape.of(layer, 1), counts.sum(axis=1) // 2 + masked
    even, each = (
        Load.of(counts, tokens * 2, tile.block_m, widths)
        for widths in (None, np.full((2, 6), width))
    )
    same(
        *(
            price_experts(chips[kind], shape, load, tokens, tiles=(tile, tile), warm=warm)
            for load in (even, each)
        )
    )


@given(counts=COUNTS, widths=WIDTHS, tile=TILES)
def test_work_is_that_of_each_expert_by_itself(counts, widths, tile):
    """FLOPs (tiles times iterations), weights and activations: sums over experts; nothing for who
    has no rows.
    """
    counts = np.where(widths > 0, counts, 0)
    load = Load.of(counts, counts.sum(axis=1), tile.block_m, widths)
    for n, k in ((2 * widths, 768), (768, widths)):
        work = GemmWork.of(load, n, k, tile)
        alone = [
            [
                GemmWork.of(
                    Load.of(counts[d, e].reshape(1, 1), counts[d, e].reshape(1), tile.block_m),
                    *(int(s if np.ndim(s) == 0 else s[d, e]) for s in (n, k)),
                    tile,
                )
                for e in range(6)
            ]
            for d in range(2)
        ]

        def total(value, alone=alone):
            return [sum(float(np.squeeze(value(one))) for one in row) for row in alone]

        assert work.tiles_D.tolist() == total(lambda w: w.tiles_D)
        assert work.tiles_D * work.iterations_D == pytest.approx(
            total(lambda w: w.tiles_D * w.iterations_D)
        )
        for name in ("weights_D", "inputs_D", "outputs_D"):
            assert getattr(work, name).tolist() == total(lambda w, name=name: getattr(w, name)), (
                name
            )
        assert (work.longest_D >= work.iterations_D).all()


@pytest.mark.parametrize("kind", ["waves", "serial", "systolic"])
@given(counts=COUNTS, widths=WIDTHS)
def test_wider_experts_never_cost_less(chips, make_layer, kind, counts, widths):
    """At widths of whole 16s: others lose aligned loads."""
    widths = -(-widths // 16) * 16
    counts = np.where(widths > 0, counts, 0)
    layer, tile, tokens = make_layer(), heuristic_tile(64, 2.0), counts.sum(axis=1)
    widest = np.where(widths > 0, widths.max(), 0)

    def price(each):
        shape = replace(ExpertShape.of(layer, 1), width=int(widths.max()))
        return price_experts(
            chips[kind],
            shape,
            Load.of(counts, tokens * 2, tile.block_m, each),
            tokens,
            tiles=(tile, tile),
        )

    one, other = price(widths), price(widest)
    assert (one.solo_s_D() <= other.solo_s_D() * (1 + 1e-9)).all()
    assert np.isfinite(one.solo_s_D()).all()
    assert (one.solo_s_D()[counts.sum(axis=1) == 0] == 0).all()


def test_by_hand(plain, make_layer):
    """60 rows of an expert of 512, 40 of one of 128: weights, activations and both GEMMs' waves;
    one pruned expert.
    """
    tile = Tile(block_m=128, block_n=64, block_k=64, num_warps=8, num_stages=2)
    layer = make_layer(num_experts=4, expert_intermediate_size=(512, 0, 128, 512))
    counts, widths = np.array([[60, 0, 40, 0]]), np.array([[512, 0, 128, 512]])
    cost = price_layer_experts(plain, layer, 1, counts, widths, np.array([50]), tiles=(tile, tile))
    hidden, row_widths = 1024, 60 * 512 + 40 * 128
    gemms = (
        3 * (512 + 128) * hidden * 2
        + (100 * 2 * hidden + 2 * row_widths) * 2
        + (row_widths + 100 * 2 * hidden) * 2
    )
    others = 100 * 12 + 3 * row_widths * 2 + (2 * 100 + 50) * hidden * 2
    assert cost.memory_s_D == pytest.approx((gemms + others) / 1e9)
    # up: 16 + 4 tiles of 16 iterations; down: 16 tiles of 8 and 16 of 2, on average 5 deep in four
    # waves of ten
    iterations = 2 * 16 + 4 * 5
    assert cost.compute_s_D == pytest.approx(iterations * 2 * 128 * 64 * 64 / 1000 / 1e9)


def test_no_wave_is_shorter_than_its_longest_tile(plain):
    tile, load = Tile(block_m=16, block_n=64, block_k=64), np.array([[1, 1]])
    gemm = {"tile": tile, "fmt": "bfloat16", "weight_bytes": 2.0, "input_bytes": 2.0}
    both = plain.grouped_gemm(
        Load.of(load, np.array([2]), 16), 64, np.array([[6400, 64]]), GemmSpec(**gemm)
    )
    alone = plain.grouped_gemm(Load.of(load[:, :1], np.array([1]), 16), 64, 6400, GemmSpec(**gemm))
    assert both.compute_s_D == pytest.approx(alone.compute_s_D)


def test_slots_know_their_expert_s_width(make_layer):
    layer = make_layer(num_experts=4, expert_intermediate_size=(7, 0, 100, 64))
    placement = place("eplb", np.array([1, 0, 9, 1]), 2, 2)
    widths = slot_widths(layer, placement, 2)
    assert widths.shape == (4, 3)
    share = {0: 4, 1: 0, 2: 50, 3: 32}
    slots = list(
        zip(placement.expert_of_slot_P.tolist(), placement.rank_of_slot_P.tolist(), strict=True)
    )
    assert widths.tolist() == [[share[e] for e, rank in slots if rank == r] for r in (0, 0, 1, 1)]


def test_even_layers_need_no_widths(make_layer, h100):
    layer, counts = make_layer(), np.array([[5, 0, 90]])
    kernels, shape = kernels_for(h100), ExpertShape.of(layer, 2)
    cost = price_layer_experts(kernels, layer, 2, counts, None, np.array([60]))
    tiles = kernels.expert_tiles(counts, shape.sizes)
    load = Load.of(counts, np.array([120]), tiles[0].block_m)
    same(cost, price_experts(kernels, shape, load, np.array([60]), tiles=tiles))
