"""Times of steps in closed form, for tests of what serves requests."""


class Line:
    """Steps of a launch, prompt tokens, half of whose time is the experts' of all ranks, and reads
    of the KV cache: seconds.

    Args:
        mean: Prompt tokens of a rank on average; None where all have as many.
    """

    def __init__(self, mean: float | None = None) -> None:
        self.mean = mean

    def among(self, mean_prefill_tokens: float) -> "Line":
        """Return the times of a rank among others."""
        return Line(mean_prefill_tokens)

    def step_s(
        self,
        *,
        prefill_tokens: int,
        prefill_context: float,
        sequences: int,
        context: float,
        tokens_per_sequence: int = 1,
    ) -> float:
        """Return the seconds of a step, see `moesim.serving.loop.StepTimes`."""
        mean = prefill_tokens if self.mean is None else self.mean
        prompts = prefill_tokens * (1e-5 + 1e-9 * prefill_context) + mean * 1e-5
        return 8e-3 + prompts + sequences * (5e-5 * tokens_per_sequence + 6e-9 * context)
