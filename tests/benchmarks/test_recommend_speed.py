"""Speed of recommendations, cold: a new process each, caches of compiled code as they are. Nothing
is asserted of time.

Targets: 20 s each on two cores, 30 s for a whole model.
"""

import subprocess
import sys

import pytest

REQUESTS = {
    "qwen3-235b on 8 H100": ["--model", "qwen3-235b-a22b", "--cluster", "hgx-h100-8"],
    "deepseek-v3 on 64 H100": ["--model", "deepseek-v3", "--cluster", "h100-rail-8x8"],
    "deepseek-v3 on 64 H100, a latency": [
        "--model",
        "deepseek-v3",
        "--cluster",
        "h100-rail-8x8",
        "--phase",
        "decode",
        "--layers-latency-ms",
        "60",
    ],
    "deepseek-v3 on 64 H100, the whole model": [
        "--model",
        "deepseek-v3",
        "--cluster",
        "h100-rail-8x8",
        "--isl",
        "2048",
        "--slo",
        "ttft<=5s,tpot<=50ms",
    ],
    "deepseek-v3 on 256 H100": [
        "--model",
        "deepseek-v3",
        "--cluster",
        "h100-rail-8x8",
        "--gpus",
        "256",
    ],
}


@pytest.mark.parametrize("request_", list(REQUESTS))
def test_recommend_cold(benchmark, request_):
    command = [sys.executable, "-m", "moesim.cli", "recommend", *REQUESTS[request_]]
    benchmark.pedantic(
        lambda: subprocess.run(command, check=True, capture_output=True), rounds=2, iterations=1
    )
