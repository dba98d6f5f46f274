"""What the request loop asks of a model of steps."""

import math
from typing import Protocol

from moesim.errors import ConfigError


class StepTimes(Protocol):
    """How long a step takes on one attention rank, where all have as many prompt tokens."""

    def among(self, mean_prefill_tokens: float) -> "StepTimes":
        """Return the times of a rank among others that meet it at their experts.

        Args:
            mean_prefill_tokens: New prompt tokens of a rank on average over all of a server.
        """
        ...

    def step_s(
        self,
        *,
        prefill_tokens: int,
        prefill_context: float,
        sequences: int,
        context: float,
        tokens_per_sequence: int = 1,
    ) -> float:
        """Return the seconds of one step of one attention rank's batch.

        Attention computes ``prefill_tokens * (prefill_context + 1)`` pairs of tokens for prompts,
        and reads ``sequences * context`` tokens of the KV cache for decoding.

        Args:
            prefill_tokens: New prompt tokens in this step; 0 if there are none.
            prefill_context: Mean number of tokens that precede a new prompt token in its own
                sequence, whether they are in the KV cache or new in this step: (n - 1) / 2 for one
                whole prompt of n tokens.
            sequences: Number of decoding sequences beside them; 0 if there are none.
            context: Mean number of tokens that a decoding sequence attends to, its newest included.
            tokens_per_sequence: Tokens that each decoding sequence computes: 1 + the draft length.
        """
        ...


def checked_s(seconds: float) -> float:
    """Return the seconds of a step if they are a time.

    Raises:
        ConfigError: The model of steps returned something else.
    """
    if not 0 < seconds < math.inf:
        raise ConfigError(f"step_s: expected seconds > 0, got {seconds!r}")
    return seconds
