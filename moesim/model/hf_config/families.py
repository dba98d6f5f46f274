"""What each configuration class implies: one record per ``model_type``.

A record holds the values that a class takes where its file does not state them, and the few facts
that no key states, such as which linear attention ``linear_attention`` means. They are those of the
classes in Hugging Face Transformers 5 (``configuration_*.py`` and ``modeling_*.py``), of the model
code in SGLang 0.5, and of the makers' reports. A class that has no record is read by the same keys,
and the notes say so.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from moesim.model.mixers import OutputGate

Linear = Literal["none", "gdn", "kda", "lightning", "mamba1", "mamba2", "conv"]
Windows = Literal["stated", "alternate", "compressed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a configuration class implies.

    Attributes:
        implied: Key -> value where the file does not state it.
        linear: What a layer that is no attention is.
        windows: Which attention layers have a window if no key lists them: those from
            ``max_window_layers`` on if one is ``stated``, every other one, or as DeepSeek-V4's.
        output_gate: The gate on the output of attention layers.
        gated: Whether feed-forward blocks have two up projections.
        dense_beside: Whether every MoE layer has a dense feed-forward beside the experts.
        has_shared_gate: Whether a gate of one output weighs the shared expert.
        query_experts: Whether attention chooses among sets of query heads as tokens do experts.
        blocks_per_layer: Number of blocks (attention and feed-forward) in one layer.
        unused: Keys that files of the class state and its model does not use.
        refused: Why the class cannot be read; empty if it can.
    """

    implied: dict[str, Any] = field(default_factory=dict)
    linear: Linear = "none"
    windows: Windows = "stated"
    output_gate: OutputGate = "none"
    gated: bool = True
    dense_beside: bool = False
    has_shared_gate: bool = False
    query_experts: bool = False
    blocks_per_layer: int = 1
    unused: tuple[str, ...] = ()
    refused: str = ""


_SIGMOID = {"scoring_func": "sigmoid"}
_UNTIED = {"tie_word_embeddings": False}
_TIED = {"tie_word_embeddings": True}
#: sizes of the indexer of DeepSeek sparse attention (DeepSeek-V3.2-Exp)
_DSA = {"index_head_dim": 128, "index_topk": 2048}
_DEEPSEEK_V3 = Family(implied=_UNTIED | _SIGMOID | {"first_k_dense_replace": 0})
_GLM = Family(implied=_UNTIED | _SIGMOID)
_GLM5_NEXT = Family(
    implied=_GLM.implied | _DSA | {"index_n_heads": 32, "hc_mult": 4, "first_k_dense_replace": 3},
    linear="kda",
)
_QWEN_MOE = Family(implied=_UNTIED, has_shared_gate=True)
_QWEN_HYBRID = Family(
    implied=_UNTIED | {"full_attention_interval": 4},
    linear="gdn",
    output_gate="element",
    has_shared_gate=True,
)
_LLAMA4 = Family(
    implied=_UNTIED
    | _SIGMOID
    | {
        "n_shared_experts": 1,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 8192,
        "no_rope_layer_interval": 4,
    }
)
_BAILING = Family(implied=_UNTIED)
_ERNIE = Family(
    implied=_TIED
    | {"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1},
    unused=(
        "compression_ratio",
        "moe_gate",
        "moe_gate_act",
        "moe_group",
        "moe_dense_experts_token_type_id",
        "moe_multimodal_dispatch_use_allgather",
        "multimodel_experts",
    ),
)
_GRANITE = Family(implied=_UNTIED)
_KIMI_LINEAR = Family(implied=_UNTIED | _SIGMOID, linear="kda")
_MINIMAX = Family(implied=_UNTIED, linear="lightning")
_MINIMAX_M3 = Family(implied=_UNTIED | _SIGMOID)
_STEP3 = Family(
    implied=_UNTIED | _SIGMOID,
)
_MIMO = Family(implied=_UNTIED | _SIGMOID | {"swa_num_key_value_heads": 8})
_GEMMA4 = Family(
    implied=_TIED | {"global_head_dim": 512, "sliding_window": 512, "sliding_window_pattern": 6},
    dense_beside=True,
)
_GROK = Family(implied=_UNTIED)
_NEMOTRON_H = Family(implied=_UNTIED | _SIGMOID, linear="mamba2", gated=False)

FAMILIES: dict[str, Family] = {
    "mixtral": Family(implied=_UNTIED),
    "phimoe": Family(implied=_UNTIED),
    "qwen2_moe": _QWEN_MOE,
    "qwen3_moe": Family(implied=_UNTIED),
    "qwen3_vl_moe": Family(implied=_UNTIED),
    "qwen3_vl_moe_text": Family(implied=_UNTIED),
    "qwen3_omni_moe_text": Family(implied=_UNTIED),
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_5_moe": _QWEN_HYBRID,
    "qwen3_5_moe_text": _QWEN_HYBRID,
    "olmoe": Family(implied=_UNTIED),
    "flex_olmo": Family(implied=_UNTIED),
    "gpt_oss": Family(implied=_UNTIED | {"sliding_window": 128}, windows="alternate"),
    "deepseek": Family(implied=_UNTIED),
    "deepseek_v2": Family(implied=_UNTIED),
    "deepseek_v3": _DEEPSEEK_V3,
    "deepseek_v32": Family(implied=_DEEPSEEK_V3.implied | _DSA | {"index_n_heads": 64}),
    "deepseek_v4": Family(
        implied=_UNTIED
        | {
            "scoring_func": "sqrtsoftplus",
            "sliding_window": 128,
            "o_groups": 8,
            "o_lora_rank": 1024,
            "index_n_heads": 64,
            "index_head_dim": 128,
            "index_topk": 512,
            "hc_mult": 4,
            "num_hash_layers": 3,
        },
        windows="compressed",
    ),
    "kimi_k2": _DEEPSEEK_V3,
    "kimi_vl": _DEEPSEEK_V3,
    "kimi_linear": _KIMI_LINEAR,
    "bailing_hybrid": Family(
        implied=_UNTIED | _SIGMOID | {"layer_group_size": 6, "no_kda_lora": True},
        linear="kda",
        output_gate="head",
    ),
    "bailing_moe": _BAILING,
    "bailing_moe_v2": Family(implied=_UNTIED | _SIGMOID),
    "bailing_moe_linear": Family(implied=_UNTIED | _SIGMOID, linear="lightning"),
    "bailing_moe_v2_linear": Family(implied=_UNTIED | _SIGMOID, linear="lightning"),
    "glm4_moe": _GLM,
    "glm4v_moe": _GLM,
    "glm4v_moe_text": _GLM,
    "glm4_moe_lite": _GLM,
    "glm_moe_dsa": Family(implied=_GLM.implied | _DSA | {"index_n_heads": 32}),
    "glm5_next": _GLM5_NEXT,
    "glm5_next_text": _GLM5_NEXT,
    "solar_open": _GLM,
    "dots1": Family(implied=_UNTIED | _SIGMOID),
    "sarvam_moe": _GLM,
    "sarvam_mla": _GLM,
    "axk1": _GLM,
    "mistral4": Family(implied=_UNTIED),
    "mistral_params": Family(implied=_UNTIED),
    "llama4_text": _LLAMA4,
    "llama4": _LLAMA4,
    "afmoe": Family(
        implied=_UNTIED | _SIGMOID | {"global_attn_every_n_layers": 4, "sliding_window": 1024},
        output_gate="element",
    ),
    "aria_text": Family(implied=_UNTIED),
    "exaone_moe": Family(
        implied=_UNTIED | _SIGMOID | {"sliding_window": 4096, "sliding_window_pattern": 4}
    ),
    "ernie4_5_moe": _ERNIE,
    "ernie4_5_moe_vl": _ERNIE,
    "ernie4_5_vl_moe": _ERNIE,
    "ernie4_5_vl_moe_text": _ERNIE,
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
    "granitemoehybrid": Family(implied=_UNTIED, linear="mamba2"),
    "jamba": Family(
        implied=_UNTIED
        | {
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        linear="mamba1",
    ),
    "jetmoe": Family(implied=_TIED | {"kv_channels": 128}, query_experts=True),
    "lfm2_moe": Family(
        implied=_TIED | _SIGMOID | {"num_dense_layers": 2, "conv_L_cache": 3}, linear="conv"
    ),
    "laguna": Family(implied=_UNTIED | _SIGMOID | {"sliding_window": 512}),
    "longcat_flash": Family(implied=_UNTIED, dense_beside=True, blocks_per_layer=2),
    "longcat_causal_lm": Family(implied=_UNTIED, dense_beside=True, blocks_per_layer=2),
    "minimax": _MINIMAX,
    "minimax_text_01": _MINIMAX,
    "minimax_m1": _MINIMAX,
    "minimax_m2": Family(implied=_UNTIED | _SIGMOID, unused=("mlp_intermediate_size",)),
    "minimax_m3": _MINIMAX_M3,
    "minimax_m3_vl": _MINIMAX_M3,
    "minimax_m3_vl_text": _MINIMAX_M3,
    "mimo_v2_flash": _MIMO,
    "mimo_v2": _MIMO,
    "nemotron_h": _NEMOTRON_H,
    "hunyuan": Family(implied=_TIED),
    "hunyuan_moe": Family(implied=_TIED),
    "hunyuan_v1_moe": Family(implied=_UNTIED),
    "hy_v3": Family(implied=_UNTIED | _SIGMOID | {"first_k_dense_replace": 1}),
    "step3_text": _STEP3,
    "step3p5": _STEP3,
    "mellum": Family(implied=_UNTIED | {"sliding_window": 1024}),
    "gemma4": _GEMMA4,
    "gemma4_text": _GEMMA4,
    "cohere2_moe": Family(implied=_TIED),
    "dbrx": Family(implied=_UNTIED),
    "arctic": Family(implied=_UNTIED | {"moe_layer_frequency": 2}),
    "grok-1": _GROK,
    "grok": _GROK,
    "minicpm": Family(implied=_TIED),
    "PanguProMoE": Family(implied=_UNTIED),
    "pangu_ultra_moe": Family(implied=_UNTIED | _SIGMOID),
    "switch_transformers": Family(
        refused="expected a decoder-only model, got switch_transformers (the preset "
        "switch-base-128 is one)"
    ),
}


#: beginning of an architecture's name -> the class that is meant where the type is not known:
#: Grok 2 calls itself ``git``, wrappers name only the architecture of their language part
_ARCHITECTURES = {
    "Grok1": "grok",
    "MiniMaxM3": "minimax_m3",
    "Step3p5": "step3p5",
    "DeepseekV2": "deepseek_v2",
    "DeepseekV3": "deepseek_v3",
    "Qwen2Moe": "qwen2_moe",
    "Qwen3Moe": "qwen3_moe",
    "BailingMoe": "bailing_moe",
    "NemotronH": "nemotron_h",
}


def family_of(data: dict[str, Any]) -> tuple[str, Family | None]:
    """Return the model type of a configuration and its record; None if the type has none."""
    kind = str(data.get("model_type", ""))
    if kind not in FAMILIES:
        named = data.get("architectures")
        for name in map(str, named if isinstance(named, list) else ()):
            known = (type_ for word, type_ in _ARCHITECTURES.items() if name.startswith(word))
            kind = next(known, kind)
    return kind, FAMILIES.get(kind)
