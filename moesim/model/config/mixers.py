"""Read the mixer of one layer."""

from math import ceil

from moesim.model.config import layout
from moesim.model.config.families import Family
from moesim.model.config.keys import Keys
from moesim.model.latent import CompressedAttention, LatentAttention
from moesim.model.mixers import GroupedAttention, Indexer, Mixer, OutputGate
from moesim.model.recurrent import GatedDeltaNet, KimiDeltaAttention, LightningAttention
from moesim.model.state_space import Mamba1, Mamba2, ShortConvolution

_HEADS = ("num_attention_heads", "n_heads", "num_heads", "num_attention_heads_per_layer")
_KV_HEADS = ("num_key_value_heads", "n_kv_heads", "attn_kv_n_heads", "num_attention_groups")
_HEAD_SIZES = ("head_dim", "kv_channels", "attention_head_dim")
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size")


def read_mixer(keys: Keys, family: Family, word: str, layer: int, hidden: int) -> Mixer | None:
    """Return the mixer of one layer.

    Args:
        keys: The keys as the layer sees them, `Keys.at`.
        family: What the configuration class implies.
        word: The kind of mixer, a word of `moesim.model.config.layout`.
        layer: Number of the layer, from 0.
        hidden: Width of a token.

    Raises:
        ConfigError: A key is missing, malformed or contradicts another.
    """
    if word == layout.NONE:
        return None
    if word == layout.LINEAR:
        return _linear(keys, family, hidden)
    if keys.has("o_lora_rank"):
        return _compressed(keys, word)
    if keys.has("kv_lora_rank", "attention_kv_lora_dim"):
        return _latent(keys, family, word, layer)
    return _grouped(keys, family, word, layer, hidden)


def _heads(keys: Keys) -> int:
    # a list with one number per layer goes before the number for all
    name = _HEADS[-1] if keys.has(_HEADS[-1]) else ""
    return keys.whole(*((name,) if name else _HEADS), what="attention heads")


def _window(keys: Keys, word: str) -> int | None:
    if word != layout.WINDOW:
        return None
    return keys.whole(*[n for n in _WINDOWS if keys.has(n)] or _WINDOWS, what="tokens of a window")


def _gate(keys: Keys, family: Family) -> OutputGate:
    """Return the gate on the output: that of the class, or what a key switches on or off."""
    if keys.has("attn_output_gate"):
        default = family.output_gate == "element"
        return "element" if keys.flag("attn_output_gate", default=default) else "none"
    if keys.flag("use_head_wise_attn_gate"):
        return "head"
    stated = keys.stated("gating")
    if stated is not None:
        words = {True: "head", False: "none", "per-head": "head", "per-element": "element"}
        known = stated[1] in words
        keys.require(known, "gating", "true, false, per-head or per-element", stated[1])
        return words[stated[1]]  # type: ignore[return-value]
    return family.output_gate


def _grouped(keys: Keys, family: Family, word: str, layer: int, hidden: int) -> GroupedAttention:
    """Return multi-head or grouped-query attention; layers with a window may have sizes of their
    own, and in Gemma 4 those without.
    """
    heads = _heads(keys)
    size = _head_size(keys, heads, hidden)
    kv = keys.whole(*_KV_HEADS, what="heads of keys and values", default=heads)
    value = keys.whole("v_head_dim", "value_head_dim", what="width of values", default=size)
    tied = keys.flag("attention_k_eq_v")
    own = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
    if keys.has(*(f"swa_{name}" for name in own)) and word == layout.WINDOW:
        read = (
            keys.whole(f"swa_{n}", what="a window's size", default=d)
            for n, d in zip(own, (heads, kv, size, value), strict=True)
        )
        heads, kv, size, value = read
    other = keys.stated("attention_other_setting")  # Step-3.5: sizes of one type of layer
    if other is not None and word == layout.WINDOW:
        inner = Keys(f"{keys.where}: {other[0]}", other[1], {})
        heads = inner.whole("num_attention_heads", what="heads", default=heads)
        kv = inner.whole("num_attention_groups", what="heads of keys", default=kv)
        size = value = inner.whole("head_dim", what="width of a head", default=size)
    if keys.has("global_head_dim", "num_global_key_value_heads") and word == layout.FULL:
        kv = keys.whole("num_global_key_value_heads", what="heads of keys", default=kv)
        size = value = keys.whole("global_head_dim", what="width of a head", default=size)
    keys.require(heads % kv == 0, _KV_HEADS[0], f"a divisor of {heads} heads", kv)
    experts, top_k = (
        (
            keys.whole("num_local_experts", what="experts"),
            keys.whole("num_experts_per_tok", what="experts of a token"),
        )
        if family.query_experts
        else (1, 1)
    )
    return GroupedAttention(
        num_heads=heads,
        num_kv_heads=kv,
        head_size=size,
        value_size=None if value == size else value,
        window=_window(keys, word),
        # Gemma 4 ties keys and values only where a layer sees everything
        keys_are_values=tied and word == layout.FULL,
        shares_kv=_shares(keys, layer),
        q_rank=keys.whole("share_q_dim", what="rank of queries", default=0, low=0),
        output_gate=_gate(keys, family),
        num_query_experts=experts,
        top_k=top_k,
        indexer=_block_indexer(keys) if word == layout.SPARSE else None,
    )


def _head_size(keys: Keys, heads: int, hidden: int) -> int:
    if not keys.has(*_HEAD_SIZES):
        keys.require(
            hidden % heads == 0,
            "head_dim",
            f"the width of a head, since num_attention_heads = {heads} does not divide {hidden}",
            None,
        )
    return keys.whole(*_HEAD_SIZES, what="the width of a head", default=max(hidden // heads, 1))


def _shares(keys: Keys, layer: int) -> bool:
    """Return whether a layer has no keys and values of its own: every layer but the first of a
    group (Hunyuan-Large), or the last layers (Gemma).
    """
    last = keys.whole("num_kv_shared_layers", what="layers", default=0, low=0)
    factor = keys.whole("cla_share_factor", what="layers of a group", default=1)
    grouped = keys.flag("use_cla") and layer % factor != 0
    return grouped or layer >= keys.num_layers - last > 0


def _block_indexer(keys: Keys) -> Indexer:
    """Return the indexer of a sparse attention on blocks (MiniMax-M3)."""
    table = keys.stated("sparse_attention_config")
    inner = Keys(f"{keys.where}: sparse_attention_config", table[1] if table else {}, {})
    return Indexer(
        num_heads=_of(keys, inner, "index_n_heads", "sparse_num_index_heads", "heads"),
        head_size=_of(keys, inner, "index_head_dim", "sparse_index_dim", "width of a head"),
        top_k=_of(keys, inner, "index_topk_blocks", "sparse_topk_blocks", "blocks to read", 16),
        block_size=_of(keys, inner, "index_block_size", "sparse_block_size", "tokens", 128),
        has_head_weights=False,
    )


def _of(
    outer: Keys, inner: Keys, name: str, other: str, what: str, default: int | None = None
) -> int:
    """Return a size of an indexer that stands beside the others or in a table of its own."""
    keys, found = (outer, name) if outer.has(name) else (inner, other)
    return keys.whole(found, what=f"{what} of the indexer", default=default)


def _latent(keys: Keys, family: Family, word: str, layer: int) -> LatentAttention:
    keys.has(*_KV_HEADS, *_HEAD_SIZES)  # of no consequence here
    size = keys.whole(
        "qk_nope_head_dim", "attention_qk_dim", what="the width of a head without its rotary part"
    )
    rope = keys.whole(
        "qk_rope_head_dim", "attention_qk_rope_dim", what="the rotary width of a head", low=0
    )
    whole = keys.whole("qk_head_dim", what="the width of a head", default=size + rope)
    keys.require(whole == size + rope, "qk_head_dim", f"{size} + {rope}", whole)
    return LatentAttention(
        num_heads=_heads(keys),
        head_size=size,
        q_rank=keys.whole("q_lora_rank", "attention_q_lora_dim", what="a rank", default=0, low=0),
        kv_rank=keys.whole(
            "kv_lora_rank", "attention_kv_lora_dim", what="the rank of keys and values"
        ),
        rope_size=rope,
        value_size=keys.whole(
            "v_head_dim", "attention_v_dim", what="the width of a head's values", default=size
        ),
        window=_window(keys, word),
        output_gate=_gate(keys, family),
        indexer=_indexer(keys, layer) if keys.has("index_topk") else None,
    )


def _indexer(keys: Keys, layer: int) -> Indexer | None:
    """Return the indexer of DeepSeek sparse attention; a layer may use that of an earlier one."""
    if keys.word("indexer_types", default="full") == "shared":
        return None
    return Indexer(
        num_heads=keys.whole("index_n_heads", what="heads of the indexer"),
        head_size=keys.whole("index_head_dim", what="the width of its heads"),
        top_k=keys.whole("index_topk", what="tokens that it picks"),
    )


def _compressed(keys: Keys, word: str) -> CompressedAttention:
    ratio = {layout.COMPRESSED_4: 4, layout.COMPRESSED_128: 128}.get(word, 0)
    keys.has(*_KV_HEADS)
    sizes = ("index_n_heads", "index_head_dim", "index_topk")
    heads, size, top_k = (keys.whole(name, what="the indexer's size") for name in sizes)
    return CompressedAttention(
        num_heads=_heads(keys),
        head_size=keys.whole("head_dim", what="the width of a head"),
        q_rank=keys.whole("q_lora_rank", what="the rank of queries"),
        output_groups=keys.whole("o_groups", what="groups of heads"),
        output_rank=keys.whole("o_lora_rank", what="the width of a group's output"),
        window=keys.whole(*_WINDOWS[:2], what="tokens of a window"),
        compress_ratio=ratio,
        indexer=Indexer(num_heads=heads, head_size=size, top_k=top_k, compress_ratio=4)
        if ratio == 4
        else None,
    )


def _linear(keys: Keys, family: Family, hidden: int) -> Mixer:
    """Return what a layer that is no attention is in this class."""
    keys.require(
        family.linear != "none",
        "layer_types",
        "attention, since the class is not known to have other mixers",
        "a layer of linear attention, Mamba or convolution",
    )
    return {
        "gdn": _delta_net,
        "kda": _kimi_delta,
        "lightning": _lightning,
        "mamba1": _mamba1,
        "mamba2": _mamba2,
        "conv": _convolution,
    }[family.linear](keys, hidden)


def _delta_net(keys: Keys, hidden: int) -> Mixer:
    return GatedDeltaNet(
        num_key_heads=keys.whole("linear_num_key_heads", what="heads of keys"),
        num_value_heads=keys.whole("linear_num_value_heads", what="heads of values"),
        key_size=keys.whole("linear_key_head_dim", what="the width of a key"),
        value_size=keys.whole("linear_value_head_dim", what="the width of a value"),
        kernel=keys.whole("linear_conv_kernel_dim", what="tokens of a convolution", default=4),
    )


def _kimi_delta(keys: Keys, hidden: int) -> Mixer:
    table = keys.stated("linear_attn_config")
    inner = Keys(f"{keys.where}: linear_attn_config", table[1], {}) if table else keys
    heads = inner.whole("num_heads", "linear_num_heads", "num_attention_heads", what="heads")
    size = (
        inner.whole("head_dim", what="width of a head")
        if table
        else keys.whole(
            *(("linear_head_dim",) if keys.has("linear_head_dim") else ("head_dim",)),
            what="the width of a head",
        )
    )
    return KimiDeltaAttention(
        num_heads=heads,
        head_size=size,
        kernel=inner.whole(
            "short_conv_kernel_size", "linear_conv_kernel_dim", what="tokens", default=4
        ),
        gate_rank=0 if keys.flag("no_kda_lora") else size,
    )


def _lightning(keys: Keys, hidden: int) -> Mixer:
    heads = _heads(keys)
    return LightningAttention(
        num_heads=heads, num_kv_heads=heads, head_size=_head_size(keys, heads, hidden)
    )


def _mamba1(keys: Keys, hidden: int) -> Mixer:
    auto = keys.given.get("mamba_dt_rank", "auto") == "auto"
    keys.has("mamba_dt_rank")
    return Mamba1(
        inner_size=hidden * keys.whole("mamba_expand", what="channels per element", default=2),
        state_size=keys.whole("mamba_d_state", what="the width of the state", default=16),
        dt_rank=ceil(hidden / 16) if auto else keys.whole("mamba_dt_rank", what="a rank"),
        kernel=keys.whole("mamba_d_conv", what="tokens of a convolution", default=4),
    )


def _mamba2(keys: Keys, hidden: int) -> Mixer:
    heads = keys.whole("mamba_num_heads", "mamba_n_heads", what="heads of Mamba")
    keys.has("expand", "mamba_d_head")
    if keys.given.get("mamba_d_head", "auto") == "auto" and not keys.has("mamba_head_dim"):
        inner = hidden * keys.whole("mamba_expand", what="channels per element", default=2)
        size = inner // heads
    else:
        size = keys.whole("mamba_head_dim", "mamba_d_head", what="the width of a head")
        inner = hidden * keys.whole("mamba_expand", what="channels", default=1)
        if keys.has("mamba_expand"):
            keys.require(inner == heads * size, "mamba_expand", f"{heads} heads x {size}", inner)
    return Mamba2(
        num_heads=heads,
        head_size=size,
        state_size=keys.whole("ssm_state_size", "mamba_d_state", what="the width of the state"),
        num_groups=keys.whole("n_groups", "mamba_n_groups", what="groups", default=1),
        kernel=keys.whole("conv_kernel", "mamba_d_conv", what="tokens", default=4),
    )


def _convolution(keys: Keys, hidden: int) -> Mixer:
    channels = keys.whole("conv_dim", "conv_dim_out", what="channels", default=hidden)
    return ShortConvolution(
        channels=channels, kernel=keys.whole("conv_L_cache", what="tokens of a convolution")
    )
