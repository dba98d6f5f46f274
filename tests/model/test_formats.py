"""What a quantization says of experts, by method, group, exclusion and pattern."""

import json

import pytest

from moesim.errors import ConfigError
from moesim.model.hf_config import load_model, read_config
from moesim.model.precision import Precision

BASE = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 8,
    "vocab_size": 151936,
}
W8A16 = "int8/bfloat16/bfloat16/bfloat16/128"
W4A8 = "int4/float8_e4m3/float8_e4m3/bfloat16/0"
MXFP8 = "float8_e4m3/float8_e4m3/float8_e4m3/bfloat16/32"
FP8 = {"num_bits": 8, "type": "float"}
FP4 = {"num_bits": 4, "type": "float"}
INT4 = {"num_bits": 4, "type": "int", "group_size": 32}


def groups(*tables, **more):
    """A table of compressed-tensors with groups of (weights, activations, targets)."""
    named = {
        f"group_{i}": {"weights": weights, "input_activations": tokens, "targets": targets}
        for i, (weights, tokens, targets) in enumerate(tables)
    }
    return {"quant_method": "compressed-tensors", "config_groups": named} | more


def each(module, layers=range(8), **table):
    return {f"model.layers.{i}.{module}": table for i in layers}


LINEAR, EXPERTS = ["Linear"], ["re:.*experts.*"]
ATTENTION = ["re:.*self_attn.*"]
#: table -> format of the experts, format of attention
CASES = {
    "fp8 without blocks": ({"quant_method": "fp8"}, "fp8_tensor", "fp8_tensor"),
    "fp8, attention left out": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]}
        | {"modules_to_not_convert": ["self_attn", "mlp.gate", "lm_head"]},
        "fp8",
        "bf16",
    ),
    "fp8, shared experts left out": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]}
        | {"modules_to_not_convert": ["mlp.shared_experts"]},
        "fp8",
        "fp8",
    ),
    "one projection of attention left out": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]}
        | {"ignored_layers": [f"model.layers.{i}.self_attn.o_proj" for i in range(8)]},
        "fp8",
        "fp8",
    ),
    "experts of two layers left out": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}
        | {"exclude_modules": [f"model.layers.{i}.mlp.experts*" for i in range(2)]},
        "nvfp4",
        "nvfp4",
    ),
    "experts of most layers left out": (
        {"quant_method": "modelopt", "quant_algo": "FP8"}
        | {"exclude_modules": [f"model.layers.{i}.mlp.experts*" for i in range(6)]},
        "bf16",
        "fp8_tensor",
    ),
    "globs": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}
        | {"exclude_modules": ["*self_attn*", "*mlp.gate.*", "*router*", "lm_head"]},
        "nvfp4",
        "bf16",
    ),
    "an expression for experts": (
        groups((FP8, FP8, LINEAR), ignore=["re:.*mlp\\.experts\\..*"]),
        "bf16",
        "fp8_tensor",
    ),
    "an expression for dense layers": (
        groups((INT4, None, LINEAR), ignore=[*ATTENTION, "re:.*mlp\\.(gate|up|down)_proj.*"]),
        "int4",
        "bf16",
    ),
    "attention first": (groups((FP8, FP8, ATTENTION), (INT4, None, EXPERTS)), "int4", "fp8_tensor"),
    "attention only": (groups((FP8, FP8, ATTENTION)), "bf16", "fp8_tensor"),
    "a class of experts": (
        groups((FP8, FP8, LINEAR), (INT4, None, ["FusedMoE"])),
        "int4",
        "fp8_tensor",
    ),
    "groups without a method": (
        {"config_groups": groups((INT4, None, LINEAR))["config_groups"]},
        "int4",
        "int4",
    ),
    "fp8 blocks": (groups((FP8 | {"strategy": "block"}, FP8, LINEAR)), "fp8", "fp8"),
    "mxfp8": (groups((FP8 | {"group_size": 32}, FP8, LINEAR)), MXFP8, MXFP8),
    "mxfp4": (groups((FP4 | {"group_size": 32}, None, LINEAR)), "mxfp4", "mxfp4"),
    "mxfp4 and fp8": (groups((FP4 | {"group_size": 32}, FP8, LINEAR)), "mxfp4_a8", "mxfp4_a8"),
    "nvfp4": (groups((FP4 | {"group_size": 16}, FP4, LINEAR)), "nvfp4", "nvfp4"),
    "nvfp4 weights": (groups((FP4 | {"group_size": 16}, None, LINEAR)), "nvfp4_a16", "nvfp4_a16"),
    "int8": (
        groups(({"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "int"}, LINEAR)),
        "int8",
        "int8",
    ),
    "int8 weights": (groups(({"num_bits": 8, "type": "int"}, None, LINEAR)), W8A16, W8A16),
    "int4 and fp8": (groups((INT4, FP8, LINEAR)), W4A8, W4A8),
    "awq": ({"quant_method": "awq", "bits": 4, "zero_point": True}, "int4", "int4"),
    "gptq, experts skipped": (
        {"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*experts.*": {}}},
        "bf16",
        "int4",
    ),
    "gptq, experts in 8 bits": (
        {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*experts.*": {"bits": 8}}},
        W8A16,
        "int4",
    ),
    "auto-round, experts in 16 bits": (
        {"quant_method": "auto-round", "bits": 4, "data_type": "int"}
        | {"extra_config": {".*experts.*": {"bits": 16}}},
        "bf16",
        "int4",
    ),
    "auto-round, one gate in 16 bits": (
        {"quant_method": "auto-round", "bits": 4, "data_type": "int"}
        | {"extra_config": {"model.layers.0.mlp.gate": {"bits": 16}}},
        "int4",
        "int4",
    ),
    "auto-round mxfp4": (
        {"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"},
        "mxfp4",
        "mxfp4",
    ),
    "bitsandbytes 8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, W8A16, W8A16),
    "quark": (
        {"quant_method": "quark", "exclude": ["*self_attn*"]}
        | {"global_quant_config": {"weight": {"dtype": "fp8_e4m3"}, "input_tensors": {"d": 1}}},
        "fp8_tensor",
        "bf16",
    ),
    "quark by layer": (
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int8"}}}
        | {"layer_quant_config": {"*experts*": {"weight": {"dtype": "fp4", "group_size": 32}}}},
        "mxfp4",
        W8A16,
    ),
    "mixed": (
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
        | {
            "quantized_layers": each("mlp.experts.0.down_proj", quant_algo="NVFP4")
            | each("self_attn.o_proj", quant_algo="FP8")
        },
        "nvfp4",
        "fp8_tensor",
    ),
    "mixed, attention only": (
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
        | {"quantized_layers": each("self_attn.o_proj", quant_algo="FP8")},
        "bf16",
        "fp8_tensor",
    ),
    "an algorithm of experts": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "moe_quant_algo": "W4A8_MXFP4_FP8"},
        "mxfp4_a8",
        "fp8_tensor",
    ),
    "mlx": ({"bits": 4, "group_size": 64, "mode": "affine"}, "int4", "int4"),
    "mlx, experts in mxfp4": (
        {"bits": 8, "group_size": 64} | each("mlp.experts.0.down_proj", bits=4, mode="mxfp4"),
        "mxfp4",
        W8A16,
    ),
    "w4afp8": ({"quant_method": "w4afp8"}, W4A8, "fp8"),
    "mxfp4 of gpt-oss": ({"quant_method": "mxfp4"}, "mxfp4", "bf16"),
}


@pytest.fixture
def config(tmp_path):
    """A model with a quantization."""

    def make(table, **keys):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(BASE | keys | {"quantization_config": table}))
        return read_config(path)

    return make


@pytest.mark.parametrize("name", CASES)
def test_formats_of_experts_and_attention(config, name):
    table, experts, attention = CASES[name]
    found = config(table)
    assert found.published_as == experts
    assert found.dense_part.weight_bytes == Precision.named(attention).weight_bytes


@pytest.mark.parametrize(
    ("table", "got"),
    [
        ({"quant_method": "hqq"}, "'quant_method hqq'"),
        ({"quant_method": "awq", "bits": 3}, "'3 bits of awq'"),
        ({"quant_method": "modelopt", "quant_algo": "FP2"}, "'quant_algo FP2'"),
        (groups(({"num_bits": 6, "type": "float"}, None, LINEAR)), "'weights of 6 bits float'"),
        ({"bits": 4}, "'quant_method (none)'"),
    ],
)
def test_an_unknown_format_is_one_line(config, tmp_path, table, got):
    with pytest.raises(ConfigError) as caught:
        config(table)
    assert str(caught.value) == (
        f"{tmp_path}/config.json: quantization_config: expected a format that moesim knows, "
        f"got {got}"
    )


def test_a_null_inside_does_not_erase_what_is_outside(tmp_path):
    path = tmp_path / "config.json"
    inner = BASE | {"quantization_config": None, "vocab_size": None, "tie_word_embeddings": None}
    outer = {"quantization_config": {"quant_method": "fp8"}, "vocab_size": 1000}
    outer |= {"model_type": "wrapper", "tie_word_embeddings": True, "text_config": inner}
    path.write_text(json.dumps(outer))
    found = read_config(path)
    assert found.published_as == "fp8_tensor"
    assert (found.spec.vocab_size, found.spec.tied_embeddings) == (1000, True)


def test_a_file_beside_the_configuration_must_agree_with_it(tmp_path):
    keys = BASE | {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert load_model(str(tmp_path)).published_as == "fp8_tensor"
    beside.write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(ConfigError) as caught:
        load_model(str(tmp_path))
    assert str(caught.value) == (
        f"{beside}: quant_algo: expected FP8, that of config.json beside it, got NVFP4"
    )


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a folder with a config\.json"):
        load_model(str(tmp_path))
