"""Read a layer of linear attention, Mamba or convolution."""

from math import ceil

from moesim.model.hf_config.families import Family
from moesim.model.hf_config.ignored import judge
from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.sizes import head_size, num_heads
from moesim.model.mixers import Mixer
from moesim.model.recurrent import GatedDeltaNet, KimiDeltaAttention, LightningAttention
from moesim.model.state_space import Mamba1, Mamba2, ShortConvolution


def read_linear(keys: Keys, family: Family, hidden: int) -> Mixer:
    """Return what a layer that is no attention is in this class.

    Args:
        keys: The keys as the layer sees them.
        family: What the configuration class implies.
        hidden: Width of a token.

    Raises:
        ConfigError: A key is missing or malformed, or the class has no such layers.
    """
    keys.require(
        family.linear != "none",
        "layer_types",
        "attention, since the class is not known to have other mixers",
        "a layer of linear attention, Mamba or convolution",
    )
    kind = family.linear
    if kind == "kda" and keys.has("group_norm_size"):
        # Ling 2.5 shares its type with Ling 3; a norm by groups is that of lightning attention
        kind = "lightning"
    return {
        "gdn": _delta_net,
        "kda": _kimi_delta,
        "lightning": _lightning,
        "mamba1": _mamba1,
        "mamba2": _mamba2,
        "conv": _convolution,
    }[kind](keys, hidden)


def _delta_net(keys: Keys, hidden: int) -> Mixer:
    return GatedDeltaNet(
        num_key_heads=keys.whole("linear_num_key_heads", what="heads of keys"),
        num_value_heads=keys.whole("linear_num_value_heads", what="heads of values"),
        key_size=keys.whole("linear_key_head_dim", what="the width of a key"),
        value_size=keys.whole("linear_value_head_dim", what="the width of a value"),
        kernel=keys.whole("linear_conv_kernel_dim", what="tokens of a convolution", default=4),
    )


def _kimi_delta(keys: Keys, hidden: int) -> Mixer:
    table = keys.table("linear_attn_config")
    inner = table or keys
    heads = inner.whole("num_heads", "linear_num_heads", "num_attention_heads", what="heads")
    size = (
        inner.whole("head_dim", what="width of a head")
        if table
        else keys.whole(
            *(("linear_head_dim",) if keys.has("linear_head_dim") else ("head_dim",)),
            what="the width of a head",
        )
    )
    kernel = inner.whole(
        "short_conv_kernel_size", "linear_conv_kernel_dim", what="tokens", default=4
    )
    if table is not None:
        table.has("full_attn_layers", "kda_layers")
        judge(table)
        keys.notes += table.notes
    return KimiDeltaAttention(
        num_heads=heads,
        head_size=size,
        kernel=kernel,
        gate_rank=0 if keys.flag("no_kda_lora") else size,
    )


def _lightning(keys: Keys, hidden: int) -> Mixer:
    heads = num_heads(keys)
    return LightningAttention(
        num_heads=heads, num_kv_heads=heads, head_size=head_size(keys, heads, hidden)
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
