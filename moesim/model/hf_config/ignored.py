"""The keys of a configuration that do not change sizes or the layout of layers.

A key that nothing has read is judged by these rules, in order: (1) a value that switches something
off (null, false, 0, -1, empty) does not matter; (2) a name of `_HARMLESS` does not matter:
positions, norms, activation functions, training, generation, the maker's library, other modalities;
(3) a name that `_SIZES` finds, such as one with ``size`` or ``layers``, matters and is an error;
(4) any other name is a note.
"""

import re
from typing import Any

from moesim.errors import ConfigError
from moesim.model.hf_config.keys import Keys

#: names, or parts of names, of keys that change neither sizes nor layout
_HARMLESS = re.compile(
    r"""
    # the maker's library, names and generation
    ^_|architectures|auto_map|model_type|transformers|version|torch_dtype|^dtype|_dtype$|dtype_
    |^dtypes$|_token_?i[dx]|_token$|_tokens$|token_ids?|tokens_per_second|token_index|_ids?$
    |id2label|label2id|problem_type|return_dict|^output_(attentions|hidden|router)|use_cache
    |cache_implementation|^task|^finetuning|prefix|tokenizer|padding|pad_|^pruned|torchscript
    |is_decoder|cross_attention|^enc_index|^mhc$|index_kpool_|index_share_for_mtp|indexer_rope|freq_alloc|^zero_centered$|^(lm|rm)_head$|^glu$|^bias$|max_attn_value|attn_temperature_len|dense_list
    |class_num|mask_init|anyres|attn_implementation|^use_residual$|pool_type|attention_type|att_impl|use_bidirectional|is_encoder_decoder|tie_encoder|bad_words|num_beam|num_return
    |^(max|min)_length|do_sample|^top_[kp]$|temperature|typical_p|no_repeat|repetition|length_pen
    |early_stopping|begin_suppress|suppress|exponential|forced_|remove_invalid|diversity|^eod|sep_
    |^name|^license|bos|eos|url|checkpoint|unsloth|^fix|^_|generation|^seed$|slide_every
    # positions
    |rope|rotary|position|max_seq|seq_len|alibi|yarn|mrope|theta|original_max|model_max_length
    |max_model_len|context_len|temperature_tuning|floor_scale|attn_scale|scale_base|llama_4
    |beta_(fast|slow)|max_context|long_factor|short_factor|max_sequence
    # norms, scales, activation functions, biases, precision of parts
    |norm|_eps|epsilon|(^|_)act(ivation)?(_fn|_func|_function)?$|activation_(func|alpha|limit)
    |hidden_act|swiglu|softcap|logit|multiplier|residual_scal|scaling|_scale$|scale_(emb|depth|fac)
    |mup|clip|_bias|bias_|^use_bias|qkv_bias|biases|fp32|float32|deepnorm|(alpha|beta)_factor
    |query_pre_attn|_std|init|full_attn_(alpha|beta)|sink|emb_scale|gelu|silu|qk_scale|soft_cap
    |time_step|dt_(min|max)|lower_bound|upper_bound|safe_gate|_limits?$|dim_model_base|expansion_
    # training
    |dropout|_drop|droppath|pdrop|jitter|noise|aux|loss|z_coef|_coef|^ep_size|pretraining|lr_
    |gradient|seq_aux|router_.*(coef|bias)|balance|lambda|recompute|^train|label_smooth|epoch
    |weight_decay|moe_(norm|min|z|tok|token_drop|permute|loss|impl|backend|use_|enable|dtype|router
    (_enable|_dtype|_fusion|_topk_scal|_pre|_load|_scal|_logit))|renormal|batch_prioritized|parallel
    |use_grouped|grouped_(gemm|mm)|sharding|fusion|fused|flash|_impl|_kernels$|^use_(mamba_k|assoc
    |mambapy|recursive|flex|sdpa|triton)|chunk_size|chunk_len|chunk_feed|block_size|is_causal|causal
    |drop_tokens|moe_drop|shared_moe_mode|^use_moe$|mla_(scale|use_nope)|capacity|eval_cap|token_dropping|keep_.*fp|ignore_|pooling|tensor_model|expert_drop
    |enforce_|ep_|num_logits_to_keep|rescale_prenorm|residual_in_fp32|overlap|scoring_bias
    |correction|input_jitter|router_ignore|mscale|scale_fmt|mlp_recomp|rmsnorm|attention_method
    |moe_(dropless|layer_recompute|expert_parallel)|sequence_par|use_return|route_norm|norm_topk
    |apply_router_weight|shared_expert_combination|router_weight|drop_rate|expert_bias$|^use_expert
    |mtp|nextn|next_n|predict_layers|eagle|spec(ulative)?_
    # other modalities
    |vision|visual|image|video|audio|speech|talker|code2wav|projector|patch|spatial|temporal|mm_|tile|vit
    |processor|media|encoder_config|multimodal|mel_|codec|voice|sound|frame|pixel|^ocr|^global_view
    |candidate_res|adaptor|aligner|modal|crop|downsample|im_|resampler|siglip|qformer|user_role
    """,
    re.VERBOSE,
)
#: parts of names of keys that change sizes or the layout of layers
_SIZES = re.compile(
    r"size|dim|rank|width|hidden|num_|^n_|_num|count|layer|head|expert|moe|ffn|mlp|freq|interval"
    r"|period|offset|pattern|type|expand|group|kernel|ratio|share|latent|window|index|top_?k|lora"
    r"|step|every|interleave|block|inner|state|conv|mamba|ssm|attn|attention|attend|linear|sparse"
    r"|dense|vocab|embed|tied?_|residual|hash|compress|loop|repeat|depth|gate|gating|router|zero"
    r"|param|quant|stride|hc_|ple|mixer|recurr|memory|adapter"
)


def judge(keys: Keys) -> None:
    """Judge every key that nothing has read, by the rules of this module; add what is not certain
    to the notes.

    Raises:
        ConfigError: A key changes sizes or the layout and is not read, and the reading is strict.
    """
    for name, value in keys.unread():
        if _is_off(value) or _HARMLESS.search(name):
            continue
        if not _SIZES.search(name):
            keys.notes.append(f"{name} is not known, and not taken for a size: ignored")
            continue
        text = str(value)
        text = text if len(text) <= 60 else f"{text[:57]}..."
        if not keys.lenient:
            raise ConfigError(
                f"{keys.where}: {name}: expected a key whose effect on sizes or layers is known "
                f"(--lenient ignores it), got {text}"
            )
        keys.notes.append(f"{name} = {text} is not understood and ignored")


def _is_off(value: Any) -> bool:
    """Return whether a value switches something off."""
    return value in (False, 0, -1, "", [], {}) or value is None
