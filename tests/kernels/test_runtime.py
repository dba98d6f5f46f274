"""What runs where, and what imports without what."""

import os
import subprocess
import sys

import pytest
import torch
from moesim_kernels.ops import runtime


def _python(code: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_mode_matches_the_machine():
    assert runtime.triton_mode() == ("gpu" if torch.cuda.is_available() else "interpreter")
    assert runtime.device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert runtime.limits().shared_bytes >= 48 * 1024


def test_importing_the_package_is_light():
    code = (
        "import moesim_kernels, sys; print([name for name in ('torch', 'triton') if name in "
        "sys.modules])"
    )
    assert _python(code) == "[]"


def test_public_names_exist():
    import moesim_kernels

    assert all(getattr(moesim_kernels, name) is not None for name in moesim_kernels.__all__)
    assert set(moesim_kernels.__all__) <= set(dir(moesim_kernels))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = moesim_kernels.nothing


def test_references_run_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from moesim.model import Gate, MoELayer
from moesim_kernels import LayerWeights, moe_layer, triton_mode
from moesim_kernels.timing import bench
from moesim_kernels.compile import check as compile_check
layer = MoELayer(hidden_size=8, expert_intermediate_size=8, num_experts=4, top_k=2,
                 gate=Gate.parse("two_level:2:1"))
weights, x = LayerWeights.random(layer, 0), torch.ones(3, 8, dtype=torch.bfloat16)
print(triton_mode(), tuple(moe_layer(x, weights, layer, "torch").shape))
for call in (lambda: moe_layer(x, weights, layer), lambda: compile_check.compile_target("sm_90")):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    lines = _python(code).splitlines()
    assert lines[0] == "none (3, 8)"
    assert all("needs Triton, which is not installed here" in line for line in lines[1:])
    assert len(lines) == 3


def test_kernels_follow_triton_not_a_later_environment():
    late = (
        "import triton, os; os.environ['TRITON_INTERPRET'] = '1'; from moesim_kernels.ops import "
        "router_kernel; "
    )
    assert _python(late + "print(type(router_kernel.order_key).__name__)") == "JITFunction"


def test_require_triton_refuses_strided_tensors(device):
    with pytest.raises(ValueError, match="expected contiguous tensors"):
        runtime.require_triton(torch.zeros(4, 4, device=device).T)


def test_require_float_refuses_integers():
    with pytest.raises(
        ValueError, match=r"x: expected bfloat16, float16 or float32, got torch\.int32"
    ):
        runtime.require_float("x", torch.zeros(1, dtype=torch.int32))
