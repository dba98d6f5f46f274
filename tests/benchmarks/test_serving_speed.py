"""Speed of the request loop with steps in closed form. Nothing is asserted about time here."""

import pytest

from moesim.serving.loop import RequestTraffic, ServerConfig, serve


class Line:
    """Steps of a launch, prompt tokens and reads of the KV cache."""

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
        prompts = prefill_tokens * (1e-5 + 1e-9 * prefill_context)
        return 2e-3 + prompts + sequences * (2e-5 * tokens_per_sequence + 2e-9 * context)


@pytest.mark.parametrize(
    ("concurrency", "server"),
    [(1, {}), (64, {}), (512, {"kv_blocks": 6000, "max_seqs": 1024}), (512, {"dp": 8})],
    ids=["alone", "64 clients", "512 clients short of memory", "512 clients on 8 ranks"],
)
def test_serve_1000_answers_of_1024(benchmark, concurrency, server):
    traffic = RequestTraffic(
        concurrency=concurrency, isl="uniform:512-1024", osl="uniform:512-1024", num_requests=1000
    )
    config = ServerConfig(**{"kv_blocks": 100_000} | server)
    benchmark(serve, Line(), config, traffic)
