"""Which modules a rule of a quantization names: experts or attention.

A rule is a pattern after ``re:``, a glob, or part of a module's path. It applies to experts if it
names the down projection of one in any of the libraries' classes.
"""

import re
from fnmatch import fnmatchcase
from typing import Any

#: names of a projection in the library's classes: of an expert
EXPERT_NAMES = (
    "model.layers.N.mlp.experts.0.down_proj",
    "model.language_model.layers.N.mlp.experts.0.down_proj",
    "language_model.model.layers.N.mlp.experts.0.down_proj",
    "model.layers.N.block_sparse_moe.experts.0.w2",
    "model.layers.N.feed_forward.experts.0.down_proj",
    "language_model.model.layers.N.feed_forward.experts.0.down_proj",
    "backbone.layers.N.mixer.experts.0.down_proj",
    "layers.N.ffn.experts.0.w2",
)
#: names of the largest projections of attention, of output and queries
OUTPUT_NAMES = (
    "model.layers.N.self_attn.o_proj",
    "model.language_model.layers.N.self_attn.o_proj",
    "language_model.model.layers.N.self_attn.o_proj",
    "backbone.layers.N.mixer.o_proj",
    "layers.N.attn.wo_b",
)
QUERY_NAMES = (
    "model.layers.N.self_attn.q_proj",
    "model.layers.N.self_attn.q_b_proj",
    "model.language_model.layers.N.self_attn.q_proj",
    "language_model.model.layers.N.self_attn.q_proj",
    "language_model.model.layers.N.self_attn.q_b_proj",
    "backbone.layers.N.mixer.q_proj",
    "layers.N.attn.wq_b",
)
_NUMBERED = re.compile(r"(?<=layers[.])\d+|(?<=blocks[.])\d+")


def layer_numbers(rule: str) -> list[str]:
    """Return the numbers of layers in a rule."""
    return _NUMBERED.findall(rule)


def listed(value: Any) -> list[str]:
    """Return a word or a list of words as a list; anything else is none."""
    if isinstance(value, str):
        return [value]
    return [str(one) for one in value] if isinstance(value, list | tuple) else []


def is_named(rule: str, names: tuple[str, ...]) -> bool:
    """Return whether a rule names a module of one of these names, in whatever layer."""
    rule = _NUMBERED.sub("N", rule)
    return any(_matches(rule, name) for name in names)


def _matches(rule: str, name: str) -> bool:
    if rule.startswith("re:"):
        numbered = name.replace(".N.", ".9.")
        try:
            return re.match(rule[3:].replace("layers.N", "layers.9"), numbered) is not None
        except re.error:
            return False
    if "*" in rule:
        whole = rule.lstrip("*").lstrip(".")
        return (
            fnmatchcase(name, rule)
            or fnmatchcase(name, f"*.{whole}")
            or fnmatchcase(name, f"{rule.rstrip('*')}*")
        )
    return f".{rule.strip('.')}." in f".{name}."
