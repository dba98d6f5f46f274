"""Linear attention: mixers that keep a state of fixed size instead of keys and values.

The recurrent state is counted in float32, as the models keep it (``mamba_ssm_cache_dtype`` of
Nemotron-H, ``mamba_ssm_dtype`` of Qwen3.5), the last inputs of a convolution in bf16.
"""

from dataclasses import dataclass, fields

from moesim.errors import require_int
from moesim.model.mixers import CACHE_BYTES, Mixer
from moesim.model.weights import Weight

#: bytes of an element of a recurrent state
STATE_BYTES = 4


def check_sizes(mixer: Mixer, *may_be_zero: str) -> None:
    """Check that every size of a mixer is at least 1, or 0 where it may be.

    Raises:
        ConfigError: One is not.
    """
    for field in fields(mixer):
        low = 0 if field.name in may_be_zero else 1
        require_int(f"mixer.{field.name}", getattr(mixer, field.name), low)


def conv_bytes(channels: int, kernel: int) -> float:
    """Return the bytes of the last inputs that a convolution over ``kernel`` tokens keeps."""
    return float(channels * (kernel - 1) * CACHE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet(Mixer):
    """Linear attention with the gated delta rule (arXiv 2412.06464; Qwen3-Next, Qwen3.5).

    Attributes:
        num_key_heads: Number of heads of queries and keys.
        num_value_heads: Number of heads of values, of the output gate and of the state.
        key_size: Width of a head of queries and keys.
        value_size: Width of a head of values.
        kernel: Tokens that the convolution in front sees.

    Raises:
        ConfigError: A size is below 1.
    """

    num_key_heads: int
    num_value_heads: int
    key_size: int
    value_size: int
    kernel: int

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        return (
            f"gated delta net {self.num_key_heads} x {self.key_size} / "
            f"{self.num_value_heads} x {self.value_size}"
        )

    @property
    def _keys(self) -> int:
        return self.num_key_heads * self.key_size

    @property
    def _values(self) -> int:
        return self.num_value_heads * self.value_size

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes of the state and of the convolution's last inputs."""
        state = self.num_value_heads * self.key_size * self.value_size * STATE_BYTES
        return state + conv_bytes(2 * self._keys + self._values, self.kernel)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return q, k, v and the output gate z in one, both decays, convolution and output."""
        return (
            Weight("qkvz", 2 * self._keys + 2 * self._values, hidden_size),
            Weight("decay", 2 * self.num_value_heads, hidden_size),
            Weight("conv", 2 * self._keys + self._values, self.kernel),
            Weight("o", hidden_size, self._values),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiDeltaAttention(Mixer):
    """Kimi Delta Attention, with a decay per channel (Kimi Linear, arXiv 2510.26692).

    Attributes:
        num_heads: Number of heads.
        head_size: Width of a head.
        kernel: Tokens that the convolution in front sees.
        gate_rank: Rank of the decay and of the output gate; 0 if each is one full matrix.

    Raises:
        ConfigError: A size is below its minimum.
    """

    num_heads: int
    head_size: int
    kernel: int
    gate_rank: int

    def __post_init__(self) -> None:
        check_sizes(self, "gate_rank")

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        return f"Kimi delta attention {self.num_heads} x {self.head_size}"

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes of the state and of the convolution's last inputs."""
        heads = self.num_heads * self.head_size
        return heads * self.head_size * STATE_BYTES + conv_bytes(3 * heads, self.kernel)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return q, k, v, convolution, decay, beta, output gate and output."""
        heads, rank = self.num_heads * self.head_size, self.gate_rank
        gates: tuple[Weight, ...] = tuple(
            weight
            for name in ("decay", "output_gate")
            for weight in (
                (Weight(f"{name}.down", rank, hidden_size), Weight(f"{name}.up", heads, rank))
                if rank
                else (Weight(name, heads, hidden_size),)
            )
        )
        return (
            Weight("qkv", 3 * heads, hidden_size),
            Weight("conv", 3 * heads, self.kernel),
            *gates,
            Weight("beta", self.num_heads, hidden_size),
            Weight("o", hidden_size, heads),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningAttention(Mixer):
    """Linear attention with a fixed decay per head and an output gate (Lightning Attention, arXiv
    2401.04658; MiniMax-01, Ling-Linear).

    Attributes:
        num_heads: Number of query heads, and of the state.
        num_kv_heads: Number of heads of keys and values.
        head_size: Width of a head.

    Raises:
        ConfigError: A size is below 1.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        return f"lightning attention {self.num_heads} x {self.head_size}"

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes of the state."""
        return float(self.num_heads * self.head_size**2 * STATE_BYTES)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return q, k and v in one, the output gate and the output."""
        heads, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return (
            Weight("qkv", heads + 2 * keys, hidden_size),
            Weight("output_gate", heads, hidden_size),
            Weight("o", hidden_size, heads),
        )
