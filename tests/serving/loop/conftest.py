"""A model of steps in closed form: a launch, prompt tokens and the KV cache, priced apart."""

import pytest


class Affine:
    """Seconds grow with each demand of a step, like bandwidth and compute would have it."""

    def __init__(self, launch_s=2e-3, token_s=1e-5, pair_s=1e-9, sequence_s=2e-5, read_s=2e-9):
        self.launch_s, self.token_s, self.pair_s = launch_s, token_s, pair_s
        self.sequence_s, self.read_s = sequence_s, read_s
        self.calls = 0

    def among(self, mean_prefill_tokens):
        return self

    def step_s(
        self,
        *,
        prefill_tokens,
        prefill_context,
        sequences,
        context,
        tokens_per_sequence=1,
    ):
        self.calls += 1
        prompts = prefill_tokens * (self.token_s + self.pair_s * prefill_context)
        decoding = sequences * (tokens_per_sequence * self.sequence_s + self.read_s * context)
        return self.launch_s + prompts + decoding


@pytest.fixture(scope="session")
def affine():
    return Affine


class Bent(Affine):
    """A step that bends: reads of a long context overtake the rest, and a root before that."""

    def step_s(self, **batch):
        plain = super().step_s(**batch)
        reads = batch["sequences"] * batch["context"]
        return max(plain, 1e-8 * reads) + 1e-6 * reads**0.5


@pytest.fixture(scope="session")
def bent():
    return Bent
