"""Read the attention of one layer, and hand what is none to `moesim.model.hf_config.linear`."""

from moesim.model.hf_config import words
from moesim.model.hf_config.families import Family
from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.linear import read_linear
from moesim.model.hf_config.sizes import EXPERTS, HEAD_SIZES, TOP_K, head_size, num_heads
from moesim.model.latent import CompressedAttention, LatentAttention
from moesim.model.mixers import GroupedAttention, Indexer, Mixer, OutputGate

_KV_HEADS = ("num_key_value_heads", "n_kv_heads", "attn_kv_n_heads", "num_attention_groups")
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size")


def read_mixer(keys: Keys, family: Family, word: str, layer: int, hidden: int) -> Mixer | None:
    """Return the mixer of one layer.

    Args:
        keys: The keys as the layer sees them, `Keys.at`.
        family: What the configuration class implies.
        word: The kind of mixer, a word of `moesim.model.hf_config.layout`.
        layer: Number of the layer, from 0.
        hidden: Width of a token.

    Raises:
        ConfigError: A key is missing, malformed or contradicts another.
    """
    if word == words.NONE:
        return None
    if word == words.LINEAR:
        return read_linear(keys, family, hidden)
    if keys.has("o_lora_rank"):
        return _compressed(keys, word)
    latent = keys.flag("use_mla", default=True)
    if latent and keys.has("kv_lora_rank", "attention_kv_lora_dim"):
        return _latent(keys, family, word, layer)
    return _grouped(keys, family, word, layer, hidden)


def _window(keys: Keys, word: str) -> int | None:
    if word != words.WINDOW:
        return None
    names = [name for name in _WINDOWS if keys.has(name)] or _WINDOWS
    return keys.whole(names[0], what="tokens of a window")


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
    experts = top_k = 1
    if family.query_experts:
        experts = keys.whole(*EXPERTS, what="experts")
        top_k = keys.whole(*TOP_K, what="experts of a token")
        # each expert has as many heads of queries as there are of keys
        heads = top_k * keys.whole(*_KV_HEADS, what="heads of keys and values")
        stated = keys.whole("num_attention_heads", what="heads", default=heads)
        keys.require(stated == heads, "num_attention_heads", f"{heads}, those of keys", stated)
    else:
        heads = num_heads(keys)
    size = head_size(keys, heads, hidden)
    kv = keys.whole(*_KV_HEADS, what="heads of keys and values", default=heads)
    names = ("v_head_dim", "value_head_dim")
    value = keys.whole(*names, what="width of values", default=size, low=0) or size
    tied = keys.flag("attention_k_eq_v")
    own = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
    if keys.has(*(f"swa_{name}" for name in own)) and word == words.WINDOW:
        read = (
            keys.whole(f"swa_{n}", what="a window's size", default=d)
            for n, d in zip(own, (heads, kv, size, value), strict=True)
        )
        heads, kv, size, value = read
    inner = keys.table("attention_other_setting")  # Step-3.5: sizes of one type of layer
    if inner is not None and word == words.WINDOW:
        heads = inner.whole("num_attention_heads", what="heads", default=heads)
        kv = inner.whole("num_attention_groups", what="heads of keys", default=kv)
        size = value = inner.whole("head_dim", what="width of a head", default=size)
    if keys.has("global_head_dim", "num_global_key_value_heads") and word == words.FULL:
        kv = keys.whole("num_global_key_value_heads", what="heads of keys", default=kv)
        size = value = keys.whole("global_head_dim", what="width of a head", default=size)
    keys.require(heads % kv == 0, _KV_HEADS[0], f"a divisor of {heads} heads", kv)
    return GroupedAttention(
        num_heads=heads,
        num_kv_heads=kv,
        head_size=size,
        value_size=None if value == size else value,
        window=_window(keys, word),
        # Gemma 4 ties keys and values only where a layer sees everything
        keys_are_values=tied and word == words.FULL,
        shares_kv=_shares(keys, layer),
        q_rank=keys.whole("share_q_dim", what="rank of queries", default=0, low=0),
        output_gate=_gate(keys, family),
        num_query_experts=experts,
        top_k=top_k,
        indexer=_block_indexer(keys) if word == words.SPARSE else None,
    )


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
    inner = keys.table("sparse_attention_config") or Keys(keys.where, {}, {})
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
    keys.has(*_KV_HEADS, *HEAD_SIZES)  # of no consequence here
    size = keys.whole(
        "qk_nope_head_dim", "attention_qk_dim", what="the width of a head without its rotary part"
    )
    rope = keys.whole(
        "qk_rope_head_dim", "attention_qk_rope_dim", what="the rotary width of a head", low=0
    )
    whole = keys.whole("qk_head_dim", what="the width of a head", default=size + rope)
    keys.require(whole == size + rope, "qk_head_dim", f"{size} + {rope}", whole)
    return LatentAttention(
        num_heads=num_heads(keys),
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
    if _shares_index(keys, layer):
        return None
    return Indexer(
        num_heads=keys.whole("index_n_heads", what="heads of the indexer"),
        head_size=keys.whole("index_head_dim", what="the width of its heads"),
        top_k=keys.whole("index_topk", what="tokens that it picks"),
        block_size=keys.whole("index_kpool", what="tokens in one of its keys", default=1),
    )


def _shares_index(keys: Keys, layer: int) -> bool:
    """Return whether a layer uses what the indexer of an earlier one picked (GLM-5): a word for
    each layer says so, a letter of a pattern, or every how many layers has an indexer.
    """
    word = keys.word("indexer_types", default="")
    pattern = keys.word("index_topk_pattern", default="")
    every = keys.whole("index_topk_freq", what="layers", default=1)
    offset = keys.whole("index_skip_topk_offset", what="layers", default=2, low=0)
    if word:
        keys.require(word in ("full", "shared"), "indexer_types", "full or shared", word)
        return word == "shared"
    if pattern:
        enough = len(pattern) >= keys.num_layers and set(pattern) <= {"F", "S"}
        keys.require(enough, "index_topk_pattern", "F or S for each layer", pattern)
        return pattern[layer] == "S"
    return max(layer - offset + 1, 0) % every != 0


def _compressed(keys: Keys, word: str) -> CompressedAttention:
    ratio = {words.COMPRESSED_4: 4, words.COMPRESSED_128: 128}.get(word, 0)
    keys.has(*_KV_HEADS)
    sizes = ("index_n_heads", "index_head_dim", "index_topk")
    heads, size, top_k = (keys.whole(name, what="the indexer's size") for name in sizes)
    return CompressedAttention(
        num_heads=num_heads(keys),
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
