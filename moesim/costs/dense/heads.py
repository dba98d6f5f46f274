"""Describe the heads of an attention layer on one device, as its kernels see them.

Every field may be an integer, or an ndarray with one value for each row of a table.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Size = int | np.ndarray
#: head sizes of multi-head latent attention: keys without and with rotary part, values, and the
#: latent (DeepSeek-V2, arXiv 2405.04434)
_NOPE, _ROPE, _VALUE, _LATENT = 128, 64, 128, 512
Kind = Literal["attention", "mla"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heads:
    """Heads of one device.

    Attributes:
        kind: ``attention`` (multi-head and grouped-query), or ``mla``.
        num_heads: Query heads.
        num_kv_heads: Heads of keys and values.
        key_size: Elements of a query and of a key.
        value_size: Elements of a value.
        kv_size: Elements that the cache holds for a token and KV head.
    """

    kind: Kind
    num_heads: Size
    num_kv_heads: Size
    key_size: Size
    value_size: Size
    kv_size: Size

    @classmethod
    def grouped(cls, num_heads: Size, num_kv_heads: Size, head_dim: Size) -> "Heads":
        """Return the heads of multi-head or grouped-query attention, those of one TP rank: heads /
        TP, and KV heads / TP but at least one.
        """
        return cls(
            kind="attention",
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            key_size=head_dim,
            value_size=head_dim,
            kv_size=2 * head_dim,
        )

    @classmethod
    def mla_prefill(
        cls, num_heads: Size, *, key_size: int = _NOPE + _ROPE, value_size: int = _VALUE
    ) -> "Heads":
        """Return the heads of a prefill of multi-head latent attention: keys and values are
        projected up from the latent, by GEMMs that are priced apart, and every head has its own.
        """
        return cls(
            kind="mla",
            num_heads=num_heads,
            num_kv_heads=num_heads,
            key_size=key_size,
            value_size=value_size,
            kv_size=key_size + value_size,
        )

    @classmethod
    def plain(cls, heads: "Heads") -> "Heads":
        """Return the same heads for the kernel of plain attention."""
        return cls(
            kind="attention",
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            key_size=heads.key_size,
            value_size=heads.value_size,
            kv_size=heads.kv_size,
        )

    @classmethod
    def mla_decode(
        cls, num_heads: Size, *, latent_size: int = _LATENT, rope_size: int = _ROPE
    ) -> "Heads":
        """Return the heads of a decode of multi-head latent attention: the up-projections are
        absorbed into query and output, and all heads share the latent, which TP cannot divide.
        """
        return cls(
            kind="mla",
            num_heads=num_heads,
            num_kv_heads=1,
            key_size=latent_size + rope_size,
            value_size=latent_size,
            kv_size=latent_size + rope_size,
        )
