"""State space layers (Mamba) and short convolutions: mixers that keep a state of fixed size."""

from dataclasses import dataclass

from moesim.model.mixers import Mixer
from moesim.model.recurrent import STATE_BYTES, check_sizes, conv_bytes
from moesim.model.weights import Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1(Mixer):
    """A selective state space layer (Mamba, arXiv 2312.00752; Jamba).

    Attributes:
        inner_size: Number of channels.
        state_size: Width of the state of a channel.
        dt_rank: Rank of the step sizes.
        kernel: Tokens that the convolution in front sees.

    Raises:
        ConfigError: A size is below 1.
    """

    inner_size: int
    state_size: int
    dt_rank: int
    kernel: int

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        return f"Mamba {self.inner_size}, state {self.state_size}"

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes of the state and of the convolution's last inputs."""
        state = self.inner_size * self.state_size * STATE_BYTES
        return state + conv_bytes(self.inner_size, self.kernel)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return input with gate, convolution, the selection's parameters, and output."""
        inner, state = self.inner_size, self.state_size
        return (
            Weight("in", 2 * inner, hidden_size),
            Weight("conv", inner, self.kernel),
            Weight("x", self.dt_rank + 2 * state, inner),
            Weight("dt", inner, self.dt_rank),
            Weight("decay", inner, state),
            Weight("out", hidden_size, inner),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2(Mixer):
    """A state space layer with one decay per head (Mamba-2, arXiv 2405.21060; Nemotron-H,
    Granite 4).

    Attributes:
        num_heads: Number of heads.
        head_size: Width of a head.
        state_size: Width of the state of a channel.
        num_groups: Number of groups of heads that share B and C.
        kernel: Tokens that the convolution in front sees.

    Raises:
        ConfigError: A size is below 1.
    """

    num_heads: int
    head_size: int
    state_size: int
    num_groups: int
    kernel: int

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        return f"Mamba-2 {self.num_heads} x {self.head_size}, state {self.state_size}"

    @property
    def _channels(self) -> int:
        return self.num_heads * self.head_size + 2 * self.num_groups * self.state_size

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes of the state and of the convolution's last inputs."""
        state = self.num_heads * self.head_size * self.state_size * STATE_BYTES
        return state + conv_bytes(self._channels, self.kernel)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return input (gate, x, B, C and step sizes in one), convolution and output."""
        inner = self.num_heads * self.head_size
        return (
            Weight("in", inner + self._channels + self.num_heads, hidden_size),
            Weight("conv", self._channels, self.kernel),
            Weight("out", hidden_size, inner),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution(Mixer):
    """A gated convolution over the last few tokens (LFM2).

    Attributes:
        channels: Number of channels, the width of a token.
        kernel: Number of tokens that it sees.

    Raises:
        ConfigError: A size is below 1.
    """

    channels: int
    kernel: int

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def kind(self) -> str:
        """What the mixer is, in a few words with its sizes."""
        return f"convolution over {self.kernel} tokens"

    @property
    def state_bytes_per_sequence(self) -> float:
        """The bytes of the convolution's last inputs."""
        return conv_bytes(self.channels, self.kernel)

    def weights(self, hidden_size: int) -> tuple[Weight, ...]:
        """Return input with both gates, convolution and output."""
        return (
            Weight("in", 3 * self.channels, hidden_size),
            Weight("conv", self.channels, self.kernel),
            Weight("out", hidden_size, self.channels),
        )
