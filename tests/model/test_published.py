"""Configurations of published models read as what their makers say they are."""

import json
from pathlib import Path

import pytest

from moesim.errors import ConfigError
from moesim.model.hf_config import load_model, read_config

CONFIGS = Path(__file__).parent / "configs"
#: file -> (weights, active weights of a token with both embeddings, in 1e9; tolerance; source).
#: Makers count active weights with or without embeddings and round, hence the tolerances. Where it
#: says "counted", no figure of that accuracy is published: what the reader counts from the sizes
#: guards it against changes, and is no evidence that it is right.
SIZES = {
    "aria": (24.9, 3.9, 0.06, "arXiv 2410.05993: 24.9B, 3.9B activated"),
    "dbrx": (131.6, 36.47, 0.01, "databricks/dbrx-base: 132B, 36B active"),
    "deepseek-moe-16b": (16.4, 2.8, 0.02, "arXiv 2401.06066: 16.4B, 2.8B"),
    "deepseek-v2": (236.0, 21.0, 0.02, "arXiv 2405.04434: 236B, 21B"),
    "deepseek-v4-flash": (284.0, 13.0, 0.07, "deepseek-ai/DeepSeek-V4-Flash: 284B, 13B"),
    "deepseek-vl2": (27.0, 4.5, 0.02, "arXiv 2412.10302: language model of 27B, 4.5B"),
    "dots-llm1": (142.0, 14.0, 0.01, "arXiv 2506.05767: 142B, 14B"),
    "ernie-4.5-21b-a3b": (21.82, 3.35, 0.01, "baidu/ERNIE-4.5-21B-A3B-PT, its weights"),
    "ernie-4.5-vl-28b-a3b": (28.6, 3.35, 0.03, "baidu/ERNIE-4.5-VL-28B-A3B: 28B; counted"),
    "flexolmo-7x7b": (33.27, 33.27, 0.01, "allenai/FlexOlmo-7x7B-1T: 33B"),
    "gemma-4-26b-a4b": (25.22, 3.81, 0.01, "google/gemma-4-26B-A4B: 25.2B, 3.8B"),
    "glm-4.5-air": (106.0, 12.0, 0.13, "arXiv 2508.06471: 106B, 12B without embeddings"),
    "glm-4.7-flash": (30.0, 3.6, 0.09, "zai-org/GLM-4.7-Flash: 30B-A3B"),
    "glm-5": (744.0, 40.0, 0.05, "zai-org/GLM-5: 744B, 40B"),
    "granite-3.1-3b-a800m": (
        3.3,
        0.88,
        0.01,
        "ibm-granite/granite-3.1-3b-a800m-base: 3.3B; active counted",
    ),
    "granite-4.0-h-small": (32.21, 8.79, 0.01, "ibm-granite/granite-4.0-h-small, its weights"),
    "grok-1": (314.0, 86.0, 0.03, "xai-org/grok-1: 314B, a quarter active"),
    "grok-2": (269.52, 115.02, 0.01, "xai-org/grok-2, its weights"),
    "hunyuan-a13b": (80.38, 12.74, 0.01, "tencent/Hunyuan-A13B-Instruct, its weights"),
    "jamba-1.5-mini": (51.57, 12.11, 0.01, "ai21labs/AI21-Jamba-1.5-Mini, its weights"),
    "jetmoe-8b": (8.52, 2.2, 0.06, "arXiv 2404.07413: 8B (counted), 2.2B"),
    "k-exaone-236b-a23b": (236.0, 23.0, 0.03, "LGAI-EXAONE/K-EXAONE-236B-A23B"),
    "kimi-linear-48b-a3b": (49.1, 3.47, 0.01, "moonshotai/Kimi-Linear-48B-A3B-Base, its weights"),
    "kimi-vl-a3b": (16.0, 2.8, 0.05, "arXiv 2504.07491: language model of 16B, 2.8B"),
    "lfm2-8b-a1b": (8.34, 1.56, 0.01, "LiquidAI/LFM2-8B-A1B: 8.3B, 1.5B"),
    "ling-1t": (1000.0, 50.0, 0.03, "inclusionAI/Ling-1T: 1T, 50B"),
    "longcat-flash": (560.7, 27.8, 0.01, "arXiv 2509.01322: 560B, 27B on average"),
    "minimax-m3": (426.0, 26.0, 0.02, "counted (MiniMaxAI/MiniMax-M3)"),
    "minimax-text-01": (456.07, 48.39, 0.01, "arXiv 2501.08313: 456B, 45.9B without embeddings"),
    "mistral-large-3-params": (673.4, 39.9, 0.01, "mistralai/Mistral-Large-3-675B: 673B, 39B"),
    "nemotron-3-nano-30b-a3b": (
        31.58,
        3.58,
        0.01,
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B, weights",
    ),
    "phi-3.5-moe": (41.9, 6.6, 0.01, "microsoft/Phi-3.5-MoE-instruct: 41.9B, 6.6B"),
    "phi-mini-moe": (7.6, 2.4, 0.02, "microsoft/Phi-mini-MoE-instruct: 7.6B, 2.4B"),
    "qwen1.5-moe-a2.7b": (14.3, 2.7, 0.01, "Qwen/Qwen1.5-MoE-A2.7B: 14.3B, 2.7B"),
    "qwen2-57b-a14b": (57.4, 14.2, 0.01, "arXiv 2407.10671: 57B, 14B"),
    "qwen3-next-80b-a3b": (79.67, 3.87, 0.01, "Qwen/Qwen3-Next-80B-A3B-Instruct, active counted"),
    "qwen3-omni-30b-a3b": (30.5, 3.35, 0.01, "Qwen/Qwen3-Omni-30B-A3B-Instruct: the thinker"),
    "qwen3.5-122b-a10b": (122.11, 9.77, 0.01, "Qwen/Qwen3.5-122B-A10B, its weights"),
    "qwen3.5-35b-a3b": (34.66, 3.45, 0.01, "Qwen/Qwen3.5-35B-A3B, its weights"),
    "qwen3.6-35b-a3b-nvfp4": (34.66, 3.45, 0.01, "counted (the sizes of Qwen3.5-35B-A3B)"),
    "solar-open-100b": (102.6, 12.0, 0.01, "upstage/Solar-Open-100B: 102B, 12B"),
    "trinity-mini": (26.12, 3.47, 0.01, "arcee-ai/Trinity-Mini: 26B; active counted"),
}
#: file -> layers, MoE layers, cached bytes of a token, top_k, gate
SHAPES = {
    "nemotron-3-nano-30b-a3b": (52, 23, 6144, 6, "flat+sigmoid"),
    "jamba-1.5-mini": (32, 16, 16384, 2, "flat"),
    "granite-4.0-h-small": (40, 40, 16384, 10, "flat"),
    "qwen3-next-80b-a3b": (48, 48, 24576, 10, "flat"),
    "qwen3.5-35b-a3b": (40, 40, 20480, 8, "flat"),
    "qwen3.5-122b-a10b": (48, 48, 24576, 8, "flat"),
    "minimax-text-01": (80, 80, 40960, 2, "flat"),
    "ernie-4.5-21b-a3b": (28, 27, 57344, 6, "flat"),
    "lfm2-8b-a1b": (24, 22, 12288, 4, "flat+sigmoid"),
    "trinity-mini": (32, 30, 65536, 8, "flat+sigmoid"),
    "gemma-4-26b-a4b": (30, 30, 225280, 8, "flat"),
    "kimi-linear-48b-a3b": (27, 26, 8064, 8, "flat+sigmoid"),
    "longcat-flash": (28, 28, 64512, 12, "flat"),
    "mistral-large-3-params": (61, 58, 70272, 4, "flat"),
    "ling-1t": (80, 76, 327680, 8, "group_limited:8:4+sigmoid"),
    "deepseek-v2": (60, 59, 69120, 6, "group_limited:8:3"),
    "deepseek-v4-flash": (43, 43, 5304, 6, "flat+sqrtsoftplus"),
    "k-exaone-236b-a23b": (48, 47, 196608, 8, "flat+sigmoid"),
    "glm-5": (78, 75, 89856, 8, "flat+sigmoid"),
    "minimax-m3": (60, 57, 122880, 4, "flat+sigmoid"),
    "hunyuan-a13b": (32, 32, 131072, 8, "flat"),
}
W4A8 = "int4/float8_e4m3/float8_e4m3/bfloat16/0"
W8A16 = "int8/bfloat16/bfloat16/bfloat16/128"
MXFP8 = "float8_e4m3/float8_e4m3/float8_e4m3/bfloat16/32"
#: file -> format of the experts
FORMATS = {
    "deepseek-v4-flash": "mxfp4",
    "minimax-m3-nvfp4": "nvfp4",
    "qwen3.6-35b-a3b-nvfp4": "nvfp4",
    "quant-auto-round-int4": "int4",
    "quant-bnb-nf4": "int4",
    "quant-compressed-mixed-attn-first": "int4",
    "quant-compressed-mxfp4": "mxfp4",
    "quant-compressed-nvfp4": "nvfp4",
    "quant-compressed-w4afp8": W4A8,
    "quant-compressed-w8a16": W8A16,
    "quant-fbgemm-fp8": "fp8_tensor",
    "quant-fp8-experts-excluded": "bf16",
    "quant-fp8-with-moe-nvfp4": "nvfp4",
    "quant-gptq8": W8A16,
    "quant-hf-quant-config": "nvfp4",
    "quant-modelopt-no-method": "fp8_tensor",
    "quant-mxfp8": MXFP8,
    "quant-quark-mxfp4": "mxfp4",
}
CLASSES = [json.loads(line) for line in (CONFIGS / "classes.jsonl").read_text().splitlines()]


def model(name):
    folder = CONFIGS / name
    return load_model(str(folder if folder.is_dir() else CONFIGS / f"{name}.json"))


def test_every_configuration_has_a_row():
    there = {path.stem for path in CONFIGS.iterdir() if path.suffix in ("", ".json")}
    assert there == SIZES.keys() | FORMATS.keys() | {"nllb-moe-54b"}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    total, active, tolerance, _ = SIZES[name]
    spec = model(name).spec
    assert spec.total_params / 1e9 == pytest.approx(total, rel=min(tolerance, 0.03))
    assert spec.active_params / 1e9 == pytest.approx(active, rel=tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    spec = model(name).spec
    assert (
        spec.num_layers,
        spec.num_moe_layers,
        round(spec.kv_bytes_per_token),
        spec.moe.top_k,
        str(spec.moe.gate),
    ) == SHAPES[name]


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    found = model(name)
    assert found.published_as == FORMATS[name]
    assert found.layer.precision.name == FORMATS[name]


@pytest.mark.parametrize("name", SIZES)
def test_layer_and_dense_part_are_the_whole_model(name):
    found = model(name)
    layer, dense, spec = found.layer, found.dense_part, found.spec
    in_layers = layer.routed_params + layer.shared_params + layer.gate_params
    assert dense.params + dense.num_moe_layers * in_layers == pytest.approx(
        spec.total_params, rel=1e-3
    )
    assert dense.active_params(layer) == pytest.approx(spec.active_params, rel=2e-3)
    cache = dense.num_layers * dense.kv_bytes_per_token_per_layer
    assert cache == pytest.approx(spec.kv_bytes_per_token + spec.index_bytes_per_token)


def test_what_only_some_have():
    nemotron = model("nemotron-3-nano-30b-a3b").spec.moe
    assert (nemotron.gated, nemotron.num_shared_experts, nemotron.shared_width) == (False, 1, 3712)
    longcat = model("longcat-flash")
    assert (longcat.spec.moe.num_zero_experts, longcat.layer.top_k) == (256, 8)
    assert longcat.spec.blocks_per_layer == 2
    gemma = model("gemma-4-26b-a4b").spec.kinds
    assert all(kind.dense and kind.moe for kind in gemma)
    assert model("minimax-m3").dense_part.dense_intermediate_size == 12288
    hunyuan = model("hunyuan-a13b").spec.moe
    assert (hunyuan.num_shared_experts, hunyuan.shared_width) == (1, 3072)
    assert model("glm-5").spec.index_bytes_per_token == 78 * 128 * 2
    assert not any("scoring_func" in note for note in model("ling-1t").notes)


def test_what_decodes_with_an_encoder_is_refused():
    with pytest.raises(
        ConfigError, match=r"nllb-moe-54b.json: model_type: expected a decoder-only"
    ):
        model("nllb-moe-54b")


@pytest.mark.parametrize("line", CLASSES, ids=lambda line: line["model_type"])
def test_defaults_of_a_class_have_the_weights_of_its_model(line, tmp_path):
    """Every key that the class writes is understood or known to change nothing."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(line["config"] | {"model_type": line["model_type"]}))
    found = read_config(path)
    assert found.spec.total_params == pytest.approx(line["weights"], rel=2e-3)
    assert not any("not known" in note for note in found.notes), found.notes


#: values that some key cannot have
WRONG = ("x", "1,2", -1, 0, 1.5, True, [], [1], ["a"], [None], {}, {"a": 1}, 10**12)


SPOILED = (
    *("kimi-linear-48b-a3b", "nemotron-3-nano-30b-a3b", "deepseek-v4-flash", "quant-gptq8"),
    *("gemma-4-26b-a4b", "quant-compressed-w4afp8", "ernie-4.5-vl-28b-a3b", "dbrx"),
)


def spoiled(node):
    """Give every key every wrong value, one at a time."""
    for key, value in list(node.items()):
        for wrong in WRONG:
            node[key] = wrong
            yield
        node[key] = value
        if isinstance(value, dict):
            yield from spoiled(value)


def refusal(path):
    try:
        read_config(path)
    except ConfigError as error:
        return str(error)
    return f"{path}: nothing"


@pytest.mark.parametrize("name", SPOILED)
def test_a_wrong_value_is_one_line_or_no_matter(name, tmp_path):
    path = tmp_path / "config.json"
    given = json.loads((CONFIGS / f"{name}.json").read_text())
    for _ in spoiled(given):
        path.write_text(json.dumps(given))
        line = refusal(path)
        assert line.startswith(f"{path}: ")
        assert "\n" not in line
        assert line.count(str(path)) == 1
