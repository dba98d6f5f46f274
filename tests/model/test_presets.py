"""Published models: total and active parameters against what their authors state."""

import pytest

from moesim.errors import UnknownNameError
from moesim.model import Precision
from moesim.model.presets import load_preset, preset_names

#: billions of parameters as published: (total, active), and how far our count may be off
PUBLISHED = {
    "mixtral-8x7b": (46.7, 12.9, 0.005),  # arXiv 2401.04088
    "mixtral-8x22b": (141.0, 39.0, 0.01),  # Mistral AI, "Cheaper, Better, Faster, Stronger", 2024
    "qwen2-57b-a14b": (57.4, 14.2, 0.02),  # arXiv 2407.10671
    "qwen3-235b-a22b": (235.0, 22.0, 0.01),  # arXiv 2505.09388
    "qwen3-30b-a3b": (30.5, 3.3, 0.02),
    "olmoe-1b-7b": (6.9, 1.3, 0.02),  # arXiv 2409.02060
    # arXiv 2412.19437; our active count has both embedding and head
    "deepseek-v3": (671.0, 37.0, 0.02),
    # arXiv 2508.10925; its active count leaves the input embedding out
    "gpt-oss-120b": (116.8, 5.13 + 0.58, 0.005),
    "switch-base-128": (7.4, None, 0.01),  # model card of google/switch-base-128
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_are_those_published(name):
    total, active, tolerance = PUBLISHED[name]
    preset = load_preset(name)
    layer, dense = preset.layer, preset.dense_part
    experts = (layer.num_experts + layer.num_shared_experts) * layer.params_per_expert
    assert dense.params + dense.num_moe_layers * (experts + layer.gate_params) == pytest.approx(
        total * 1e9, rel=tolerance
    )
    if active:
        assert dense.active_params(layer) == pytest.approx(active * 1e9, rel=tolerance)


def test_every_preset_is_checked_here():
    assert set(preset_names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_names_its_source_and_is_whole(name):
    preset = load_preset(name)
    assert preset.name == name
    assert "arXiv" in preset.source
    assert preset.layer.hidden_size == preset.dense_part.hidden_size
    assert preset.dense_part.kv_bytes_per_token_per_layer > 0


def test_kv_cache_by_hand():
    assert load_preset("mixtral-8x7b").dense_part.kv_bytes_per_token_per_layer == 2 * 8 * 128 * 2
    assert load_preset("deepseek-v3").dense_part.kv_bytes_per_token_per_layer == (512 + 64) * 2
    assert load_preset("qwen3-235b-a22b").dense_part.kv_bytes_per_token_per_layer == 2 * 4 * 128 * 2


def test_gates_are_the_models():
    deepseek = load_preset("deepseek-v3").layer
    assert (str(deepseek.gate), deepseek.num_shared_experts) == ("group_limited:8:4+sigmoid", 1)
    assert str(load_preset("mixtral-8x7b").layer.gate) == "flat"
    switch = load_preset("switch-base-128").layer
    assert (switch.top_k, switch.gated, switch.capacity_factor) == (1, False, 1.25)


def test_precision_is_the_caller_s():
    assert load_preset("mixtral-8x7b").layer.precision == Precision()
    fp8 = Precision.named("fp8")
    assert load_preset("mixtral-8x7b", fp8).layer.precision == fp8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mixtral-8x7",
            "unknown preset 'mixtral-8x7': did you mean mixtral-8x7b or mixtral-8x22b?",
        ),
        (
            "qwen3-235b",
            "unknown preset 'qwen3-235b': did you mean qwen3-235b-a22b or qwen3-30b-a3b or "
            "qwen2-57b-a14b?",
        ),
    ],
)
def test_unknown_preset_comes_with_near_ones(name, message):
    with pytest.raises(UnknownNameError) as caught:
        load_preset(name)
    assert str(caught.value) == message
