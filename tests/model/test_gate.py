"""Product keys; what all gates share is in test_layer."""

import pytest

from moesim.errors import ConfigError
from moesim.model import Gate, MoELayer

SIZES = {"hidden_size": 64, "expert_intermediate_size": 32, "num_experts": 16, "top_k": 2}


def test_defaults_are_peer_s():
    assert str(Gate.parse("product_key")) == "product_key:8:256"
    assert Gate.parse("product_key") == Gate(kind="product_key", query_heads=8, query_size=256)


def test_weights_are_keys_of_both_halves_and_the_projection():
    layer = MoELayer(**SIZES, gate=Gate.parse("product_key:2:32"))
    assert layer.gate_params == 2 * 4 * 16 + 64 * 2 * 32
    assert layer.active_params - layer.gate_params == 2 * layer.params_per_expert
    million = MoELayer(**SIZES | {"num_experts": 1 << 20}, gate=Gate.parse("product_key"))
    assert million.gate_params == 1024 * 256 + 64 * 2048


@pytest.mark.parametrize("experts", [2, 8, 15, 1000])
def test_experts_make_a_square(experts):
    with pytest.raises(ConfigError) as caught:
        MoELayer(**SIZES | {"num_experts": experts}, gate=Gate.parse("product_key"))
    assert str(caught.value) == (
        f"layer.num_experts: expected a perfect square for a product_key gate, got {experts}"
    )


def test_groups_belong_to_other_gates():
    with pytest.raises(
        ConfigError, match=r"^gate.num_expert_groups: expected 1 for a product_key gate, got 4$"
    ):
        Gate(kind="product_key", num_expert_groups=4)
