"""What a server is configured with: ranks, batches, KV blocks, speculative decoding, pools.

The knobs are those that decide latency in vLLM, SGLang and TensorRT-LLM; the scheduler
(`moesim.serving.loop.rank`) is a common denominator of theirs, and a copy of none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from moesim.errors import require, require_int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Speculative decoding, or multi-token prediction: every step verifies some drafted tokens.

    A sequence gains the expected number of tokens in every step, so that sequences of a rank stay
    in step; the randomness of acceptance is left out.

    Attributes:
        acceptance: For each drafted position, the probability that its token is accepted if all
            before it were. Their number is the draft length.

    Raises:
        ConfigError: No position is given, or a probability is outside 0 to 1.
    """

    acceptance: tuple[float, ...]

    def __post_init__(self) -> None:
        where = "server.speculation.acceptance"
        require(len(self.acceptance) > 0, where, "at least one probability", self.acceptance)
        require(all(0 <= p <= 1 for p in self.acceptance), where, "probabilities", self.acceptance)

    @property
    def draft_length(self) -> int:
        """The number of drafted tokens of a sequence in each step."""
        return len(self.acceptance)

    @property
    def tokens_per_step(self) -> float:
        """The expected number of tokens that a sequence gains in a step: one, and a drafted one
        for every position up to which all were accepted (Leviathan et al., 2023,
        arXiv:2211.17192, equation 1, which is this sum for equal probabilities).
        """
        return 1.0 + sum(math.prod(self.acceptance[: k + 1]) for k in range(self.draft_length))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A pool of equal servers.

    Attributes:
        kv_blocks: Number of KV blocks of an attention rank.
        block_size: Tokens of a KV block.
        replicas: Number of servers.
        dp: Number of attention ranks of a server, which run their steps together.
        chunk: The most prompt tokens of a step of a rank; longer prompts take several steps.
        max_seqs: The most admitted requests of a rank.
        prefill_interval: Number of decode steps that a rank with running sequences puts between
            two steps with prompt tokens.
        mixed: Whether prompt tokens go beside decoding sequences in one step (chunked prefill of
            vLLM and TensorRT-LLM). Otherwise a step with prompt tokens stalls the decoding of its
            rank (SGLang's default).
        speculation: Speculative decoding, if it is used.
        receive_s: Seconds that a request spends in the server's front end beside others.
        intake_s: Seconds before them in which the front end is busy with this request alone, so
            that prompts that are sent together queue one after another.
        tolerance: Relative error of the time of decode steps that are jumped over, see
            `moesim.serving.loop.stretch`; 0 runs every step.

    Raises:
        ConfigError: A value is out of range.
    """

    kv_blocks: int
    block_size: int = 16
    replicas: int = 1
    dp: int = 1
    chunk: int = 8192
    max_seqs: int = 256
    prefill_interval: int = 0
    mixed: bool = True
    speculation: Speculation | None = None
    receive_s: float = 0.0
    intake_s: float = 0.0
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("kv_blocks", "block_size", "replicas", "dp", "chunk", "max_seqs"):
            require_int(f"server.{name}", getattr(self, name), 1)
        require_int("server.prefill_interval", self.prefill_interval, 0)
        require(0 <= self.receive_s < math.inf, "server.receive_s", "a number >= 0", self.receive_s)
        require(0 <= self.intake_s < math.inf, "server.intake_s", "a number >= 0", self.intake_s)
        require(0 <= self.tolerance < 1, "server.tolerance", "a number from 0 to 1", self.tolerance)

    @property
    def draft_length(self) -> int:
        """The number of drafted tokens of a sequence in each step; 0 without speculation."""
        return self.speculation.draft_length if self.speculation else 0

    @property
    def tokens_per_step(self) -> float:
        """The expected number of tokens that a decoding sequence gains in a step."""
        return self.speculation.tokens_per_step if self.speculation else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTransfer:
    """The time in which a prompt's KV cache moves from a prefill server to a decode server.

    Transfers do not share their link: each gets the whole bandwidth.

    Attributes:
        latency_s: Seconds of a transfer of nothing.
        bytes_per_token: Bytes of the KV cache of a token, all layers together.
        bytes_per_s: Bandwidth of a transfer.

    Raises:
        ConfigError: A value is out of range.
    """

    latency_s: float
    bytes_per_token: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        for name in ("latency_s", "bytes_per_token"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"transfer.{name}", "a number >= 0", value)
        require(self.bytes_per_s > 0, "transfer.bytes_per_s", "a number > 0", self.bytes_per_s)

    def __call__(self, tokens: int) -> float:
        """Return the seconds of a transfer: latency + bytes / bandwidth."""
        return self.latency_s + tokens * self.bytes_per_token / self.bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggregatedConfig:
    """A pool that prefills and a pool that decodes.

    Attributes:
        prefill: The servers that compute prompts. Their knobs of decoding do not matter.
        decode: The servers that decode; what they preempt they prefill again themselves.
        transfer_s: Seconds in which the KV cache of a prompt of so many tokens is transferred.
    """

    prefill: ServerConfig
    decode: ServerConfig
    transfer_s: Callable[[int], float]
