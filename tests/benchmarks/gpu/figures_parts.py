"""What the table of figures times of moesim's own kernels, a function for each part of it."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from figures_clock import Clock, Row, equal_weights, layer_of, tokens_of
from moesim_kernels.ops.gates import gate_tokens
from moesim_kernels.ops.launches import counted_launches
from moesim_kernels.ops.layer import LayerWeights, expert_phase, expert_phase_reference, moe_layer
from moesim_kernels.ops.plan import make_plan
from moesim_kernels.ops.prepared import prepare_layer
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.tiny_expert import tiny_expert
from moesim_kernels.ops.weights import shapes
from moesim_kernels.timing.bench import random_ids
from moesim_kernels.timing.peers import PEERS, Operands, missing_because

from moesim.model import Gate, MoELayer

#: hidden size, expert width, experts, top_k
SHAPES = {
    "olmoe": (2048, 1024, 64, 8),
    "qwen30b": (2048, 768, 128, 8),
    "mixtral": (4096, 14336, 8, 2),
    "dsv3_ep8": (7168, 2048, 32, 8),
}
TOKENS, TRAIN_TOKENS = (16, 128, 1024, 4096), (1024, 4096, 8192)
HOST_TOKENS, LAYER_TOKENS = (16, 256), (16, 1024, 16384)
PAIRS = (16384, 65536)
#: kind, experts, bar in microseconds
GATES = (
    ("flat", 64, 14),
    ("flat", 256, 18),
    ("flat", 1024, 30),
    ("group_limited:8:4", 256, 22),
    ("two_level:16:4", 256, 30),
    ("product_key:4:256", 65536, 110),
)
#: hidden size and tokens of the gates; experts, hidden size, top_k and tokens of tiny experts
GATE_SIZES, TINY_SIZES = (4096, 2048), (2**20, 1024, 128, 2048)


def right(clock: Clock) -> Iterator[Row]:
    """Whether the kernels compute what their references do, before anything is timed."""
    hidden, width, num_experts, top_k = SHAPES["olmoe"]
    layer = layer_of(hidden, width, num_experts, top_k)
    weights = LayerWeights.random(layer, 0, device=kernel_device())
    worst = 0.0
    for num_tokens in TOKENS[:3]:
        x_TH = tokens_of(num_tokens, hidden)
        ids_TK = random_ids(num_tokens, num_experts, top_k, device=kernel_device())
        operands = (x_TH, ids_TK, equal_weights(ids_TK), weights)
        found, want = expert_phase(*operands).float(), expert_phase_reference(*operands).float()
        worst = max(worst, float((found - want).abs().max() / want.abs().max()))
    clock.wait()
    yield Row("largest error of an expert phase, of the largest number", ".02", f"{worst:.4f}")


def host(clock: Clock) -> Iterator[Row]:
    """Host time of eager and prepared calls, and the launches of a layer."""
    layer = layer_of(*SHAPES["olmoe"])
    weights = LayerWeights.random(layer, 0, device=kernel_device())
    prepared = prepare_layer(weights, layer)
    for num_tokens in HOST_TOKENS:
        x_TH = tokens_of(num_tokens, layer.hidden_size)
        ids_TK = random_ids(num_tokens, layer.num_experts, layer.top_k, device=kernel_device())
        calls = (
            partial(expert_phase, x_TH, ids_TK, equal_weights(ids_TK), weights),
            partial(moe_layer, x_TH, weights, layer, checked="later"),
            partial(prepared, x_TH),
        )
        yield Row(
            f"host time per eager expert_phase / moe_layer / prepared layer, {num_tokens} tokens",
            "150 / 250 / 60 us",
            " / ".join(f"{clock.host_us(call):.0f}" for call in calls) + " us",
        )
    counts = []
    for num_tokens in LAYER_TOKENS:
        call = partial(
            moe_layer, tokens_of(num_tokens, layer.hidden_size), weights, layer, checked=False
        )
        call()
        counts.append(str(counted_launches(call)))
    yield Row(
        "device kernels of a layer, flat gate, "
        f"{' / '.join(f'{count:,}' for count in LAYER_TOKENS)} tokens",
        "7 (5)",
        " / ".join(counts),
    )


def plans(clock: Clock) -> Iterator[Row]:
    """Device time of the plan."""
    took = [
        clock.device_us(
            partial(make_plan, random_ids(pairs // 8, 128, 8, device=kernel_device()), 128, 128)
        )
        for pairs in PAIRS
    ]
    yield Row(
        f"plan at {' / '.join(f'{pairs:,}' for pairs in PAIRS)} pairs",
        "8 / 15 us",
        " / ".join(f"{us:.1f}" for us in took) + " us",
    )


def gates(clock: Clock) -> Iterator[Row]:
    """Device time of the gates."""
    hidden, num_tokens = GATE_SIZES
    for kind, num_experts, bar in GATES:
        layer = MoELayer(
            hidden_size=hidden,
            expert_intermediate_size=1,
            num_experts=num_experts,
            top_k=8,
            gate=Gate.parse(kind),
        )
        keys = {
            name: None
            if shape is None or name in ("w_gate_up", "w_down")
            else tokens_of(1, 1).new_empty(shape).normal_(0, shape[-1] ** -0.5)
            for name, shape in shapes(layer).items()
        }
        weights, x_TH = LayerWeights(**keys), tokens_of(num_tokens, hidden)
        us = clock.device_us(partial(gate_tokens, x_TH, layer.gate, weights, layer.top_k))
        yield Row(
            f"gate {kind}, {num_experts:,} experts, {num_tokens:,} tokens of {hidden}",
            f"{bar} us",
            f"{us:.1f} us",
        )


def tiny(clock: Clock) -> Iterator[Row]:
    """Bytes per second of experts of one neuron."""
    num_experts, hidden, top_k, num_tokens = TINY_SIZES
    w_in = tokens_of(num_experts * 2, hidden).view(num_experts, 2, hidden)
    w_out, x_TH = (
        tokens_of(num_experts, hidden).view(num_experts, 1, hidden),
        tokens_of(num_tokens, hidden),
    )
    ids_TK = torch.randint(
        num_experts, (num_tokens, top_k), dtype=torch.int32, device=kernel_device()
    )
    weights_TK = torch.rand(num_tokens, top_k, device=kernel_device())
    us = clock.device_us(partial(tiny_expert, x_TH, w_in, w_out, ids_TK, weights_TK, checked=False))
    yield Row(
        f"tiny_expert, {num_tokens:,} tokens x {top_k} experts of {num_experts:,}",
        "2.4 TB/s",
        f"{num_tokens * top_k * 3 * hidden * 2 / us / 1e6:.2f} TB/s",
    )


def _step(
    forward: Callable[[], torch.Tensor], tensors: tuple[torch.Tensor, ...], grad_TH: torch.Tensor
) -> None:
    torch.autograd.grad(forward(), tensors, grad_TH)


def training(clock: Clock) -> Iterator[Row]:
    """Forward and backward over torch's grouped GEMM."""
    [torchs] = [peer for peer in PEERS if peer.name == "torch._grouped_mm"]
    ratios: dict[str, float] = {}
    why = missing_because(torchs)
    for name, sizes in SHAPES.items():
        hidden, _, num_experts, top_k = sizes
        if not clock.left() or why is not None:
            break
        weights = LayerWeights.random(layer_of(*sizes), 0, device=kernel_device())
        w_gate_up, w_down = (w.requires_grad_() for w in (weights.w_gate_up, weights.w_down))
        for num_tokens in TRAIN_TOKENS:
            if not clock.left():
                break
            x_TH = tokens_of(num_tokens, hidden).requires_grad_()
            ids_TK = random_ids(num_tokens, num_experts, top_k, device=kernel_device())
            weights_TK = equal_weights(ids_TK).requires_grad_()
            operands = Operands(
                x_TH=x_TH, ids_TK=ids_TK, weights_TK=weights_TK, w_gate_up=w_gate_up, w_down=w_down
            )
            took = [
                clock.eager_us(
                    partial(
                        _step,
                        forward,
                        (x_TH, weights_TK, w_gate_up, w_down),
                        tokens_of(num_tokens, hidden),
                    )
                )
                for forward in (
                    partial(expert_phase, x_TH, ids_TK, weights_TK, weights),
                    torchs.prepare(operands),
                )
            ]
            ratios[f"{name} {num_tokens}"] = took[0] / took[1]
            print(
                f"    {name} {num_tokens} tokens: {took[0]:.0f} us, torch {took[1]:.0f}", flush=True
            )
    yield Row(
        "forward and backward over torch._grouped_mm's autograd: mean / worst",
        "<= 1.0 each (.8 mean)",
        why
        or f"{statistics.mean(ratios.values()):.2f} / {max(ratios.values()):.2f}: "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()),
    )
