"""The order of layers: which mixer and which feed-forward each layer has.

Configuration classes spell interleaving in many ways: a pattern string, a list with a word, a
number or a truth value per layer, lists of layer numbers, a period with an offset, an interval,
first and last layers. Each spelling that a file uses gives one answer per layer. An answer is a
word; all answers must agree.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from moesim.model.config.families import Family
from moesim.model.config.keys import Keys

#: words for a mixer
FULL, WINDOW, LINEAR, NONE = "full", "window", "linear", "none"
SPARSE, COMPRESSED_4, COMPRESSED_128 = "sparse", "compressed_4", "compressed_128"
#: words for a feed-forward
MOE, DENSE, HASH_MOE = "moe", "dense", "hash_moe"

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
#: word of ``layers_block_type`` of a model whose layers are either a mixer or a feed-forward
_BLOCKS = {
    "mamba": (LINEAR, NONE),
    "linear_attention": (LINEAR, NONE),
    "attention": (FULL, NONE),
    "full_attention": (FULL, NONE),
    "moe": (NONE, MOE),
    "mlp": (NONE, DENSE),
    "M": (LINEAR, NONE),
    "*": (FULL, NONE),
    "E": (NONE, MOE),
    "-": (NONE, DENSE),
}
_SOME = "a kind of layer such as full_attention, sliding_attention, linear_attention or mamba"
#: sizes of mixers, of no consequence if the file says that no layer has them
_SIZES = re.compile(
    r"head_dim|_heads$|mamba_|ssm_|^index_|^linear_|conv_(kernel|L_cache|dim)|^n_groups$|^expand$"
    r"|^compress_rate|_lora_rank$|^sparse_attention_config"
)
Answers = Iterator[tuple[str, list[str]]]


def layout(keys: Keys, family: Family) -> list[tuple[str, str]]:
    """Return (mixer, feed-forward) of every layer, as words of this module.

    Raises:
        ConfigError: A spelling is malformed, has another number of layers, or two contradict each
            other.
    """
    pairs = _either(keys)
    if pairs is not None:
        keys.has(*filter(_SIZES.search, keys.given))
        return pairs
    count = keys.num_layers
    told = _agreed(keys, _mixers(keys, family))
    mixers = told or [_usual(keys, family, i) for i in range(count)]
    keys.has("sliding_window", "use_sliding_window", "max_window_layers", "attention_chunk_size")
    if told:
        keys.has(*filter(_SIZES.search, keys.given))
    blocks = _agreed(keys, _feed_forwards(keys)) or [MOE] * count
    if keys.has("num_hash_layers") and "mlp_layer_types" not in keys.given:
        hashed = keys.whole("num_hash_layers", what="layers that words route", low=0)
        blocks = [HASH_MOE if i < hashed and b == MOE else b for i, b in enumerate(blocks)]
    return list(zip(mixers, blocks, strict=True))


def _agreed(keys: Keys, answers: Answers) -> list[str] | None:
    """Return the answer that all spellings give; None if there is none.

    What a class implies counts only where the file has no spelling of its own.
    """
    found: tuple[str, list[str]] | None = None
    given = list(answers)
    stated = [one for one in given if set(one[0].split(" and ")) & keys.given.keys()]
    for name, answer in stated or given:
        if found is None:
            found = name, answer
        elif answer != found[1]:
            at = next(i for i, (a, b) in enumerate(zip(answer, found[1], strict=True)) if a != b)
            keys.differ(name, f"layer {at} {found[1][at]}, as {found[0]} says", answer[at])
    return found and found[1]


def _either(keys: Keys) -> list[tuple[str, str]] | None:
    """Return the layers of a model whose layers are either a mixer or a feed-forward."""
    pattern = keys.stated("hybrid_override_pattern")
    listed = keys.stated("layers_block_type")
    words: Any
    if pattern is not None:
        name, words = pattern
        keys.require(isinstance(words, str), name, "a string of M, *, E and -", words)
        words = words.replace("|", "")
    elif listed is not None and {"moe", "mlp"} & set(map(str, listed[1] or ())):
        name, words = listed
    else:
        return None
    allowed = [word for word in _BLOCKS if (len(word) == 1) == isinstance(words, str)]
    for word in words:
        keys.require(word in allowed, name, f"layers of {', '.join(allowed)}", word)
    found = [_BLOCKS[word] for word in words]
    if keys.num_layers == 0:  # the class counts the words
        keys.num_layers = len(found)
    keys.require(
        len(found) == keys.num_layers,
        name,
        f"one letter for each of {keys.num_layers} layers",
        f"{len(found)} of them",
    )
    return found


def _usual(keys: Keys, family: Family, layer: int) -> str:
    """Return the mixer of a layer that no key tells."""
    if family.windows == "alternate":
        return FULL if layer % 2 else WINDOW
    if family.windows == "compressed":  # DeepSeek-V4: two that keep 1 of 128, then both in turn
        return COMPRESSED_4 if layer >= 2 and layer % 2 else COMPRESSED_128
    window = keys.given.get("sliding_window")
    on = keys.flag("use_sliding_window", default=True)
    first = keys.whole("max_window_layers", what="layers before a window", default=0, low=0)
    return WINDOW if window and on and layer >= first else FULL


def _mixers(keys: Keys, family: Family) -> Answers:
    """Yield the mixer of every layer by each spelling that the file uses, the explicit first."""
    count = keys.num_layers
    yield from _listed_mixers(keys)
    yield from _numbered_mixers(keys)
    other = LINEAR if family.linear != "none" else WINDOW
    for name in ("full_attention_interval", "global_attn_every_n_layers", "layer_group_size"):
        if keys.has(name):
            step = keys.whole(name, what="layers from one of full attention to the next")
            tail = count // step * step if name == "layer_group_size" else count
            word = WINDOW if name.startswith("global") else other
            yield name, [FULL if (i + 1) % step == 0 or i >= tail else word for i in range(count)]
    if keys.has("attn_layer_period", "attn_layer_offset"):
        period = keys.whole("attn_layer_period", what="layers from one attention to the next")
        offset = keys.whole("attn_layer_offset", what="the first attention", default=0, low=0)
        _inside(keys, "attn_layer_offset", offset, period)
        yield "attn_layer_period", _where(count, lambda i: i % period == offset, FULL, LINEAR)
    rotated = keys.of_each_layer("no_rope_layers", int, "a list of 0 and 1")
    if rotated is not None and keys.has("attention_chunk_size"):
        # Llama 4: layers without rotary positions see everything, the others one chunk
        yield "no_rope_layers", [WINDOW if one else FULL for one in rotated]
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
            _numbers(keys, name, numbers, 0, count - 1)
            yield name, _where(count, lambda i, n=numbers: i in n, FULL, LINEAR)  # type: ignore[misc]
    table = keys.stated("linear_attn_config")
    if table is None:
        return
    name, inner = table
    keys.require(isinstance(inner, dict), name, "a table", inner)
    full, linear = inner.get("full_attn_layers", []), inner.get("kda_layers", [])
    for part in (full, linear):
        _numbers(keys, name, part, 1, count)
    both = sorted([*full, *linear])
    keys.require(
        both == list(range(1, count + 1)),
        f"{name}.kda_layers",
        f"each of the {count} layers once in kda_layers or full_attn_layers",
        both,
    )
    yield name, _where(count, lambda i: i + 1 in full, FULL, LINEAR)


def _numbers(keys: Keys, name: str, numbers: Any, low: int, high: int) -> None:
    good = isinstance(numbers, list) and all(
        isinstance(n, int) and low <= n <= high for n in numbers
    )
    keys.require(good, name, f"a list of layer numbers from {low} to {high}", numbers)


def _inside(keys: Keys, name: str, offset: int, period: int) -> None:
    keys.require(offset < period, name, f"less than the period {period}", offset)


def _where(count: int, holds: Callable[[int], bool], yes: str, no: str) -> list[str]:
    return [yes if holds(i) else no for i in range(count)]


def _feed_forwards(keys: Keys) -> Answers:
    """Yield the feed-forward of every layer by each spelling that the file uses."""
    count = keys.num_layers
    words = keys.of_each_layer("mlp_layer_types", str, "a list of words for layers")
    if words is not None:
        known = {"dense": DENSE, "sparse": MOE, "moe": MOE, "hash_moe": HASH_MOE}
        for word in words:
            keys.require(word in known, "mlp_layer_types", f"words of {', '.join(known)}", word)
        yield "mlp_layer_types", [known[word] for word in words]
    for name in ("is_moe_layer", "moe_layer_freq"):
        if isinstance(keys.given.get(name), list):
            flags = keys.of_each_layer(name, (bool, int), "a list of truth values for layers")
            if flags is not None:
                yield name, [MOE if flag else DENSE for flag in flags]
    for name in ("moe_layers", "moe_layers_enum"):
        numbers = _enumerated(keys, name)
        if numbers:
            yield name, _where(count, lambda i, n=numbers: i in n, MOE, DENSE)  # type: ignore[misc]
    rules = [rule for rule in _rules(keys) if rule is not None]
    if rules:
        names = " and ".join(name for name, _ in rules)
        yield names, _where(count, lambda i: all(holds(i) for _, holds in rules), MOE, DENSE)


def _enumerated(keys: Keys, name: str) -> list[int] | None:
    """Return the layer numbers of a list, or of a text such as ``3,4,5``."""
    found = keys.stated(name)
    if found is None or not found[1]:
        return None
    value = found[1]
    if isinstance(value, str):
        parts = value.split(",")
        keys.require(all(p.strip().isdigit() for p in parts), name, "numbers with commas", value)
        value = [int(part) for part in parts]
    _numbers(keys, name, value, 0, keys.num_layers + keys.num_extra - 1)
    return [number for number in value if number < keys.num_layers]


#: keys with the number of dense layers before the first with experts
_FIRST = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers", "moe_layer_num_skipped")
#: keys with the number of layers from one with experts to the next
_STEPS = (
    "moe_layer_freq",
    "moe_layer_frequency",
    "decoder_sparse_step",
    "interleave_moe_layer_step",
    "moe_every_n_layers",
)
Rule = tuple[str, Callable[[int], bool]] | None


def _rules(keys: Keys) -> Iterator[Rule]:
    """Yield the rules that a layer with experts must all meet."""
    for name in _FIRST:
        if keys.has(name):
            yield name, _from(keys, name)
    for name in _STEPS:
        if keys.has(name) and not isinstance(keys.given.get(name), list):
            yield name, _every(keys, name)
    if keys.has("expert_layer_period", "expert_layer_offset"):
        period = keys.whole("expert_layer_period", what="layers from one MoE layer to the next")
        offset = keys.whole("expert_layer_offset", what="the first MoE layer", default=0, low=0)
        _inside(keys, "expert_layer_offset", offset, period)
        yield "expert_layer_period", lambda i: i % period == offset
    yield _between(keys)
    plain = keys.list_of("mlp_only_layers", int, "a list of layers")
    if plain is not None:
        _numbers(keys, "mlp_only_layers", plain, 0, keys.num_layers - 1)
        yield "mlp_only_layers", lambda i: i not in plain


def _from(keys: Keys, name: str) -> Callable[[int], bool]:
    first = keys.whole(name, what="dense layers before the first with experts", low=0)
    return lambda i: i >= first


def _every(keys: Keys, name: str) -> Callable[[int], bool]:
    step = keys.whole(name, what="layers from one with experts to the next")
    # DeepSeek's classes count from the first layer, the others to the last
    return (lambda i: i % step == 0) if name == "moe_layer_freq" else lambda i: (i + 1) % step == 0


def _between(keys: Keys) -> Rule:
    """Return the rule of ERNIE: layers from start to end, each interval-th of them.

    A model of two modalities states a start and an end for each; the first is that of text. An end
    of -1 is the last layer, and one behind it means the same.
    """
    names = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
    if not keys.has(*names):
        return None
    start, end, step = (
        _first(keys.stated(name), default) for name, default in zip(names, (0, -1, 1), strict=True)
    )
    for name, value, low in zip(names, (start, end, step), (0, -1, 1), strict=True):
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        keys.require(good, name, f"an integer >= {low}", value)
    last = keys.num_layers - 1 if end == -1 else end
    keys.require(start <= last, names[1], f"at least the start {start}", end)
    return names[0], lambda i: start <= i <= last and (i + 1) % step == 0


def _first(found: tuple[str, Any] | None, default: int) -> Any:
    if found is None:
        return default
    value = found[1]
    return value[0] if isinstance(value, list) and value else value
