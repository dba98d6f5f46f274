"""What the host does for calls of the kernels, seen by `stub_driver` and printed as JSON.

Run as a process of its own, without the interpreter.
"""

import json
import re
import sys

import stub_driver
import torch
from moesim_kernels.ops.launches import launches_of
from moesim_kernels.ops.layer import LayerWeights, expert_phase, moe_layer
from moesim_kernels.ops.plan import make_plan
from moesim_kernels.ops.prepared import prepare_layer
from moesim_kernels.ops.tiny_expert import tiny_expert
from moesim_kernels.timing.bench import random_ids

from moesim.model import Gate, MoELayer, Precision

asked = stub_driver.Asked()


def seen(call):
    """The kernels that a second call launches, and what it asks the driver."""
    call()
    asked.launches.clear()
    before = asked.questions
    call()
    return {
        "names": [name for name, _, _ in asked.launches],
        "questions": asked.questions - before,
    }


def layer_of(gate, precision="bf16"):
    return MoELayer(
        hidden_size=256,
        expert_intermediate_size=128,
        num_experts=64,
        top_k=4,
        gate=Gate.parse(gate),
        precision=Precision.named(precision),
    )


def tokens_of(count):
    return torch.randn(count, 256).bfloat16()


def layers():
    report, flat = {}, layer_of("flat")
    weights = LayerWeights.random(flat, 0)
    for tokens in (16, 1200, 9000):
        x = tokens_of(tokens)
        ids, shares = random_ids(tokens, 64, 4), torch.rand(tokens, 4)
        report[f"phase {tokens}"] = seen(
            lambda x=x, ids=ids, shares=shares: expert_phase(x, ids, shares, weights)
        )
        report[f"layer {tokens}"] = seen(lambda x=x: moe_layer(x, weights, flat, checked=False))
    for gate in ("group_limited:8:4", "two_level:8:2"):
        other = layer_of(gate)
        made, x = LayerWeights.random(other, 0), tokens_of(40)
        report[gate] = seen(
            lambda x=x, made=made, other=other: moe_layer(x, made, other, checked=False)
        )
    return report


def plans():
    return {
        f"plan {pairs}": seen(lambda pairs=pairs: make_plan(random_ids(pairs, 128, 1), 128, 64))
        for pairs in (16, 2048, 65536, 131072)
    }


def waits_first(ptx):
    """Whether a kernel waits for those in front of it before it branches or touches memory."""
    step = re.compile(
        r"(griddepcontrol\.wait)|\b(?:ld|st|atom|red)\.(?!param)|\bcp\.|\bbra\b|\bret\b"
    )
    first = next(step.finditer(ptx), None)
    return first is not None and first[1] is not None


def chain():
    """Every kernel of the package's calls: whether it is launched early, and waits first."""
    calls = [train]
    for gate in ("flat", "group_limited:8:4+sigmoid+bias", "two_level:8:2", "product_key:2:32"):
        for tokens in (16, 1200):
            layer = layer_of(gate)
            weights = LayerWeights.random(layer, 0)
            calls.append(
                lambda layer=layer, weights=weights, tokens=tokens: moe_layer(
                    tokens_of(tokens), weights, layer, checked=False
                )
            )
    layer = layer_of("flat", "fp8")
    weights = LayerWeights.random(layer, 0)
    calls += [
        lambda: moe_layer(tokens_of(1200), weights, layer, checked=False),
        lambda: make_plan(random_ids(65536, 128, 1), 128, 64),
        lambda: tiny_expert(
            tokens_of(16),
            torch.zeros(64, 2, 256).bfloat16(),
            torch.zeros(64, 1, 256).bfloat16(),
            random_ids(16, 64, 4),
            torch.rand(16, 4),
            checked=False,
        ),
    ]
    launched = [launch for call in calls for launch in launches_of(call)[0]]
    kernels = {id(compiled): compiled for compiled, _, _ in launched}.values()
    return {
        "chain": [
            (kernel.metadata.name, kernel.metadata.launch_pdl, waits_first(kernel.asm["ptx"]))
            for kernel in kernels
        ]
    }


def train():
    ids, x = random_ids(900, 64, 4), tokens_of(900).requires_grad_()
    weights = LayerWeights.random(layer_of("flat"), 0)
    shares = torch.rand(900, 4).requires_grad_()
    for tensor in (weights.w_gate_up, weights.w_down):
        tensor.requires_grad_()
    expert_phase(x, ids, shares, weights).float().sum().backward()


def training():
    return {"training": seen(train)}


def plain(arg):
    return arg.data_ptr() if isinstance(arg, torch.Tensor) else arg


def tapes():
    """A tape's launches beside those of the call it was made from, with the addresses of another
    input and output.
    """
    flat = layer_of("flat")
    prepared, x = prepare_layer(LayerWeights.random(flat, 0), flat), tokens_of(16)
    asked.launches.clear()
    out = prepared(x)
    first = list(asked.launches)
    asked.launches.clear()
    y = tokens_of(16)
    again = prepared(y)
    second = list(asked.launches)
    swaps = {x.data_ptr(): y.data_ptr(), out.data_ptr(): again.data_ptr()}

    def swapped(args):
        return [swaps.get(a, a) if isinstance(a, int) else a for a in map(plain, args)]

    addresses = {a for _, _, args in second for a in map(plain, args) if isinstance(a, int)}
    report = {
        "launches": len(second),
        "same": [launch[:2] for launch in first] == [launch[:2] for launch in second],
        "arguments": all(
            swapped(one) == list(map(plain, two))
            for (_, _, one), (_, _, two) in zip(first, second, strict=True)
        ),
        "swapped": {y.data_ptr(), again.data_ptr()} <= addresses,
    }
    two_level = layer_of("two_level:8:2")
    prepared = prepare_layer(LayerWeights.random(two_level, 0), two_level)
    counts = []
    for _ in range(3):
        asked.launches.clear()
        prepared(x)
        counts.append(len(asked.launches))
    return {"tape": report, "two-level tape": counts}


if __name__ == "__main__":
    stub_driver.install(asked)
    json.dump(layers() | plans() | training() | tapes() | chain(), sys.stdout)
