"""Which mixer each layer has, by every spelling that a file uses."""

from typing import Any

from moesim.model.hf_config.families import Family
from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.words import (
    COMPRESSED_4,
    COMPRESSED_128,
    FULL,
    LINEAR,
    SPARSE,
    WINDOW,
    Answers,
    check_inside,
    check_numbers,
    where,
)

#: word of ``layer_types`` -> mixer
_WORDS = {
    "full_attention": FULL,
    "attention": FULL,
    "global": FULL,
    "global_attention": FULL,
    "full": FULL,
    "deepseek_sparse_attention": FULL,
    "indexed_attention": FULL,
    "sliding_attention": WINDOW,
    "sliding_window_attention": WINDOW,
    "local": WINDOW,
    "swa": WINDOW,
    "chunked_attention": WINDOW,
    "linear_attention": LINEAR,
    "lightning_attention": LINEAR,
    "kda": LINEAR,
    "mamba": LINEAR,
    "mamba2": LINEAR,
    "conv": LINEAR,
    "short_conv": LINEAR,
    "sparse": SPARSE,
    "sparse_attention": SPARSE,
    "minimax_m3_sparse": SPARSE,
    "compressed_sparse_attention": COMPRESSED_4,
    "heavily_compressed_attention": COMPRESSED_128,
}
#: keys with the number of layers from one of full attention to the next
_INTERVALS = (
    "full_attention_interval",
    "global_attn_every_n_layers",
    "global_attn_every_n",
    "layer_group_size",
)
_SOME = "a kind of layer such as full_attention, sliding_attention, linear_attention or mamba"


def usual_mixer(keys: Keys, family: Family, layer: int) -> str:
    """Return the mixer of a layer that no key tells."""
    if family.windows == "alternate":
        return FULL if layer % 2 else WINDOW
    if family.windows == "compressed":  # DeepSeek-V4: two that keep 1 of 128, then both in turn
        return COMPRESSED_4 if layer >= 2 and layer % 2 else COMPRESSED_128
    window = keys.given.get("sliding_window")
    # a window as long as any sequence is none (Phi-3.5-MoE)
    longest = keys.given.get("max_position_embeddings")
    whole = isinstance(longest, int) and isinstance(window, int) and window >= longest
    on = keys.flag("use_sliding_window", default=True) and not whole
    first = keys.whole("max_window_layers", what="layers before a window", default=0, low=0)
    return WINDOW if window and on and layer >= first else FULL


def mixer_answers(keys: Keys, family: Family) -> Answers:
    """Yield the mixer of every layer by each spelling that the file uses, the explicit first."""
    count = keys.num_layers
    yield from _listed_mixers(keys)
    yield from _numbered_mixers(keys)
    other = LINEAR if family.linear != "none" else WINDOW
    for name in (
        "full_attention_interval",
        "global_attn_every_n_layers",
        "global_attn_every_n",
        "layer_group_size",
    ):
        if keys.has(name):
            step = keys.whole(name, what="layers from one of full attention to the next")
            tail = count // step * step if name == "layer_group_size" else count
            word = WINDOW if name.startswith("global") else other
            yield name, [FULL if (i + 1) % step == 0 or i >= tail else word for i in range(count)]
    if keys.has("attn_layer_period", "attn_layer_offset"):
        period = keys.whole("attn_layer_period", what="layers from one attention to the next")
        offset = keys.whole("attn_layer_offset", what="the first attention", default=0, low=0)
        check_inside(keys, "attn_layer_offset", offset, period)
        yield "attn_layer_period", where(count, lambda i: i % period == offset, FULL, LINEAR)
    rotated = keys.of_each_layer("no_rope_layers", int, "a list of 0 and 1")
    if rotated is not None and keys.has("attention_chunk_size"):
        # Llama 4: layers without rotary positions see everything, the others one chunk
        yield "no_rope_layers", [WINDOW if one else FULL for one in rotated]
    elif keys.has("attention_chunk_size", "no_rope_layer_interval"):
        step = keys.whole("no_rope_layer_interval", what="layers", default=0, low=0)
        if step:
            rule = where(count, lambda i: (i + 1) % step == 0, FULL, WINDOW)
            yield "no_rope_layer_interval", rule
    for name in ("sliding_window_pattern", "_sliding_window_pattern"):
        pattern = keys.stated(name)
        if pattern is not None and keys.stated("sliding_window") is not None:
            yield name, _window_pattern(keys, *pattern)


def _window_pattern(keys: Keys, name: str, value: Any) -> list[str]:
    """Return the mixers of a pattern: ``LLLG``, or a number N for every Nth layer full."""
    count = keys.num_layers
    if isinstance(value, str):
        keys.require(bool(value) and set(value) <= {"L", "G"}, name, "letters L and G", value)
        # the last layer always sees everything (EXAONE 4)
        return [
            FULL if value[i % len(value)] == "G" or i == count - 1 else WINDOW for i in range(count)
        ]
    step = keys.whole(name, what="layers from one of full attention to the next")
    return [FULL if (i + 1) % step == 0 else WINDOW for i in range(count)]


def _listed_mixers(keys: Keys) -> Answers:
    """Yield the mixers of lists with one entry per layer."""
    for name in ("layer_types", "layers_block_type"):
        words = keys.of_each_layer(name, str, "a list of words for layers")
        if words is not None:
            for word in words:
                keys.require(word in _WORDS, name, _SOME, word)
            yield name, [_WORDS[word] for word in words]
    ratios = keys.of_each_layer("compress_ratios", int, "a list of 0, 4 and 128")
    if ratios is not None:
        known = {0: WINDOW, 4: COMPRESSED_4, 128: COMPRESSED_128}
        for ratio in ratios:
            keys.require(ratio in known, "compress_ratios", "0, 4 or 128 for each layer", ratio)
        yield "compress_ratios", [known[ratio] for ratio in ratios]
    kinds = keys.of_each_layer("attn_type_list", int, "a list of 0 (linear) and 1 (full)")
    if kinds is not None:
        yield "attn_type_list", [FULL if kind else LINEAR for kind in kinds]
    windows = keys.of_each_layer("hybrid_layer_pattern", int, "a list of 0 (full) and 1 (window)")
    if windows is not None:
        yield "hybrid_layer_pattern", [WINDOW if window else FULL for window in windows]
    sparse = keys.stated("sparse_attention_config")
    if sparse is not None and isinstance(sparse[1], dict):
        flags = sparse[1].get("sparse_attention_freq")
        if isinstance(flags, list):
            keys.require(len(flags) >= keys.num_layers, sparse[0], "one flag per layer", flags)
            yield sparse[0], [SPARSE if flag else FULL for flag in flags[: keys.num_layers]]


def _numbered_mixers(keys: Keys) -> Answers:
    """Yield the mixers of lists of layer numbers."""
    count = keys.num_layers
    for name in ("full_attn_idxs", "attn_layer_indices", "full_attention_layer_ids"):
        numbers = keys.list_of(name, int, "a list of layer numbers")
        if numbers is not None:
            check_numbers(keys, name, numbers, 0, count - 1)
            yield name, where(count, lambda i, n=numbers: i in n, FULL, LINEAR)  # type: ignore[misc]
    table = keys.stated("linear_attn_config")
    if table is None:
        return
    name, inner = table
    keys.require(isinstance(inner, dict), name, "a table", inner)
    full, linear = inner.get("full_attn_layers", []), inner.get("kda_layers", [])
    for part in (full, linear):
        check_numbers(keys, name, part, 0, count)
    # Kimi Linear counts layers from 1, GLM from 0
    base = 0 if 0 in [*full, *linear] else 1
    for part in (full, linear):
        check_numbers(keys, name, part, base, count - 1 + base)
    both = sorted([*full, *linear])
    keys.require(
        both == list(range(base, count + base)),
        f"{name}.kda_layers",
        f"each of the {count} layers once in kda_layers or full_attn_layers",
        both,
    )
    yield name, where(count, lambda i: i + base in full, FULL, LINEAR)
