"""What kernels and benchmarks say on a machine without a GPU. Not collected where there is one."""

import os
import subprocess
import sys

import pytest
from moesim_kernels.ops import runtime
from moesim_kernels.timing.bench import time_calls, time_expert_phase

from moesim.model import MoELayer


def test_mode_is_the_interpreter():
    assert runtime.triton_mode() == "interpreter"
    assert runtime.device().type == "cpu"
    assert runtime.limits().shared_bytes == 163 * 1024


def test_timing_refuses():
    layer = MoELayer(hidden_size=48, expert_intermediate_size=40, num_experts=6, top_k=2)
    for call in (lambda: time_expert_phase(layer, 16), lambda: time_calls(lambda: None)):
        with pytest.raises(
            RuntimeError, match="needs a GPU with an active Triton driver, got mode 'interpreter'"
        ):
            call()


def test_kernels_refuse_without_the_interpreter():
    code = """
import torch
from moesim_kernels import route, triton_mode
print(triton_mode())
try:
    route(torch.zeros(1, 2), 1)
except RuntimeError as error:
    print(error)
"""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    mode, error = done.stdout.splitlines()
    assert mode == "none"
    assert error.startswith(
        "Triton has no active GPU driver; set TRITON_INTERPRET=1 before triton is first imported"
    )
