"""Names of sizes, and sizes that attention and linear attention have in common."""

from moesim.model.hf_config.keys import Keys

_HEADS = ("num_attention_heads", "n_heads", "num_heads")
_OF_EACH = "num_attention_heads_per_layer"
#: names of the number of routed experts, and of those of a token
EXPERTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
)
TOP_K = (
    "num_experts_per_tok",
    "experts_per_token",
    "moe_topk",
    "moe_k",
    "num_experts_per_token",
    "top_k_experts",
    "moe_top_k",
)
#: names of the width of a head
HEAD_SIZES = ("head_dim", "kv_channels", "attention_head_dim")


def num_heads(keys: Keys) -> int:
    """Return the number of query heads of a layer; a list for all layers goes first.

    Raises:
        ConfigError: It is missing or malformed.
    """
    keys.has(*_HEADS)
    return keys.whole(*((_OF_EACH,) if keys.has(_OF_EACH) else _HEADS), what="attention heads")


def head_size(keys: Keys, heads: int, hidden: int) -> int:
    """Return the width of a head: what is stated, or an equal share of the width of a token.

    Raises:
        ConfigError: None is stated, and heads do not divide the width of a token.
    """
    if not keys.has(*HEAD_SIZES):
        keys.require(
            hidden % heads == 0,
            "head_dim",
            f"the width of a head, since num_attention_heads = {heads} does not divide {hidden}",
            None,
        )
    return keys.whole(*HEAD_SIZES, what="the width of a head", default=max(hidden // heads, 1))
