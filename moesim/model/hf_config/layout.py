"""The order of layers: which mixer and which feed-forward each layer has.

Configuration classes spell interleaving in many ways: a pattern string, a list with a word, a
number or a truth value per layer, lists of layer numbers, a period with an offset, an interval,
first and last layers. Each spelling that a file uses gives one answer per layer. An answer is a
word; all answers must agree.
"""

import re
from typing import Any

from moesim.model.hf_config.block_order import block_answers
from moesim.model.hf_config.families import Family
from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.mixer_order import mixer_answers, usual_mixer
from moesim.model.hf_config.words import DENSE, FULL, HASH_MOE, LINEAR, MOE, NONE, Answers

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
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "use_sliding_window",
    "max_window_layers",
    "attention_chunk_size",
)
#: sizes of mixers, of no consequence if the file says that no layer has them
_SIZES = re.compile(
    r"head_dim|_heads$|mamba_|ssm_|^index_|^linear_|conv_(kernel|L_cache|dim)|^n_groups$|^expand$"
    r"|^compress_rate|_lora_rank$|^sparse_attention_config"
)


def layout(keys: Keys, family: Family) -> list[tuple[str, str]]:
    """Return (mixer, feed-forward) of every layer, as words of `moesim.model.hf_config.words`.

    Raises:
        ConfigError: A spelling is malformed, has another number of layers, or two contradict each
            other.
    """
    pairs = _either(keys)
    if pairs is not None:
        keys.has(*filter(_SIZES.search, keys.given))
        return pairs
    count = keys.num_layers
    told = _agreed(keys, mixer_answers(keys, family))
    mixers = told or [usual_mixer(keys, family, i) for i in range(count)]
    keys.has(
        "sliding_window",
        "sliding_window_size",
        "use_sliding_window",
        "max_window_layers",
        "attention_chunk_size",
    )
    if told:
        keys.has(*filter(_SIZES.search, keys.given))
    blocks = _agreed(keys, block_answers(keys)) or [MOE] * count
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
    if pattern is not None and listed is not None:
        same = [_BLOCKS.get(w) for w in words] == [_BLOCKS.get(w) for w in listed[1]]
        keys.require(same, listed[0], f"the layers of {name}", listed[1])
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
