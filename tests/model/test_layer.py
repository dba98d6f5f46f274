"""Layers, gates and formats: one line for what does not go together, and sizes by hand."""

import pytest

from moesim.errors import ConfigError
from moesim.model import DensePart, Gate, MoELayer

GOOD = {"hidden_size": 64, "expert_intermediate_size": 32, "num_experts": 8, "top_k": 2}
DENSE = {
    "num_layers": 4,
    "num_moe_layers": 3,
    "hidden_size": 64,
    "vocab_size": 100,
    "attention_params_per_layer": 10,
    "kv_bytes_per_token_per_layer": 8.0,
    "dense_intermediate_size": 128,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": 0}, "layer.hidden_size: expected an integer >= 1, got 0"),
        (
            {"expert_intermediate_size": -1},
            "layer.expert_intermediate_size: expected an integer >= 1, got -1",
        ),
        ({"num_experts": 0}, "layer.num_experts: expected an integer >= 1, got 0"),
        ({"top_k": 0}, "layer.top_k: expected an integer >= 1, got 0"),
        ({"top_k": 9}, "layer.top_k: expected at most num_experts = 8, got 9"),
        ({"num_shared_experts": -1}, "layer.num_shared_experts: expected an integer >= 0, got -1"),
        (
            {"capacity_factor": 0.0},
            "layer.capacity_factor: expected a number > 0 and <= 4194304, or None, got 0.0",
        ),
        (
            {"capacity_factor": float("nan")},
            "layer.capacity_factor: expected a number > 0 and <= 4194304, or None, got nan",
        ),
        (
            {"capacity_factor": float("inf")},
            "layer.capacity_factor: expected a number > 0 and <= 4194304, or None, got inf",
        ),
        ({"top_k": 2.5}, "layer.top_k: expected an integer >= 1, got 2.5"),
        ({"top_k": "2"}, "layer.top_k: expected an integer >= 1, got '2'"),
        ({"hidden_size": True}, "layer.hidden_size: expected an integer >= 1, got True"),
        (
            {"gate": Gate.parse("group_limited:3:1")},
            "layer.gate.num_expert_groups: expected a divisor of num_experts = 8, got 3",
        ),
        (
            {"gate": Gate.parse("group_limited:8:1")},
            (
                "layer.gate.num_limited_groups: expected enough groups of 1 experts for top_k = "
                "2, got 1"
            ),
        ),
    ],
)
def test_wrong_layers(wrong, message):
    with pytest.raises(ConfigError) as caught:
        MoELayer(**GOOD | wrong)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            (
                "gate: expected 'flat', 'product_key' or 'KIND:GROUPS:KEPT' such as "
                "'group_limited:8:4', got ''"
            ),
        ),
        (
            "group",
            (
                "gate: expected 'flat', 'product_key' or 'KIND:GROUPS:KEPT' such as "
                "'group_limited:8:4', got 'group'"
            ),
        ),
        (
            "group_limited:8",
            (
                "gate: expected 'flat', 'product_key' or 'KIND:GROUPS:KEPT' such as "
                "'group_limited:8:4', got 'group_limited:8'"
            ),
        ),
        (
            "two_level:8:-4",
            (
                "gate: expected 'flat', 'product_key' or 'KIND:GROUPS:KEPT' such as "
                "'group_limited:8:4', got 'two_level:8:-4'"
            ),
        ),
        ("product_key:8:255", "gate.query_size: expected an even number, got 255"),
        ("product_key:0:256", "gate.query_heads: expected an integer >= 1, got 0"),
        (
            "group_limited:²:1",
            (
                "gate: expected 'flat', 'product_key' or 'KIND:GROUPS:KEPT' such as "
                "'group_limited:8:4', got 'group_limited:²:1'"
            ),
        ),
        (
            "tree:8:4",
            "gate.kind: expected one of flat, group_limited, two_level, product_key, low_rank, got "
            "'tree'",
        ),
        ("group_limited:0:0", "gate.num_expert_groups: expected an integer >= 1, got 0"),
        (
            "two_level:4:5",
            "gate.num_limited_groups: expected between 1 and num_expert_groups = 4, got 5",
        ),
        (
            "two_level:4:0",
            "gate.num_limited_groups: expected between 1 and num_expert_groups = 4, got 0",
        ),
        ("flat:2:1", "gate.num_expert_groups: expected 1 for a flat gate, got 2"),
    ],
)
def test_wrong_gates(text, message):
    with pytest.raises(ConfigError) as caught:
        Gate.parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text", ["flat", "group_limited:8:4", "two_level:16:2", "product_key:4:64"]
)
def test_gates_print_as_they_are_read(text):
    assert str(Gate.parse(text)) == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Gate(score="tanh"),
            "gate.score: expected softmax, sigmoid or sqrtsoftplus, got 'tanh'",
        ),
        (
            lambda: Gate(precision="tf32"),
            "gate.precision: expected one of float32, bfloat16, float16, float8_e4m3, got 'tf32'",
        ),
        (
            lambda: DensePart(**DENSE | {"num_layers": 0}),
            "dense_part.num_layers: expected an integer >= 1, got 0",
        ),
        (
            lambda: DensePart(**DENSE | {"attention_params_per_layer": -5}),
            "dense_part.attention_params_per_layer: expected an integer >= 0, got -5",
        ),
        (
            lambda: DensePart(**DENSE | {"kv_bytes_per_token_per_layer": -1.0}),
            "dense_part.kv_bytes_per_token_per_layer: expected a number >= 0, got -1.0",
        ),
        (
            lambda: DensePart(**DENSE | {"num_moe_layers": 5}),
            "dense_part.num_moe_layers: expected between 1 and num_layers = 4, got 5",
        ),
        (
            lambda: DensePart(**DENSE | {"num_moe_layers": 0}),
            "dense_part.num_moe_layers: expected between 1 and num_layers = 4, got 0",
        ),
    ],
)
def test_wrong_gate_formats_and_dense_parts(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_parameters_by_hand():
    layer = MoELayer(**GOOD, num_shared_experts=1)
    assert layer.params_per_expert == 3 * 64 * 32
    assert layer.active_params == 3 * (3 * 64 * 32) + 64 * 8
    assert layer.bytes_per_expert == 2 * 3 * 64 * 32
    assert MoELayer(**GOOD, gated=False).params_per_expert == 2 * 64 * 32


def test_experts_of_different_widths_by_hand():
    layer = MoELayer(
        **GOOD | {"expert_intermediate_size": [32] * 4 + [16] * 2 + [0] * 2}, num_shared_experts=1
    )
    assert layer.expert_intermediate_size == (32, 32, 32, 32, 16, 16, 0, 0)
    assert (layer.uneven, layer.has_pruned, layer.num_left, layer.widest) == (True, True, 6, 32)
    assert layer.mean_width == pytest.approx(160 / 6)
    assert layer.shared_width == 27
    assert layer.routed_params == 3 * 64 * 160
    assert layer.shared_params == 3 * 64 * 27
    assert layer.active_params == 2 * round(3 * 64 * 160 / 6) + layer.shared_params + 64 * 8
    assert layer.width_E().tolist() == [32, 32, 32, 32, 16, 16, 0, 0]


def test_equal_widths_one_by_one_are_one_width():
    one, each = MoELayer(**GOOD), MoELayer(**GOOD | {"expert_intermediate_size": (32,) * 8})
    for name in (
        "mean_width",
        "widest",
        "shared_width",
        "params_per_expert",
        "routed_params",
        "active_params",
        "bytes_per_expert",
        "num_left",
        "has_pruned",
    ):
        assert getattr(one, name) == getattr(each, name), name
    assert one.width_E().tolist() == each.width_E().tolist()


@pytest.mark.parametrize(
    ("widths", "gate", "message"),
    [
        (
            (32,) + (0,) * 7,
            "flat",
            "layer.top_k: expected at most the 1 experts that are not pruned, got 2",
        ),
        (
            (0,) * 8,
            "flat",
            (
                "layer.expert_intermediate_size: expected an expert that is not pruned, got "
                "'width 0 for all'"
            ),
        ),
        (
            (32,) * 7,
            "flat",
            (
                "layer.expert_intermediate_size: expected one width, or one for each of 8 "
                "experts, got 7"
            ),
        ),
        (
            (32, 0) * 4,
            "group_limited:4:1",
            "layer.expert_intermediate_size: expected none or at least 2 experts left in each of "
            "the gate's 4 groups, 1 of them with some, got '1x32+1x0+1x32+1x0+1x32+1x0+1x32+1x0'",
        ),
        (
            (32,) * 2 + (0,) * 6,
            "two_level:4:2",
            "layer.expert_intermediate_size: expected none or at least 1 experts left in each of "
            "the gate's 4 groups, 2 of them with some, got '2x32+6x0'",
        ),
    ],
)
def test_what_pruning_leaves_must_do(widths, gate, message):
    with pytest.raises(ConfigError) as caught:
        MoELayer(**GOOD | {"expert_intermediate_size": widths}, gate=Gate.parse(gate))
    assert str(caught.value) == message


def test_a_two_level_gate_has_more_weights_and_uses_fewer():
    flat = MoELayer(**GOOD | {"num_experts": 64})
    grouped = MoELayer(**GOOD | {"num_experts": 64}, gate=Gate.parse("group_limited:8:2"))
    two_level = MoELayer(**GOOD | {"num_experts": 64}, gate=Gate.parse("two_level:8:2"))
    assert (flat.gate_params, grouped.gate_params, two_level.gate_params) == (
        64 * 64,
        64 * 64,
        64 * (64 + 8),
    )
    experts = 2 * flat.params_per_expert
    assert flat.active_params - experts == 64 * 64
    assert two_level.active_params - experts == 64 * (8 + 2 * 8)


def test_dense_part_by_hand():
    dense = DensePart(**DENSE)
    layer = MoELayer(**GOOD)
    assert dense.params == 2 * 100 * 64 + 4 * 10 + 3 * 64 * 128 * 1
    assert DensePart(**DENSE, tied_embeddings=True).params == dense.params - 100 * 64
    assert dense.active_params(layer) == dense.params + 3 * layer.active_params
