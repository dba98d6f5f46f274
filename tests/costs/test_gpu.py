"""Kernel prices on a GPU: nothing for nothing, never cheaper on a slower chip, and in proportion
where it must be.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.costs.devices.primitives import kernels_for
from moesim.costs.load import Load
from moesim.costs.phases.experts import ExpertShape, price_experts, tiles_of
from moesim.costs.phases.gate import price_gate
from moesim.costs.phases.tokens import price_permute, price_reduce
from moesim.costs.tiles import heuristic_tile
from moesim.costs.work import GemmSpec
from moesim.model import Gate, Precision

SIZES = {
    "hidden_size": st.sampled_from([512, 1024, 4096, 7168]),
    "expert_intermediate_size": st.sampled_from([256, 768, 2048, (256, 0, 768, 2048) * 16]),
    "num_experts": st.sampled_from([16, 64, 256]),
    "top_k": st.sampled_from([1, 2, 8]),
    "gate": st.sampled_from(
        ["flat", "group_limited:8:8", "two_level:8:8", "product_key", "product_key:2:64"]
    ),
    "precision": st.sampled_from(["bf16", "fp8", "int4"]),
}
COUNTS = st.lists(st.integers(0, 3000), min_size=16, max_size=16).map(
    lambda rows: np.array(rows).reshape(2, 8)
)


def phases(kernels, layer, counts_DL, tokens_D):
    """Every phase of the layer on devices with these rows and tokens."""
    shape = ExpertShape.of(layer, 1)
    tiles = tiles_of(kernels, layer, 1, counts_DL)
    widths_DL = None
    if layer.uneven:  # each device holds the first eight experts
        widths_DL = np.repeat(layer.width_E()[None, :8], 2, axis=0)
        counts_DL = np.where(widths_DL > 0, counts_DL, 0)
    load = Load.of(
        counts_DL,
        np.maximum(tokens_D * layer.top_k, counts_DL.sum(axis=1)),
        tiles[0].block_m,
        widths_DL,
    )
    return {
        "gate": price_gate(kernels, layer, tokens_D),
        "permute": price_permute(kernels, layer, tokens_D, tokens_D),
        "experts": price_experts(kernels, shape, load, tokens_D, tiles=tiles),
        "reduce": price_reduce(kernels, layer, tokens_D, tokens_D),
    }


@st.composite
def layers(draw, make):
    sizes = {name: draw(values) for name, values in SIZES.items()}
    if isinstance(sizes["expert_intermediate_size"], tuple):
        sizes |= {"num_experts": 64, "top_k": min(sizes["top_k"], 6)}
    return make(
        **sizes
        | {"gate": Gate.parse(sizes["gate"]), "precision": Precision.named(sizes["precision"])}
    )


@given(data=st.data())
def test_no_tokens_cost_nothing(h100, make_layer, data):
    layer = data.draw(layers(make_layer))
    costs = phases(kernels_for(h100), layer, np.zeros((2, 8), dtype=int), np.zeros(2, dtype=int))
    for name, cost in costs.items():
        assert cost.solo_s_D().tolist() == [0.0, 0.0], name


@given(data=st.data(), factor=st.floats(1.0, 16.0))
def test_a_faster_chip_is_never_slower(h100, make_layer, data, factor):
    """More memory bandwidth, or more FLOPs at the same clock: no phase takes longer alone."""
    layer = data.draw(layers(make_layer))
    counts = data.draw(COUNTS)
    tokens = counts.max(axis=1)
    slow = phases(kernels_for(h100), layer, counts, tokens)
    wide = replace(h100, hbm_bandwidth_bytes_per_s=h100.hbm_bandwidth_bytes_per_s * factor)
    strong = replace(
        h100, peak_flops_per_s={fmt: rate * factor for fmt, rate in h100.peak_flops_per_s.items()}
    )
    for chip in (wide, strong):
        for name, cost in phases(kernels_for(chip), layer, counts, tokens).items():
            assert (cost.solo_s_D() <= slow[name].solo_s_D() * (1 + 1e-12)).all(), name


@given(data=st.data())
def test_every_demand_is_finite_and_not_negative(h100, make_layer, data):
    layer = data.draw(layers(make_layer))
    counts = data.draw(COUNTS)
    for name, cost in phases(kernels_for(h100), layer, counts, counts.max(axis=1)).items():
        for part in ("compute_s_D", "memory_s_D", "latency_s_D"):
            values = getattr(cost, part)
            assert values.shape == (2,), (name, part)
            assert (values >= 0).all(), (name, part)
            assert np.isfinite(values).all(), (name, part)


def test_devices_are_priced_independently(h100, make_layer):
    """Two devices together cost what each costs alone, at the same tile."""
    kernels, layer = kernels_for(h100), make_layer()
    counts, tokens = np.array([[7, 0, 911, 64], [1025, 1, 0, 3]]), np.array([500, 900])
    tile, shape = heuristic_tile(256, 2.0), ExpertShape.of(layer, 1)

    def price(rows):
        load = Load.of(counts[rows], tokens[rows] * 2, tile.block_m)
        cost = price_experts(kernels, shape, load, tokens[rows], tiles=(tile, tile))
        return cost.solo_s_D().tolist()

    assert price([0, 1]) == pytest.approx([*price([0]), *price([1])])


def test_weights_are_read_once_and_at_best_at_full_bandwidth(h100, make_layer):
    """Decode: the expert phase cannot be faster than its active experts' weights at the datasheet's
    bandwidth.
    """
    layer = make_layer(hidden_size=4096, expert_intermediate_size=1536)
    kernels, shape = kernels_for(h100), ExpertShape.of(layer, 1)
    for active in (1, 4, 16):
        counts = np.zeros((1, 16), dtype=int)
        counts[0, :active] = 1
        tile = heuristic_tile(1.0, 2.0)
        cost = price_experts(
            kernels,
            shape,
            Load.of(counts, counts.sum(axis=1), tile.block_m),
            counts.sum(axis=1),
            tiles=(tile, tile),
        )
        weights_s = active * layer.bytes_per_expert / h100.hbm_bandwidth_bytes_per_s
        assert weights_s <= cost.memory_s_D[0] <= 2.5 * weights_s


def test_large_gemms_approach_the_peak_and_never_pass_it(h100):
    kernels, tile = kernels_for(h100), heuristic_tile(128, 2.0)
    for rows in (16, 256, 4096, 65536):
        counts = np.full((1, 8), rows)
        cost = kernels.grouped_gemm(
            Load.of(counts, counts.sum(axis=1), tile.block_m),
            4096,
            4096,
            GemmSpec(tile=tile, fmt="bfloat16", weight_bytes=2.0, input_bytes=2.0),
        )
        share = 2.0 * 8 * rows * 4096 * 4096 / h100.peak("bfloat16") / cost.solo_s_D()[0]
        assert 0 < share < 1, rows
    assert share > 0.3


def test_warm_weights_are_not_slower_than_cold(h100, make_layer):
    layer, kernels = make_layer(), kernels_for(h100)
    shape, counts = ExpertShape.of(layer, 1), np.full((1, 16), 4)
    load = Load.of(counts, counts.sum(axis=1), 16)
    cold, warm = (
        price_experts(
            kernels, shape, load, np.array([32]), tiles=(heuristic_tile(4, 2.0),) * 2, warm=w
        ).solo_s_D()[0]
        for w in (False, True)
    )
    assert warm <= cold


@pytest.mark.parametrize(("experts", "groups", "kept"), [(1024, 32, 2), (4096, 64, 4)])
def test_at_many_experts_a_two_level_gate_computes_less_and_a_limited_one_more(
    h100, make_layer, experts, groups, kept
):
    """2 H (G + M E / G) FLOPs per token against 2 H E; a group-limited gate scores all experts and
    then some.
    """
    tokens, kernels = np.array([16384]), kernels_for(h100)
    flat, limited, two_level = (
        price_gate(
            kernels,
            make_layer(hidden_size=4096, num_experts=experts, gate=Gate.parse(gate)),
            tokens,
        )
        for gate in ("flat", f"group_limited:{groups}:{kept}", f"two_level:{groups}:{kept}")
    )
    ratio = (groups + kept * experts / groups) / experts
    assert two_level.compute_s_D[0] < 0.55 * flat.compute_s_D[0]
    assert two_level.compute_s_D[0] > ratio * flat.compute_s_D[0]
    assert limited.solo_s_D()[0] > flat.solo_s_D()[0]


def test_at_a_million_experts_product_keys_score_a_thousandth(h100, make_layer):
    """2 sqrt(E) keys of half a query against E: 100 times cheaper than a flat gate."""
    tokens, kernels = np.array([4096]), kernels_for(h100)
    flat, two_level, product_key = (
        price_gate(
            kernels,
            make_layer(hidden_size=7168, num_experts=1 << 20, top_k=8, gate=Gate.parse(gate)),
            tokens,
        )
        for gate in ("flat", "two_level:1024:4", "product_key")
    )
    assert flat.solo_s_D()[0] > 100 * product_key.solo_s_D()[0]
    assert two_level.solo_s_D()[0] > 8 * product_key.solo_s_D()[0]


def test_at_few_experts_a_flat_gate_is_the_cheapest(h100, make_layer):
    tokens, kernels = np.array([1024]), kernels_for(h100)
    flat, two_level = (
        price_gate(kernels, make_layer(num_experts=16, gate=Gate.parse(gate)), tokens).solo_s_D()[0]
        for gate in ("flat", "two_level:4:2")
    )
    assert flat < two_level


def test_the_host_launches_where_it_is_said(h100):
    """In a graph the calibrated cycles; from the host its time, unless the chip is slower."""
    captured = kernels_for(h100)
    each = captured.calibration["kernel_launch_cycles"] / h100.clock_hz
    count = np.array([0.0, 1.0, 8.0])
    assert captured.launches(count).solo_s_D() == pytest.approx(count * each)
    eager = kernels_for(replace(h100, eager=True))
    assert eager.launches(count).solo_s_D() == pytest.approx(count * h100.host_launch_s)
    fast = kernels_for(replace(h100, eager=True, host_launch_s=each / 2))
    assert fast.launches(count).solo_s_D() == pytest.approx(count * each)


def test_more_tokens_never_cost_less_at_one_tile(h100, make_layer):
    layer, kernels, tile = (
        make_layer(num_experts=8, top_k=1),
        kernels_for(h100),
        heuristic_tile(64, 2.0),
    )
    shape, times = ExpertShape.of(layer, 1), []
    for rows in range(0, 2000, 37):
        counts, tokens = np.full((1, 8), rows), np.array([8 * rows])
        load = Load.of(counts, tokens, tile.block_m)
        cost = price_experts(kernels, shape, load, tokens, tiles=(tile, tile))
        times.append(cost.solo_s_D()[0])
    assert times == sorted(times)
    assert times[0] == 0.0
