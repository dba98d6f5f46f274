"""Keys of published configurations that change neither sizes nor layers are read without a word;
unknown keys that might are errors.
"""

import json

import pytest

from moesim.errors import ConfigError
from moesim.model.hf_config import read_config

BASE = {
    "model_type": "glm_moe_dsa",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "vocab_size": 1000,
}
#: as they stand in files of Qwen, DeepSeek, GLM, Kimi, MiniMax, Mistral, Hunyuan, ERNIE and others
HARMLESS = {
    "_name_or_path": "x",
    "architectures": ["GlmMoeDsaForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.1,
    "attention_value_scale": 0.707,
    "attn_implementation": "flash_attention_2",
    "attn_logit_softcapping": 30.0,
    "attn_temperature_len": 1024,
    "auto_map": {"AutoConfig": "configuration.Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 1,
    "chunk_size_feed_forward": 1,
    "clip_qkv": 8,
    "dense_list": [4096, 0],
    "embedding_multiplier": 12,
    "eos_token_id": [1, 2],
    "ep_size": 8,
    "final_logit_softcapping": 30.0,
    "head_dim": 32,
    "hidden_act": "silu",
    "id2label": {"0": "LABEL_0"},
    "image_token_id": 5,
    "initializer_range": 0.02,
    "layernorm_full_attention_alpha": 3.5,
    "lm_head_bias": True,
    "logits_scaling": 6,
    "mamba_chunk_size": 256,
    "mask_init_id": 12,
    "max_position_embeddings": 131072,
    "mla_use_nope": True,
    "moe_capacity": [64, 64, 64],
    "moe_router_enable_expert_bias": True,
    "moe_token_dropping": True,
    "moe_use_aux_free": True,
    "norm_topk_prob": True,
    "num_beams": 1,
    "num_key_value_heads": 8,
    "num_logits_to_keep": 1,
    "output_router_logits": True,
    "partial_rotary_factor": 0.5,
    "pretraining_tp": 1,
    "qk_norm_type": "per_head",
    "rescale_prenorm_residual": True,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 1e6},
    "rope_scaling": {"factor": 40, "type": "yarn"},
    "rotary_dim": 64,
    "routed_scaling_factor": 2.5,
    "router_aux_loss_coef": 0.001,
    "router_dtype": "fp32",
    "router_jitter_noise": 0.1,
    "sandwich_norm": True,
    "seq_aux": True,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "swiglu_limit": 7.0,
    "time_step_limit": [0.0, 1e9],
    "topk_method": "noaux_tc",
    "transformers_version": "4.57.0",
    "use_cache": True,
    "use_grouped_mm": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vision_config": {"hidden_size": 1152},
}


@pytest.fixture
def config(tmp_path):
    """A model read from keys."""

    def make(keys, **options):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(BASE | keys))
        return read_config(path, **options)

    return make


def test_what_changes_nothing_is_read_without_a_word(config):
    plain, full = config({}), config(HARMLESS)
    assert full.notes == plain.notes == ()
    assert full.spec == plain.spec


@pytest.mark.parametrize("value", [None, False, 0, -1, "", [], {}])
def test_what_is_switched_off_is_read_without_a_word(config, value):
    assert config({"num_memory_layers": value}).notes == ()


@pytest.mark.parametrize(
    "key",
    ["num_memory_layers", "moe_hidden_ratio", "expert_rank", "attn_layout_types", "mlp_every"],
)
def test_what_may_change_sizes_is_an_error_or_a_note(config, key):
    with pytest.raises(ConfigError, match=f"{key}: expected a key whose effect on sizes"):
        config({key: 2})
    assert config({key: 2}, lenient=True).notes == (f"{key} = 2 is not understood and ignored",)


@pytest.mark.parametrize(
    "keys",
    [
        {"indexer_types": ["full", "full", "shared", "full", "shared", "full"]},
        {"index_topk_pattern": "FFSFSF"},
        {"index_topk_freq": 2, "index_skip_topk_offset": 2},
    ],
)
def test_indexers_that_layers_share(config, keys):
    found = config({"first_k_dense_replace": 2} | keys).spec
    assert [block.mixer.indexer is not None for block in found.blocks] == [
        *(True, True, False, True, False, True)
    ]
    assert found.index_bytes_per_token == 4 * 128 * 2
