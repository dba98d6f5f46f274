"""Read the feed-forward of one layer: dense, experts, or both side by side."""

from typing import Any

from moesim.limits import MOST_EXPERTS
from moesim.model.feedforward import DenseFeedForward, MoEFeedForward
from moesim.model.gate import Gate
from moesim.model.hf_config import words
from moesim.model.hf_config.families import Family
from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.sizes import EXPERTS, TOP_K

_SHARED = (
    "n_shared_experts",
    "num_shared_experts",
    "moe_num_shared_experts",
    "num_shared_expert",
    "n_shared_expert",
)
_SHARED_WIDTHS = (
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "share_expert_dim",
    "share_expert_dims",
    "shared_experts_intermediate_size",
)
_WIDTHS = ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size")
_PLAIN_WIDTHS = ("intermediate_size", "ffn_hidden_size")
_DENSE_WIDTHS = (
    "intermediate_size_mlp",
    "dense_intermediate_size",
    "prefix_dense_intermediate_size",
)
_SCORES = (
    "scoring_func",
    "score_function",
    "score_func",
    "moe_router_activation_func",
    "moe_router_activation",
    "moe_router_score_func",
    "moe_router_score_function",
    "expert_selection_fn",
)
#: activation functions of blocks with one up projection
_UNGATED = ("relu", "relu2", "squared_relu")


def read_dense(keys: Keys, family: Family) -> DenseFeedForward:
    """Return a dense feed-forward.

    Raises:
        ConfigError: Its width is missing or malformed.
    """
    names = [*_DENSE_WIDTHS, *_PLAIN_WIDTHS]
    stated = next((name for name in names if keys.has(name)), _PLAIN_WIDTHS[0])
    width = keys.whole(stated, what="the width of a dense layer")
    return DenseFeedForward(width=width, gated=_gated(keys, family))


def has_dense_beside(keys: Keys, family: Family) -> bool:
    """Return whether MoE layers have a dense feed-forward beside the experts."""
    # Gemma 4 says by a flag that a layer has experts at all
    beside = keys.flag("enable_moe_block", default=family.dense_beside)
    return keys.flag("residual_moe", default=family.dense_beside and beside)


def dense_width_stated(keys: Keys) -> int | None:
    """Return the width of dense layers where the file states one apart from the experts'."""
    if keys.has(*_DENSE_WIDTHS):
        return keys.whole(*_DENSE_WIDTHS, what="the width of a dense layer")
    if keys.has(*_WIDTHS) and keys.has(*_PLAIN_WIDTHS):
        return keys.whole(*_PLAIN_WIDTHS, what="the width of a dense layer")
    return None


def read_moe(keys: Keys, family: Family, word: str) -> MoEFeedForward:
    """Return the experts of one layer.

    Args:
        keys: The keys as the layer sees them.
        family: What the configuration class implies.
        word: The kind of feed-forward, a word of `moesim.model.hf_config.layout`.

    Raises:
        ConfigError: A key is missing, malformed or contradicts another.
    """
    numbers = _by_modality(keys, EXPERTS, "the number of routed experts")
    names = _WIDTHS if keys.has(*_WIDTHS) else _PLAIN_WIDTHS
    widths = _by_modality(keys, names, "the width of an expert")
    number, width = numbers[0], widths[0]
    keys.require(number <= MOST_EXPERTS, EXPERTS[0], f"at most {MOST_EXPERTS} experts", number)
    zero = keys.whole("zero_expert_num", "n_zero_experts", what="experts", default=0, low=0)
    kind = keys.word("zero_expert_type", default="identity")
    keys.require(not zero or kind == "identity", "zero_expert_type", "identity", kind)
    shared, shared_width = _shared(keys, width)
    top_k = keys.whole(*TOP_K, what="the experts of a token")
    return MoEFeedForward(
        num_experts=number,
        top_k=top_k,
        width=width,
        gate=read_gate(keys, family, word),
        gated=_gated(keys, family),
        num_shared_experts=shared,
        shared_width=shared_width,
        has_shared_gate=family.has_shared_gate and shared > 0,
        latent_size=_latent(keys),
        num_zero_experts=zero,
        other_experts=tuple(
            (n, widths[min(i, len(widths) - 1)]) for i, n in enumerate(numbers) if i
        ),
    )


def _by_modality(keys: Keys, names: tuple[str, ...], what: str) -> list[int]:
    """Return one size, or one per modality, text first (ERNIE 4.5 VL)."""
    found = keys.stated(*names)
    if found is not None and isinstance(found[1], list) and len(found[1]) > 1:
        name, values = found
        good = len(values) <= 3 and all(isinstance(v, int) and v >= 1 for v in values)
        keys.require(good, name, f"an integer >= 1 or one per modality, {what}", values)
        return list(values)
    return [keys.whole(*names, what=what)]


def _latent(keys: Keys) -> int | None:
    names = ("moe_latent_size", "routed_expert_hidden_size", "moe_hidden_size")
    return keys.whole(*names, what="the width of the experts' space", default=0, low=0) or None


def _shared(keys: Keys, width: int) -> tuple[int, int]:
    """Return the number of shared experts and the width of one."""
    own = [name for name in _SHARED_WIDTHS if keys.has(name)]
    size = width
    if own:
        size = keys.whole(*own, what="the width of the shared expert", low=0)
    number = keys.whole(
        *_SHARED, what="experts that every token uses", default=1 if own else 0, low=0
    )
    if own and size and not number:
        keys.differ(own[0], f"0, since {_SHARED[0]} is 0", size)
    if not number or not size or not keys.flag("use_mixed_mlp_moe", default=True):
        return 0, 0
    return number, size


def _gated(keys: Keys, family: Family) -> bool:
    """Return whether blocks have two up projections: the class tells, or the activation."""
    found = keys.stated("mlp_hidden_act", "hidden_act", "hidden_activation")
    return family.gated and (found is None or found[1] not in _UNGATED)


def read_gate(keys: Keys, family: Family, word: str) -> Gate:
    """Return the gate of a layer.

    Raises:
        ConfigError: Its score or groups are malformed.
    """
    found = keys.stated(*_SCORES)
    score: Any = "softmax" if found is None else found[1]
    keys.require(
        score in ("softmax", "sigmoid", "sqrtsoftplus"),
        found[0] if found else _SCORES[0],
        "softmax, sigmoid or sqrtsoftplus",
        score,
    )
    if word == words.HASH_MOE:
        return Gate(score=score, selection="hash")
    names = (
        ("n_group", "num_expert_group", "num_expert_groups"),
        (
            "topk_group",
            "num_expert_groups_per_tok",
            "num_limited_groups",
        ),
    )
    if keys.has("num_experts_per_group"):  # Pangu Pro: every group gives as many experts
        size = keys.whole("num_experts_per_group", what="experts")
        note = f"groups of {size} experts give as many each: priced as a flat gate"
        keys.notes += [] if note in keys.notes else [note]
    groups = keys.whole(*names[0], what="groups of experts", default=1, low=0) or 1
    kept = keys.whole(*names[1], what="groups a token may use", default=groups, low=0) or groups
    keys.require(kept <= groups, "topk_group", f"at most n_group = {groups}", kept)
    method = keys.word("topk_method", default="")
    if kept == groups or method == "greedy":
        return Gate(score=score)
    return Gate(
        kind="group_limited", num_expert_groups=groups, num_limited_groups=kept, score=score
    )
