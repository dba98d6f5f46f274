"""Prices on a chip without overheads, computed by hand: every kernel counted, every byte of every
kernel.
"""

from dataclasses import replace

import numpy as np
import pytest

from moesim.costs.load import Load
from moesim.costs.phases.experts import ExpertShape, price_experts
from moesim.costs.phases.gate import price_gate
from moesim.costs.phases.tokens import price_permute, price_reduce
from moesim.costs.tiles import Tile
from moesim.costs.work import GemmSpec
from moesim.model import Gate, Precision

GB_PER_S, LAUNCH_S = 1e9, 1e-6
TILE = Tile(block_m=128, block_n=64, block_k=64, num_warps=8, num_stages=2)


def launches_in(kernels, price):
    """How many launches a phase counts: what its latency owes to their time."""
    free = kernels.calibration.parameters | {"kernel_launch_cycles": 0.0}
    without = replace(kernels, calibration=replace(kernels.calibration, parameters=free))
    return ((price(kernels).latency_s_D - price(without).latency_s_D) / LAUNCH_S).round(6).tolist()


def load_of(counts):
    return Load.of(np.array([counts]), np.array([sum(counts)]), TILE.block_m)


def test_gemm(plain):
    """Two experts of 130 and 1 rows, n = 128, k = 256: (2 + 1) row blocks x 2 column blocks, one
    wave on 10 SMs of four iterations of 2 x 128 x 64 x 64 FLOP; 2 x 128 x 256 weights and 131 x
    (256 + 128) activations, 2 bytes each.
    """

    def price(counts, **options):
        return plain.grouped_gemm(
            load_of(counts),
            128,
            256,
            GemmSpec(tile=TILE, fmt="bfloat16", weight_bytes=2.0, input_bytes=2.0, **options),
        )

    cost = price([130, 1])
    compute, memory = (
        4 * 2 * 128 * 64 * 64 / 1000 / 1e9,
        (2 * 128 * 256 * 2 + 131 * (256 + 128) * 2) / GB_PER_S,
    )
    assert cost.compute_s_D == pytest.approx(compute)
    assert cost.memory_s_D == pytest.approx(memory)
    assert cost.latency_s_D == pytest.approx(min(compute, memory) / 2)
    gathered = price([130, 1], gather_inputs=True).memory_s_D
    assert gathered == pytest.approx(memory + 131 * 256 * 2 / GB_PER_S), (
        "rows at random places take twice as long"
    )
    scattered = price([130, 1], scatter_outputs=True).memory_s_D
    assert scattered == pytest.approx(memory + 131 * 128 * 2 / GB_PER_S)
    assert price([130, 1], output_bytes=4.0).memory_s_D == pytest.approx(
        memory + 131 * 128 * 2 / GB_PER_S
    )
    assert price([5 * 128, 1]).compute_s_D == pytest.approx(2 * compute), (
        "twelve tiles need two waves"
    )


def test_stream_gather_launch(plain):
    assert plain.stream(np.array([3e9])).memory_s_D == pytest.approx(3.0)
    assert plain.gather(np.array([3e9]), 512).memory_s_D == pytest.approx(6.0)
    assert plain.launches(np.array([4])).latency_s_D == pytest.approx(4 * LAUNCH_S)
    assert plain.align(np.array([10]), 8).memory_s_D == pytest.approx(10 * 12 / GB_PER_S)


def test_top_k(plain):
    """4 bytes of each logit, 8 of each choice; k rounds over the row on 10 x 128 lanes."""
    cost = plain.top_k(np.array([1000]), 64, 8)
    assert cost.memory_s_D == pytest.approx(1000 * (4 * 64 + 8 * 8) / GB_PER_S)
    assert cost.compute_s_D == pytest.approx(1000 * 64 * 8 / (10 * 128 * 1e9))


@pytest.mark.parametrize(("recipe", "sent"), [("bf16", 2048), ("fp8", 1024 + 4 * 8)])
def test_permute(plain, make_layer, recipe, sent):
    """100 tokens, 2 choices each, 150 copies: sort the choices, gather a row per copy, write what
    is sent.
    """
    cost = price_permute(
        plain, make_layer(precision=Precision.named(recipe)), np.array([100]), np.array([150])
    )
    assert cost.memory_s_D == pytest.approx((200 * 12 + 150 * 2048 / 0.5 + 150 * sent) / GB_PER_S)
    assert cost.latency_s_D == pytest.approx(3 * LAUNCH_S)


def test_reduce(plain, make_layer):
    cost = price_reduce(plain, make_layer(), np.array([100]), np.array([150]))
    assert cost.memory_s_D == pytest.approx((150 * 2048 / 0.5 + 100 * 2048) / GB_PER_S)
    assert cost.latency_s_D == pytest.approx(LAUNCH_S)


@pytest.mark.parametrize(("gated", "top_k", "kernels"), [(True, 2, 7), (False, 2, 7), (True, 1, 6)])
def test_experts(plain, make_layer, gated, top_k, kernels):
    """Align, up GEMM, activation, down GEMM, weighted sum: bytes of all five, and a launch for each
    kernel.
    """
    layer = make_layer(gated=gated, top_k=top_k)
    hidden, width, counts, tokens = 1024, 512, [60, 0, 40], 80
    up = (2 if gated else 1) * width
    cost = price_experts(
        plain, ExpertShape.of(layer, 1), load_of(counts), np.array([tokens]), tiles=(TILE, TILE)
    )
    # rows are gathered by the first GEMM, scattered by the second and gathered to be summed
    gemms = (
        2 * (up + width) * hidden * 2 + 100 * (2 * hidden + up) * 2 + 100 * (width + 2 * hidden) * 2
    )
    others = 100 * 12 + 100 * (up + width) * 2 + (2 * 100 + tokens) * hidden * 2
    assert cost.memory_s_D == pytest.approx((gemms + others) / GB_PER_S)
    # two row blocks: waves of tiles times iterations, of both GEMMs
    waves = sum(
        np.ceil(2 * columns / 10) * depth
        for columns, depth in ((up // 64, hidden // 64), (hidden // 64, width // 64))
    )
    assert cost.compute_s_D == pytest.approx(waves * 2 * 128 * 64 * 64 / 1000 / 1e9)
    assert launches_in(
        plain,
        lambda chip: price_experts(
            chip, ExpertShape.of(layer, 1), load_of(counts), np.array([tokens]), tiles=(TILE, TILE)
        ),
    ) == [kernels]


def test_masked_choices_are_carried_along(plain, make_layer):
    """Choices of present tokens whose expert is elsewhere: written as zeros by both GEMMs, and
    streamed.
    """
    shape, tokens = ExpertShape.of(make_layer(), 1), np.array([80])
    here = price_experts(plain, shape, load_of([60, 40]), tokens, tiles=(TILE, TILE))
    masked = Load.of(np.array([[60, 40]]), np.array([160]), TILE.block_m)
    cost = price_experts(plain, shape, masked, tokens, tiles=(TILE, TILE))
    added = 60 * (1024 + 2 * 1024) * 2 + 60 * (1024 + 512) * 2 + 60 * 2 * 1024 * 2
    assert cost.memory_s_D - here.memory_s_D == pytest.approx(added / GB_PER_S)


@pytest.mark.parametrize(
    ("gate", "launches"),
    [
        ("flat", 2),
        ("group_limited:4:2", 3),
        ("two_level:4:2", 6),
        ("product_key:1:64", 4),
        ("product_key:2:64", 3),
        ("product_key:8:64", 4),
    ],
)
def test_gate_launches(plain, make_layer, gate, launches):
    """Softmax and top-k beside the GEMM; group scores once more; six kernels for two levels;
    queries, half scores and best halves for product keys, best pairs if a head finds several, and
    the best of all heads if these find too many.
    """
    layer = make_layer(num_experts=64, gate=Gate.parse(gate))
    assert launches_in(plain, lambda chip: price_gate(chip, layer, np.array([64, 0, 1]))) == [
        launches,
        0,
        launches,
    ]


def test_product_key_gate(plain, make_layer):
    """100 tokens, 2 heads of 64, 64 experts: GEMMs of H x 128 and, for each head and half, 32 x 8;
    float32 logits.
    """
    layer = make_layer(num_experts=64, top_k=4, gate=Gate.parse("product_key:2:64"))
    queries = (1024 * 128 + 100 * (1024 + 128)) * 2
    halves = 2 * 32 * 8 * 2 + 2 * 200 * (32 * 2 + 8 * 4)
    best = 400 * (4 * 8 + 8 * 2) + 200 * (4 * 2**2 + 8 * 2)
    cost = price_gate(plain, layer, np.array([100]))
    assert cost.memory_s_D == pytest.approx((queries + halves + best) / GB_PER_S)
