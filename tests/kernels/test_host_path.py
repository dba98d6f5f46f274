"""What the host does for a layer: launches counted, questions counted, tapes held to the calls they replay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moesim_kernels.layer import LayerWeights, moe_layer
from moesim_kernels.prepared import prepare_layer

from moesim.model import Gate, MoELayer, Precision

#: one process, for importing torch and compiling for a GPU that is not there take their time
PROGRAM = """
import json, sys
sys.path.insert(0, {here!r})
import stub_driver, torch
from moesim.model import Gate, MoELayer
from moesim_kernels.bench import random_ids
from moesim_kernels.layer import LayerWeights, expert_phase, moe_layer
from moesim_kernels.plan import make_plan
from moesim_kernels.prepared import prepare_layer

asked = stub_driver.Asked()
stub_driver.install(asked)


def seen(call):
    call()
    asked.launches.clear()
    before = asked.questions
    call()
    return {{"names": [name for name, _, _ in asked.launches], "questions": asked.questions - before}}


def layer_of(gate):
    return MoELayer(hidden_size=256, expert_intermediate_size=128, num_experts=64, top_k=4, gate=Gate.parse(gate))


report = {{}}
flat = layer_of("flat")
weights = LayerWeights.random(flat, 0)
for tokens in (16, 1200):
    x = torch.randn(tokens, 256).bfloat16()
    ids, shares = random_ids(tokens, 64, 4), torch.rand(tokens, 4)
    report[f"phase {{tokens}}"] = seen(lambda: expert_phase(x, ids, shares, weights))
    report[f"layer {{tokens}}"] = seen(lambda: moe_layer(x, weights, flat, checked=False))
for gate in ("group_limited:8:4", "two_level:8:2"):
    other = layer_of(gate)
    made = LayerWeights.random(other, 0)
    x = torch.randn(40, 256).bfloat16()
    report[gate] = seen(lambda: moe_layer(x, made, other, checked=False))
for pairs in (16, 2048, 16384, 65536):
    report[f"plan {{pairs}}"] = seen(lambda: make_plan(random_ids(pairs, 128, 1), 128, 64))

ids, x = random_ids(900, 64, 4), torch.randn(900, 256).bfloat16().requires_grad_()
trained = LayerWeights.random(flat, 0)
shares = torch.rand(900, 4).requires_grad_()
for tensor in (trained.w_gate_up, trained.w_down):
    tensor.requires_grad_()
report["training"] = seen(lambda: expert_phase(x, ids, shares, trained).float().sum().backward())

# A tape's launches are those of the call it was made from, with the addresses of another input and output.
prepared, x = prepare_layer(weights, flat), torch.randn(16, 256).bfloat16()
asked.launches.clear()
out = prepared(x)
first = list(asked.launches)
asked.launches.clear()
y = torch.randn(16, 256).bfloat16()
again = prepared(y)
second = list(asked.launches)
swaps = {{x.data_ptr(): y.data_ptr(), out.data_ptr(): again.data_ptr()}}


def plain(arg):
    return arg.data_ptr() if isinstance(arg, torch.Tensor) else arg


replayed = [(name, grid, [swaps.get(plain(a), plain(a)) if isinstance(plain(a), int) else a for a in args])
            for name, grid, args in first]
report["tape"] = {{
    "launches": len(second),
    "same": [(n, g) for n, g, _ in replayed] == [(n, g) for n, g, _ in second],
    "arguments": all(plain(a) == plain(b) for (_, _, one), (_, _, two) in zip(replayed, second, strict=True)
                     for a, b in zip(one, two, strict=True)),
    "swapped": {{y.data_ptr(), again.data_ptr()}} <= {{plain(a) for _, _, args in second for a in args
                                                     if isinstance(plain(a), int)}}}}
two_level = layer_of("two_level:8:2")
asked.launches.clear()
prepared = prepare_layer(LayerWeights.random(two_level, 0), two_level)
counts = []
for _ in range(3):
    asked.launches.clear()
    prepared(x)
    counts.append(len(asked.launches))
report["two-level tape"] = counts
json.dump(report, sys.stdout)
"""


@pytest.fixture(scope="module")
def report():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(here=str(Path(__file__).parent))], capture_output=True,
                          text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_call_asks_the_driver_nothing(report):
    rows = {name: row["questions"] for name, row in report.items() if isinstance(row, dict) and "questions" in row}
    assert len(rows) >= 10
    assert not any(rows.values()), rows


def test_launches_of_an_expert_phase_and_a_layer(report):
    assert report["phase 16"]["names"] == ["_place_kernel", "_wide_swiglu_kernel", "_linear_kernel", "_combine_kernel"]
    assert report["phase 1200"]["names"] == ["_count_kernel", "_place_kernel", "_wide_swiglu_kernel",
                                             "_persistent_linear_kernel", "_combine_kernel"]
    gate = ["_gate_logits_kernel", "_route_kernel"]
    for tokens in (16, 1200):
        assert report[f"layer {tokens}"]["names"] == gate + report[f"phase {tokens}"]["names"]
    assert len(report["layer 1200"]["names"]) == 7
    assert report["group_limited:8:4"]["names"] == report["layer 16"]["names"]
    assert report["two_level:8:2"]["names"] == [*gate, "_place_kernel", "_linear_kernel", "_route_kernel",
                                                *report["phase 16"]["names"]]


def test_launches_of_training(report):
    forward = ["_count_kernel", "_place_kernel", "_wide_swiglu_kernel", "_persistent_linear_kernel", "_combine_kernel"]
    backward = ["_linear_kernel", "_swiglu_grad_kernel", "_linear_kernel", "_combine_kernel", "_outer_kernel",
                "_outer_kernel"]
    assert report["training"]["names"] == forward + backward


@pytest.mark.parametrize(("pairs", "names"), [
    (16, ["_place_kernel"]), (2048, ["_place_kernel"]), (16384, ["_count_kernel", "_place_kernel"]),
    (65536, ["_count_kernel", "_sum_kernel", "_place_kernel"])])
def test_launches_of_a_plan(report, pairs, names):
    assert report[f"plan {pairs}"]["names"] == names


def test_a_tape_repeats_the_launches_it_was_made_from(report):
    assert report["tape"] == {"launches": 6, "same": True, "arguments": True, "swapped": True}
    assert report["two-level tape"] == [9, 9, 9]


@pytest.mark.parametrize("layer", [
    MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=8, top_k=2),
    MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=8, top_k=2, num_shared_experts=1),
    MoELayer(hidden_size=96, expert_intermediate_size=64, num_experts=16, top_k=4, gate=Gate.parse("two_level:4:2")),
    MoELayer(hidden_size=128, expert_intermediate_size=128, num_experts=4, top_k=2, precision=Precision.named("fp8"))],
    ids=["plain", "shared", "two-level", "fp8"])
def test_a_prepared_layer_is_the_layer(device, layer):
    weights = LayerWeights.random(layer, 0, device=device)
    prepared = prepare_layer(weights, layer)
    for seed, tokens in enumerate((5, 5, 33, 0, 5)):
        x_TH = torch.randn(tokens, layer.hidden_size, generator=torch.Generator().manual_seed(seed)).bfloat16()
        x_TH = x_TH.to(device)
        assert torch.equal(prepared(x_TH), moe_layer(x_TH, weights, layer))


def test_a_prepared_layer_refuses(device):
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=8, top_k=2)
    weights = LayerWeights.random(layer, 0, device=device)
    prepared, x_TH = prepare_layer(weights, layer), torch.zeros(4, 64, dtype=torch.bfloat16, device=device)
    for bad, message in ((x_TH[:, :32], r"x_TH: expected shape \(T, 64\)"), (x_TH.half(), "expected torch.float16"),
                         (x_TH.T.contiguous().T, "x_TH: expected a contiguous tensor")):
        with pytest.raises(ValueError, match=message):
            prepared(bad)
    with pytest.raises(ValueError, match=r"weights\.w_gate_up: expected shape"):
        prepare_layer(weights, MoELayer(hidden_size=64, expert_intermediate_size=24, num_experts=8, top_k=2))
