"""FLOPs, weight elements and logits of the four gates, as the formulas count them; and what it
takes to count them.
"""

import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pytest

from moesim.costs.devices.primitives import kernels_for
from moesim.costs.phases.gate import _quantiles, price_gate
from moesim.hardware import load_profile
from moesim.model import Gate, MoELayer

HIDDEN, TOKENS, KEPT = 512, 300, 4


@dataclass
class Counter:
    """Kernels that only count what they are asked for."""

    real: object
    flops: float = 0.0
    weights: float = 0.0
    logits_written: float = 0.0
    logits_read: float = 0.0
    gemms: list = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.real, name)

    def grouped_gemm(self, load, n, k, gemm):
        rows, active = load.counts_DL.sum(), (load.counts_DL > 0).sum()
        self.gemms.append((2.0 * rows * n * k, active * n * k))
        self.flops += 2.0 * rows * n * k
        self.weights += active * n * k
        if gemm.output_bytes == 4.0:
            self.logits_written += 4.0 * rows * n
        return self.real.grouped_gemm(load, n, k, gemm)

    def top_k(self, rows, columns, k, *, scored=True):
        self.logits_read += 4.0 * float(np.sum(rows)) * columns
        return self.real.top_k(rows, columns, k, scored=scored)


def count(h100, gate, experts, tokens=TOKENS, top_k=4):
    counter = Counter(kernels_for(h100))
    layer = MoELayer(
        hidden_size=HIDDEN,
        expert_intermediate_size=64,
        num_experts=experts,
        top_k=top_k,
        gate=Gate.parse(gate),
    )
    price_gate(counter, layer, np.array([tokens]))
    return counter


@pytest.mark.parametrize("experts", [64, 4096])
def test_flat(h100, experts):
    found = count(h100, "flat", experts)
    assert (found.flops, found.weights) == (2 * HIDDEN * experts * TOKENS, HIDDEN * experts)
    assert found.logits_written == found.logits_read == 4 * TOKENS * experts


@pytest.mark.parametrize(("experts", "side"), [(64, 8), (4096, 64)])
@pytest.mark.parametrize("tokens", [2, TOKENS])
def test_two_level(h100, experts, side, tokens):
    """A batch that touches all groups saves no weight bytes; which a small one touches
    is chance.
    """
    found = count(h100, f"two_level:{side}:{KEPT}", experts, tokens)
    touched = round(side * (1 - (1 - KEPT / side) ** tokens))
    assert touched <= min(tokens * KEPT, side)
    assert found.flops == 2 * HIDDEN * side * (1 + KEPT) * tokens
    assert found.weights == HIDDEN * side * (1 + touched)
    assert found.logits_written == found.logits_read == 4 * tokens * side * (1 + KEPT)


@pytest.mark.parametrize(("experts", "side"), [(64, 8), (4096, 64), (1 << 20, 1024)])
def test_product_key(h100, experts, side):
    """One head whose query is as wide as a token: d sqrt(E) weights, 2 d sqrt(E) FLOPs, 8 T sqrt(E)
    bytes of logits.
    """
    found = count(h100, f"product_key:1:{HIDDEN}", experts)
    assert found.gemms == [
        (2.0 * HIDDEN * HIDDEN * TOKENS, HIDDEN * HIDDEN),
        (2.0 * HIDDEN * side * TOKENS, HIDDEN * side),
    ]
    assert found.logits_written == 8 * TOKENS * side
    assert found.logits_read == 8 * TOKENS * side + 4 * TOKENS * 4**2, (
        "the sums of 4 x 4 pairs as well"
    )


def test_a_low_rank_gate_has_two_thin_products(h100):
    """2 T R (H + E) FLOPs; a gate distilled to a sixteenth of the rank is cheaper where there are
    many experts, and its loss has no figure.
    """
    found = count(h100, "low_rank+query_size:32", 4096)
    assert found.gemms == [
        (2.0 * HIDDEN * 32 * TOKENS, HIDDEN * 32),
        (2.0 * 32 * 4096 * TOKENS, 32 * 4096),
    ]
    assert Gate.parse("low_rank+query_size:32").params(HIDDEN, 4096) == found.weights
    assert found.logits_written == found.logits_read == 4 * TOKENS * 4096
    whole, thin = (
        price(h100, gate, 16384, hidden_size=8192, num_experts=8192)[0]
        for gate in ("flat", "low_rank+query_size:64")
    )
    assert thin < whole


def test_heads_share_the_keys(h100):
    found = count(h100, "product_key:8:256", 4096, top_k=16)
    assert found.gemms == [
        (2.0 * HIDDEN * 2048 * TOKENS, HIDDEN * 2048),
        (2.0 * 8 * 256 * 64 * TOKENS, 256 * 64),
    ]


@pytest.mark.parametrize("device", ["h100-sxm", "tpu-v5e"])
@pytest.mark.parametrize("gate", ["flat", "two_level:1024:4", "product_key"])
def test_a_million_experts_are_counted_not_listed(device, gate):
    """Scores of 65,536 tokens with a million experts would be 256 GiB; the price needs none of
    them.
    """
    kernels = kernels_for(load_profile(device))
    layer = MoELayer(
        hidden_size=HIDDEN,
        expert_intermediate_size=64,
        num_experts=1 << 20,
        top_k=8,
        gate=Gate.parse(gate),
    )
    tracemalloc.start()
    cost = price_gate(kernels, layer, np.full(8, 65536))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (cost.solo_s_D() > 0).all()
    assert peak < 4 << 20


def price(h100, gate, tokens=4096, **changes):
    layer = MoELayer(
        **{
            "hidden_size": HIDDEN,
            "expert_intermediate_size": 64,
            "num_experts": 1024,
            "top_k": 8,
            "gate": Gate.parse(gate),
        }
        | changes
    )
    return price_gate(kernels_for(h100), layer, np.array([tokens, 0])).solo_s_D()


@pytest.mark.parametrize(
    "gate",
    [
        "flat",
        "flat+sinkhorn",
        "flat+noisy_top_k:1",
        "flat+expert_choice",
        "flat+hash",
        "two_level:32:4+noisy_top_k:1",
        "two_level:32:4+local",
        "product_key+noisy_top_k:1",
        "low_rank+query_size:32",
        "flat+share_tokens:4",
        "group_limited:8:4+share_layers:3",
    ],
)
def test_every_gate_has_a_price_and_costs_nothing_without_tokens(h100, gate):
    assert price(h100, gate)[0] > 0
    if "local" not in gate:  # its groups may serve other devices' tokens
        assert price(h100, gate)[1] == 0


def test_what_costs_more_than_top_k(h100):
    """A table is cheaper than scores; noise is two passes, Sinkhorn sixteen; a bias or a
    temperature is nothing.
    """
    flat, hashed, noisy, sinkhorn = (
        price(h100, f"flat{x}")[0] for x in ("", "+hash", "+noisy_top_k:1", "+sinkhorn")
    )
    assert hashed < flat < noisy < sinkhorn
    assert sinkhorn - flat == pytest.approx(8 * (noisy - flat), rel=1e-6)
    assert price(h100, "flat+bias+temperature:2+sigmoid")[0] == flat


def test_local_routers_read_their_own_groups_only(h100):
    """On eight devices each reads an eighth of the fine keys, for all devices' tokens."""
    counter = Counter(kernels_for(h100))
    layer = MoELayer(
        hidden_size=HIDDEN,
        expert_intermediate_size=64,
        num_experts=1024,
        top_k=4,
        gate=Gate.parse("two_level:32:4+local"),
    )
    price_gate(counter, layer, np.full(8, TOKENS))
    fine_flops, fine_weights = counter.gemms[1]
    assert fine_flops == 8 * TOKENS * 4 * 2.0 * HIDDEN * 32
    assert fine_weights == HIDDEN * 1024, "together they read each once"


@pytest.mark.parametrize(
    ("tokens", "groups", "kept"),
    [
        (1, 8, 1),
        (2, 64, 4),
        (300, 64, 4),
        (300, 8, 8),
        (7, 1024, 3),
        (65536, 1024, 4),
        (0, 8, 2),
        (5, 2, 1),
    ],
)
def test_rows_of_groups_by_chance(tokens, groups, kept):
    rows = _quantiles(tokens, groups, kept)
    assert rows.sum() == tokens * kept
    assert 0 <= rows.min() <= rows.max() <= tokens
    touched = groups * (1 - (1 - kept / groups) ** tokens)
    assert (rows > 0).sum() == pytest.approx(touched, abs=max(1.0, 0.05 * touched))
