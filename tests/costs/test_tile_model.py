"""The tile model: no faster than the hardware, and each of its causes by itself."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import MoELayer, Precision, load_profile
from moesim.costs.calibration import load_calibration
from moesim.costs.devices.primitives import kernels_for
from moesim.costs.devices.tile_choice import (
    best_pairs,
    compiled_tiles,
    expected_counts,
    form_of,
    nearby_tokens,
    tile_us_R,
)
from moesim.costs.devices.tile_model import TileModel
from moesim.costs.devices.tile_work import FORMS, TileWork, resident_R
from moesim.costs.libraries import OWN_KERNELS, running
from moesim.costs.load import Load
from moesim.costs.phases.experts import ExpertShape, price_experts, tiles_of
from moesim.costs.tiles import Tile
from moesim.costs.work import ExpertSizes, GemmSpec
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import load_cluster

H100 = load_profile("h100-sxm")
SIZES = ExpertSizes(hidden=4096, width=1536, num_up=2, top_k=8, fmt="bfloat16", element_bytes=2.0)


def model(name="h100-sxm"):
    profile = load_profile(name)
    return TileModel(profile=profile, calibration=load_calibration(OWN_KERNELS, profile))


def work(form="wide_pointers", *, blocks=8, rows=512, active=8, columns=3072, depth=4096, **more):
    tile = {"block_m": 64, "block_n": 256, "block_k": 64, "num_warps": 8, "num_stages": 3}
    names = [name for name in more if name in tile or name == "group_m"]
    tile |= {"group_m": 1} | {name: more.pop(name) for name in names}
    return TileWork(
        form_R=np.array([FORMS.index(form)]),
        tile=Tile(**tile),
        rows_R=np.array([rows]),
        active_R=np.array([active]),
        blocks_R=np.array([blocks]),
        groups_R=np.array([-(-blocks // tile["group_m"])]),
        columns_R=np.array([columns]),
        depth_R=np.array([depth]),
        **{"element_bytes": 2.0, "top_k_R": np.array([1])} | more,
    )


@pytest.mark.parametrize("name", ["h100-sxm", "h200-sxm", "a100-sxm", "mi300x", "b200-sxm"])
@settings(max_examples=15)
@given(
    counts=st.lists(st.integers(0, 900), min_size=1, max_size=12).filter(any),
    hidden=st.sampled_from([512, 2048, 7168]),
    width=st.sampled_from([64, 768, 14336]),
)
def test_no_tile_beats_the_hardware(name, counts, hidden, width):
    """Neither the peak rate nor, for the active experts' weights, the memory's bandwidth."""
    own, counts_E = model(name), np.array(counts)
    sizes = replace(SIZES, hidden=hidden, width=width)
    weights = 2.0 * hidden * width * (counts_E > 0).sum()
    for gemm, products in (("up", 2), ("down", 1)):
        tiles = compiled_tiles("sm_90", 16, gemm)
        us_R = tile_us_R(own, counts_E, sizes, gemm, tiles)
        assert us_R.shape == (len(tiles),)
        assert np.isfinite(us_R).all()
        flops = 2.0 * products * hidden * width * counts_E.sum()
        assert us_R.min() * 1e-6 > flops / own.profile.peak("bfloat16")
        bandwidth = own.profile.hbm_bandwidth_bytes_per_s
        assert us_R.min() * 1e-6 > products * weights / bandwidth


def test_rows_of_a_table_are_priced_independently():
    own, tiles = model(), compiled_tiles("sm_90", 16, "up")
    counts_E = np.array([3, 0, 200, 17])
    together = tile_us_R(own, counts_E, SIZES, "up", tiles)
    alone = [tile_us_R(own, counts_E, SIZES, "up", [tile])[0] for tile in tiles]
    assert together == pytest.approx(alone)


def test_a_row_block_reads_its_weights_again_where_l2_loses_them():
    own = model()
    large = {"columns": 28672, "depth": 4096}
    once = own.price(work(blocks=8, **large), "bfloat16").memory_s_D[0]
    again = own.price(work(blocks=64, rows=512, **large), "bfloat16").memory_s_D[0]
    assert 5.0 < again / once < 8.1
    # Matrices that stay in L2 are read once, whatever the number of row blocks.
    small = {"columns": 1024, "depth": 1024, "active": 8, "rows": 512}
    few, many = (own.price(work(blocks=n, **small), "bfloat16").memory_s_D[0] for n in (8, 64))
    assert many < 1.2 * few
    # Groups of row blocks go through the weights together.
    grouped = own.price(work(blocks=64, rows=512, group_m=8, **large), "bfloat16").memory_s_D[0]
    assert grouped == pytest.approx(once, rel=0.05)


def test_weights_in_l2_cost_no_memory():
    own = model()
    cold = own.price(work(), "bfloat16").memory_s_D[0]
    warm = own.price(work(warm_bytes_R=np.array([1e6])), "bfloat16").memory_s_D[0]
    assert warm < 0.2 * cold
    far = own.price(work(warm_bytes_R=np.array([1e12])), "bfloat16").memory_s_D[0]
    assert far == pytest.approx(cold, rel=1e-6)


def test_short_pieces_of_rows_are_slow():
    """By pointers most of all: 64 bytes of a row, then 128, then 256 and more."""
    own = model()
    moved = [own.price(work(block_k=k), "bfloat16").memory_s_D[0] for k in (32, 64, 128, 256)]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 1.3 * moved[2]


def test_exact_float32_runs_on_the_lanes():
    own = model()
    wide = own.price(work("paired_pointers"), "bfloat16").compute_s_D[0]
    exact = own.price(work("paired_pointers", element_bytes=4.0), "float32").compute_s_D[0]
    flops = 2.0 * 8 * 64 * 3072 * 4096
    assert exact > flops / (H100.num_sms * 256 * H100.clock_hz) > wide


def test_scales_cost_cycles_of_every_step():
    own = model()
    plain, scaled = (
        own.price(work("paired_descriptors", element_bytes=1.0, scaled=s), "float8_e4m3")
        for s in (False, True)
    )
    assert scaled.compute_s_D[0] > plain.compute_s_D[0]
    assert scaled.memory_s_D[0] == plain.memory_s_D[0]


@pytest.mark.parametrize("form", FORMS)
def test_an_sm_holds_what_fits(form):
    for stages in (2, 3, 4):
        held = resident_R(work(form, num_stages=stages), H100)
        shared = stages * (64 + 256) * 64 * 2
        assert 1 <= held[0] <= max(H100.shared_memory_per_sm_bytes // shared, 1)
        assert held[0] == int(held[0])


def test_the_kernel_that_runs_follows_from_format_and_tile():
    tile = Tile(block_m=64, block_n=64, block_k=64)
    pointers, descriptors = replace(tile, descriptors=False), replace(tile, descriptors=True)
    assert form_of(True, 2, tile) == form_of(True, 2, pointers) == "wide_pointers"
    assert form_of(True, 2, descriptors) == "wide_descriptors"
    assert form_of(True, 1, descriptors) == "wide_descriptors"
    assert form_of(True, 4, descriptors) == "paired_descriptors"
    assert form_of(True, 4, pointers) == "paired_pointers"
    assert form_of(False, 2, descriptors) == "single_descriptors"
    assert form_of(False, 1, descriptors) == "linear_descriptors"
    assert form_of(False, 1, pointers) == "linear_pointers"


def test_more_bandwidth_makes_what_waits_for_memory_faster():
    counts_E = expected_counts(16 * 8, 128)
    ours, theirs = (
        best_pairs(model(name), counts_E, SIZES, "sm_90")[0] for name in ("h100-sxm", "h200-sxm")
    )
    slow, fast = (
        tile_us_R(model(name), counts_E, SIZES, "up", [pair[0]])[0]
        for name, pair in (("h100-sxm", ours), ("h200-sxm", theirs))
    )
    assert 1.2 < slow / fast < 4.8 / 3.35 + 0.01


def test_tokens_are_rounded_to_eighths_of_a_power_of_two():
    assert [nearby_tokens(n) for n in (1, 64, 65, 100, 701, 1024, 4095)] == [
        *(1, 64, 64, 96),
        *(704, 1024, 4096),
    ]
    for tokens in range(1, 5000):
        assert abs(nearby_tokens(tokens) - tokens) <= tokens / 16


def test_pairs_come_cheapest_first_and_share_rows():
    own, counts_E = model(), expected_counts(300, 64)
    pairs = best_pairs(own, counts_E, SIZES, "sm_90", most=10)
    totals = [
        float(
            tile_us_R(own, counts_E, SIZES, "up", [up])[0]
            + tile_us_R(own, counts_E, SIZES, "down", [down])[0]
        )
        for up, down in pairs
    ]
    assert len(pairs) == 10
    assert totals == sorted(totals)
    assert all(up.block_m == down.block_m for up, down in pairs)


def test_unknown_architectures_run_the_tiles_of_their_generation():
    assert compiled_tiles("sm_103", 16, "up") == compiled_tiles("sm_100", 16, "up")
    assert compiled_tiles("sm_86", 16, "up") == compiled_tiles("sm_80", 16, "up")
    assert compiled_tiles("gfx1100", 16, "up") == compiled_tiles("sm_80", 16, "up")


def test_a_cluster_runs_another_library():
    cluster = load_cluster("hgx-h100-8")
    ours = running(cluster)
    assert ours.profile.calibration == OWN_KERNELS
    assert cluster.profile.calibration == "triton-moe"
    assert running(ours, "sglang-triton").profile.calibration == "triton-moe"
    with pytest.raises(UnknownNameError):
        running(cluster, "no-such-library")
    tpu = load_cluster("tpu-v5p-4x4x4")
    assert running(tpu).profile.calibration == tpu.profile.calibration


def test_the_experts_take_their_tiles_and_no_activation_kernel():
    kernels = kernels_for(running(load_cluster("h100-sxm")).profile)
    layer = MoELayer(hidden_size=2048, expert_intermediate_size=768, num_experts=128, top_k=8)
    counts_DL = expected_counts(256 * 8, 128)[None]
    tiles = tiles_of(kernels, layer, 1, counts_DL)
    up, down = tiles
    assert up.block_m == down.block_m
    shape = ExpertShape.of(layer, 1)
    load = Load.of(counts_DL, counts_DL.sum(axis=1), up.block_m)
    phase = price_experts(kernels, shape, load, np.array([256]), tiles=tiles).solo_s_D()[0]
    sizes = replace(SIZES, hidden=2048, width=768)
    gemms = sum(
        tile_us_R(
            model(),
            counts_DL[0],
            sizes,
            gemm,
            [replace(tile, block_n=tile.block_n // (2 if gemm == "up" else 1))],
        )[0]
        for gemm, tile in (("up", up), ("down", down))
    )
    launches = kernels.launches(5.0).solo_s_D() * 1e6
    combined = kernels.gather_sum(np.array([2048]), np.array([256]), 4096.0).solo_s_D()[0] * 1e6
    plan = kernels.align(np.array([2048.0]), 128).solo_s_D()[0] * 1e6
    assert phase * 1e6 == pytest.approx(gemms + launches + combined + plan, rel=0.02)


def test_weights_that_would_have_to_be_widened_are_refused():
    kernels = kernels_for(running(load_cluster("h100-sxm")).profile)
    counts = np.array([[4, 4]])
    tile = Tile(block_m=16, block_n=64, block_k=64)
    spec = GemmSpec(tile=tile, fmt="bfloat16", weight_bytes=0.5, input_bytes=2.0, weight_only=True)
    with pytest.raises(ConfigError, match="does not widen"):
        kernels.grouped_gemm(Load.of(counts, np.array([8]), 16), 64, 64, spec)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_layers_simulate(precision):
    from moesim import Candidate, Parallelism, Workload, simulate

    layer = MoELayer(
        hidden_size=2048,
        expert_intermediate_size=768,
        num_experts=64,
        top_k=8,
        precision=Precision.named(precision),
    )
    candidate = Candidate(layer=layer, parallelism=Parallelism(ep=8))
    cluster = load_cluster("hgx-h100-8")
    ours, theirs = (
        simulate(candidate, one, Workload(num_tokens_per_device=512))
        for one in (running(cluster), cluster)
    )
    assert 0.3 < ours.experts_time_s / theirs.experts_time_s < 1.2
    assert ours.profile_hash != theirs.profile_hash
