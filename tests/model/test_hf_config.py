"""Models from config.json: presets reproduced from the public files' sizes, and one clear line for
what is missing.
"""

import json

import pytest

from moesim.errors import ConfigError
from moesim.model.hf_config import load_model, read_config
from moesim.model.presets import load_preset, preset_names

_QWEN = {
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "head_dim": 128,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
#: preset -> the keys of its published config.json that matter here
CONFIGS = {
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32000,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "n_group": 8,
        "topk_group": 4,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 129280,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
        },
    },
    "qwen3-30b-a3b": _QWEN
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_attention_heads": 32,
        "num_hidden_layers": 48,
    },
    "qwen3-235b-a22b": _QWEN
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_attention_heads": 64,
        "num_hidden_layers": 94,
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_attention_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 50304,
    },
    "gpt-oss-120b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "head_dim": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 36,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "experts_per_token": 4,
        "tie_word_embeddings": False,
        "vocab_size": 201088,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    },
}
CONFIGS["mixtral-8x22b"] = CONFIGS["mixtral-8x7b"] | {
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_attention_heads": 48,
    "num_hidden_layers": 56,
}
CONFIGS["qwen2-57b-a14b"] = {
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "moe_intermediate_size": 2560,
    "num_attention_heads": 28,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "shared_expert_intermediate_size": 20480,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
MIXTRAL, DEEPSEEK = CONFIGS["mixtral-8x7b"], CONFIGS["deepseek-v3"]


@pytest.fixture
def config(tmp_path):
    """A model read from keys."""

    def make(keys, **options):
        path = tmp_path / "some-model" / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(keys))
        return read_config(path, **options)

    return make


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"switch-base-128"}))
def test_a_published_config_is_its_preset(config, name):
    found, preset = config(CONFIGS[name]), load_model(name)
    assert (found.layer, found.dense_part, found.published_as) == (
        preset.layer,
        preset.dense_part,
        preset.published_as,
    )
    assert preset.layer == load_preset(name, preset.layer.precision).layer
    assert found.name == "some-model"


def test_deepseek_v2_lite(config):
    """deepseek-ai/DeepSeek-V2-Lite: no groups, no rank for queries, two shared experts; 15.7B
    (arXiv 2405.04434).
    """
    found = config(
        {
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "greedy",
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "scoring_func": "softmax",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 102400,
        }
    )
    layer, dense = found.layer, found.dense_part
    total = dense.params + 26 * (66 * layer.params_per_expert + layer.gate_params)
    assert total == pytest.approx(15.7e9, rel=0.005)
    assert (str(layer.gate), layer.num_shared_experts, dense.num_moe_layers) == ("flat", 2, 26)
    assert dense.kv_bytes_per_token_per_layer == (512 + 64) * 2


def test_llama4_maverick_is_inside_its_text_config(config):
    """meta-llama/Llama-4-Maverick-17B-128E: every other layer, one shared expert; 400B total, 17B
    active.
    """
    found = config(
        {
            "model_type": "llama4",
            "torch_dtype": "bfloat16",
            "text_config": {
                "model_type": "llama4_text",
                "hidden_size": 5120,
                "intermediate_size": 8192,
                "intermediate_size_mlp": 16384,
                "interleave_moe_layer_step": 2,
                "num_local_experts": 128,
                "num_experts_per_tok": 1,
                "num_hidden_layers": 48,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "vocab_size": 202048,
                "tie_word_embeddings": False,
            },
            "vision_config": {},
        }
    )
    layer, dense = found.layer, found.dense_part
    assert (dense.num_moe_layers, layer.num_shared_experts, str(layer.gate)) == (
        24,
        1,
        "flat+sigmoid",
    )
    total = dense.params + 24 * (129 * layer.params_per_expert + layer.gate_params)
    assert total == pytest.approx(400e9, rel=0.01)
    assert dense.active_params(layer) == pytest.approx(17e9, rel=0.05)


def test_kimi_k2_and_glm(config):
    """moonshotai/Kimi-K2: 1T total, 32B active (arXiv 2507.20534); zai-org/GLM-4.5: 355B, 32B
    (arXiv 2508.06471).
    """
    kimi = config(
        DEEPSEEK
        | {
            "model_type": "kimi_k2",
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "n_routed_experts": 384,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "vocab_size": 163840,
        }
    )
    layer, dense = kimi.layer, kimi.dense_part
    assert dense.params + 60 * 385 * layer.params_per_expert == pytest.approx(1.026e12, rel=0.01)
    assert dense.active_params(layer) == pytest.approx(32e9, rel=0.05)
    glm = config(
        {
            "model_type": "glm4_moe",
            "hidden_size": 5120,
            "intermediate_size": 12288,
            "moe_intermediate_size": 1536,
            "first_k_dense_replace": 3,
            "n_group": 1,
            "topk_group": 1,
            "n_routed_experts": 160,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 92,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151552,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
    )
    assert glm.dense_part.params + 89 * 161 * glm.layer.params_per_expert == pytest.approx(
        355e9, rel=0.01
    )
    assert str(glm.layer.gate) == "flat+sigmoid"


def test_an_unknown_type_is_read_by_the_same_keys_and_says_so(config):
    found = config(
        MIXTRAL | {"model_type": "newmoe", "head_dim": None, "tie_word_embeddings": None}
    )
    assert found.layer == config(MIXTRAL).layer
    assert len(found.notes) == 3
    assert found.notes[0] == (
        "model_type newmoe is not known: read by the keys of the other classes"
    )
    assert [n.split()[0] for n in found.notes[1:]] == ["scoring_func", "tie_word_embeddings"]


@pytest.mark.parametrize(
    ("stated", "recipe"),
    [
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8_tensor"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 4, "type": "int", "strategy": "group"},
                        "input_activations": None,
                    }
                },
            },
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "float", "strategy": "block"},
                        "input_activations": {"num_bits": 8, "type": "float"},
                    }
                },
            },
            "fp8",
        ),
    ],
)
def test_quantised_weights(config, stated, recipe):
    found = config(MIXTRAL | {"quantization_config": stated})
    assert (found.published_as, found.layer.precision.name, found.notes) == (recipe, recipe, ())


def test_an_unknown_quantisation_is_refused_or_a_note(config):
    keys = MIXTRAL | {"quantization_config": {"quant_method": "aqlm"}}
    line = "quantization_config: expected a format that moesim knows, got 'quant_method aqlm'"
    with pytest.raises(ConfigError, match=line):
        config(keys)
    found = config(keys, lenient=True)
    assert (found.published_as, found.notes) == (
        "bf16",
        (line, "quantization_config: bf16 assumed"),
    )


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"num_local_experts": None},
            "expected a Mixture-of-Experts model, with one of num_experts, num_local_experts, "
            "n_routed_experts, moe_num_experts, num_routed_experts, got model_type mixtral without",
        ),
        (
            {"num_experts_per_tok": None},
            "num_experts_per_tok (or experts_per_token, moe_topk, moe_k, num_experts_per_token, "
            "top_k_experts, moe_top_k): expected an integer, the experts of a token, got nothing",
        ),
        (
            {"hidden_size": "4096"},
            "hidden_size: expected an integer >= 1, the width of a token, got '4096'",
        ),
        (
            {"vocab_size": None},
            "vocab_size: expected an integer, the number of tokens known, got nothing",
        ),
        ({"num_experts_per_tok": 16}, "layer.top_k: expected at most num_experts = 8, got 16"),
        (
            {"num_attention_heads": 30, "num_key_value_heads": 30},
            (
                "head_dim: expected the width of a head, since num_attention_heads = 30 does not "
                "divide 4096, got None"
            ),
        ),
        (
            {"kv_lora_rank": 512},
            "qk_nope_head_dim (or attention_qk_dim): expected an integer, the width of a head "
            "without its rotary part, got nothing",
        ),
        (
            {"n_group": 3, "topk_group": 1},
            "layer.gate.num_expert_groups: expected a divisor of num_experts = 8, got 3",
        ),
        ({"n_group": 2, "topk_group": 4}, "topk_group: expected at most n_group = 2, got 4"),
        (
            {"scoring_func": "tanh"},
            "scoring_func: expected softmax, sigmoid or sqrtsoftplus, got 'tanh'",
        ),
        ({"first_k_dense_replace": 32}, "layers: expected some of 32 layers with experts, got 0"),
        (
            {"model_type": "switch_transformers"},
            "model_type: expected a decoder-only model, got switch_transformers",
        ),
    ],
)
def test_what_is_wrong_is_one_line(config, tmp_path, keys, line):
    with pytest.raises(ConfigError) as caught:
        config(MIXTRAL | keys)
    assert str(caught.value).startswith(f"{tmp_path}/some-model/config.json: {line}")


def test_what_is_no_config(tmp_path):
    path = tmp_path / "config.json"
    for text, line in (
        ("{", "expected JSON: "),
        ("[1]", "expected a JSON object with .*, got list"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=line):
            load_model(str(tmp_path))
    with pytest.raises(ConfigError, match="cannot read this file: No such file"):
        load_model(str(tmp_path / "other.json"))
    with pytest.raises(
        ConfigError, match=r"mixtral-8x7b or mixtral-8x22b\? \(or give the path of a config.json\)"
    ):
        load_model("mixtral-8x7")
