"""What the host does for a layer: launches counted, questions counted, tapes held to the calls they
replay.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moesim_kernels.ops.chain import chains
from moesim_kernels.ops.layer import LayerWeights, moe_layer
from moesim_kernels.ops.prepared import prepare_layer
from moesim_kernels.tiles.tiles import LIMITS

from moesim.model import Gate, MoELayer, Precision


@pytest.fixture(scope="module")
def report():
    """What one process saw: importing torch and compiling for a GPU that is not there take long."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "host_report.py")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_call_asks_the_driver_nothing(report):
    rows = {
        name: row["questions"]
        for name, row in report.items()
        if isinstance(row, dict) and "questions" in row
    }
    assert len(rows) >= 10
    assert not any(rows.values()), rows


def test_launches_of_an_expert_phase_and_a_layer(report):
    assert report["phase 16"]["names"] == [
        "_place_kernel",
        "_wide_swiglu_kernel",
        "_linear_kernel",
        "_combine_kernel",
    ]
    assert report["phase 1200"]["names"] == [
        "_count_kernel",
        "_place_kernel",
        "_wide_swiglu_kernel",
        "_persistent_linear_kernel",
        "_combine_kernel",
    ]
    gate = ["_gate_logits_kernel", "_route_kernel"]
    experts = report["phase 1200"]["names"][2:]
    assert report["layer 16"]["names"] == gate + report["phase 16"]["names"]
    # The router counts for the plan; with many tokens it is one kernel with the logits.
    assert report["layer 1200"]["names"] == [*gate, "_place_kernel", *experts]
    assert report["layer 9000"]["names"] == ["_fused_gate_kernel", "_place_kernel", *experts]
    assert [len(report[f"layer {tokens}"]["names"]) for tokens in (16, 1200, 9000)] == [6, 6, 5]
    assert report["group_limited:8:4"]["names"] == report["layer 16"]["names"]
    assert report["two_level:8:2"]["names"] == [
        *gate,
        "_place_kernel",
        "_linear_kernel",
        "_route_kernel",
        *report["phase 16"]["names"],
    ]


def test_launches_of_training(report):
    forward = [
        "_count_kernel",
        "_place_kernel",
        "_wide_swiglu_kernel",
        "_persistent_linear_kernel",
        "_combine_kernel",
    ]
    backward = [
        "_linear_kernel",
        "_swiglu_grad_kernel",
        "_linear_kernel",
        "_combine_kernel",
        "_outer_kernel",
        "_outer_kernel",
    ]
    assert report["training"]["names"] == forward + backward


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        (16, ["_place_kernel"]),
        (2048, ["_place_kernel"]),
        (65536, ["_count_kernel", "_place_kernel"]),
        (131072, ["_count_kernel", "_sum_kernel", "_place_kernel"]),
    ],
)
def test_launches_of_a_plan(report, pairs, names):
    assert report[f"plan {pairs}"]["names"] == names


def test_kernels_of_a_chain_wait_before_they_touch_memory(report):
    names = {name for name, _, _ in report["chain"]}
    assert len(names) >= 14
    # What is launched early waits, and only what a launch does not chain does not.
    assert [row for row in report["chain"] if row[1:] != [True, True]] == []


def test_a_tape_repeats_the_launches_it_was_made_from(report):
    assert report["tape"] == {"launches": 6, "same": True, "arguments": True, "swapped": True}
    assert report["two-level tape"] == [9, 9, 9]


@pytest.mark.parametrize(
    "layer",
    [
        MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=8, top_k=2),
        MoELayer(
            hidden_size=64,
            expert_intermediate_size=48,
            num_experts=8,
            top_k=2,
            num_shared_experts=1,
        ),
        MoELayer(
            hidden_size=96,
            expert_intermediate_size=64,
            num_experts=16,
            top_k=4,
            gate=Gate.parse("two_level:4:2"),
        ),
        MoELayer(
            hidden_size=128,
            expert_intermediate_size=128,
            num_experts=4,
            top_k=2,
            precision=Precision.named("fp8"),
        ),
    ],
    ids=["plain", "shared", "two-level", "fp8"],
)
def test_a_prepared_layer_is_the_layer(device, layer):
    weights = LayerWeights.random(layer, 0, device=device)
    prepared = prepare_layer(weights, layer)
    for seed, tokens in enumerate((5, 5, 33, 0, 5)):
        x_TH = torch.randn(
            tokens, layer.hidden_size, generator=torch.Generator().manual_seed(seed)
        ).bfloat16()
        x_TH = x_TH.to(device)
        assert torch.equal(prepared(x_TH), moe_layer(x_TH, weights, layer))


def test_a_prepared_layer_refuses(device):
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=8, top_k=2)
    weights = LayerWeights.random(layer, 0, device=device)
    prepared, x_TH = (
        prepare_layer(weights, layer),
        torch.zeros(4, 64, dtype=torch.bfloat16, device=device),
    )
    for bad, message in (
        (x_TH[:, :32], r"x_TH: expected shape \(T, 64\)"),
        (x_TH.half(), "expected torch.float16"),
        (x_TH.T.contiguous().T, "x_TH: expected a contiguous tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(bad)
    with pytest.raises(ValueError, match=r"weights\.w_gate_up: expected shape"):
        prepare_layer(
            weights, MoELayer(hidden_size=64, expert_intermediate_size=24, num_experts=8, top_k=2)
        )


def test_early_launches_are_for_architectures_that_have_them():
    early = {name for name in (*LIMITS, "") if chains(name)}
    assert early == {"sm_90", "sm_100", "sm_120"}
