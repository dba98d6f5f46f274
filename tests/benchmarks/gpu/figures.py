"""The kernels' figures on the GPU at hand, beside the bars they are held to, in one run of at most
8 minutes.

``python tests/benchmarks/gpu/figures.py --out FILE.csv`` prints a table: what was timed, the bar,
and what this GPU took. Times are medians of CUDA-graph replays with L2 overwritten before each;
host times are the least of five means. Sections that would pass --seconds stop early and say so.
Peers that other programs bring (vLLM, SGLang, triton_kernels) are not started here:
``peers_h100.csv`` beside this script has what they took on an H100, and torch._grouped_mm is timed
where torch has it.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from moesim_kernels.ops.grouped_down import grouped_down
from moesim_kernels.ops.grouped_swiglu import grouped_swiglu
from moesim_kernels.ops.launches import counted_launches
from moesim_kernels.ops.layer import LayerWeights, expert_phase, gate_tokens, moe_layer
from moesim_kernels.ops.operands import result_dtype
from moesim_kernels.ops.plan import make_plan
from moesim_kernels.ops.prepared import prepare_layer
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.runtime import device_name, limits, triton_mode
from moesim_kernels.ops.tiny_expert import tiny_expert
from moesim_kernels.ops.weights import shapes
from moesim_kernels.tiles.choice import Shape, choose_tiles
from moesim_kernels.tiles.hopper import TILES
from moesim_kernels.timing.bench import random_ids
from torch.nn.functional import silu

from moesim.model import Gate, MoELayer, Precision

#: hidden size, expert width, experts, top_k
SHAPES = {
    "mixtral": (4096, 14336, 8, 2),
    "olmoe": (2048, 1024, 64, 8),
    "qwen30b": (2048, 768, 128, 8),
    "dsv3_ep8": (7168, 2048, 32, 8),
}
TOKENS, TRAIN_TOKENS, HOST_TOKENS = (16, 128, 1024, 4096), (1024, 4096, 8192), (16, 256)
PAIRS = (16384, 65536)
GATES = (
    ("flat", 64, 14),
    ("flat", 256, 18),
    ("flat", 1024, 30),
    ("group_limited:8:4", 256, 22),
    ("two_level:16:4", 256, 30),
    ("product_key:4:256", 65536, 110),
)
GATE_SIZES = (4096, 2048)
TINY_SIZES = (2**20, 1024, 128, 2048)
#: formats of the cases of peers_h100.csv
_PRECISION = {"bf16": "bf16", "fp8_block": "fp8"}


@dataclass(frozen=True)
class Row:
    """A line of the table: what was timed, the bar it is held to, and the figure found here."""

    what: str
    bar: str
    here: str


class Clock:
    """Times calls on a GPU, and knows when the run must end."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.cache = torch.empty(256 << 20, dtype=torch.int8, device=kernel_device())

    def left(self) -> bool:
        """Whether there is time for another case."""
        return time.monotonic() < self.end

    def device_us(self, call: Callable[[], object], repeats: int = 9) -> float:
        """Median microseconds of a call in a CUDA graph with a cold L2."""
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        times = []
        for _ in range(repeats):
            self.cache.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        return statistics.median(times[1:])

    def eager_us(self, call: Callable[[], object], repeats: int = 5) -> float:
        """Median microseconds of a call that runs kernel by kernel, with a cold L2: what has no
        graph, as training.
        """
        call()
        times = []
        for _ in range(repeats):
            self.cache.zero_()
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e6)
        return statistics.median(times)

    def host_us(self, call: Callable[[], object], repeats: int = 40) -> float:
        """Microseconds until a call returns, whatever the GPU does: the least of five means."""
        means = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            means.append((time.perf_counter() - start) / repeats * 1e6)
        torch.cuda.synchronize()
        return min(means)


def _layer(
    hidden: int, width: int, num_experts: int, top_k: int, precision: str = "bf16"
) -> MoELayer:
    return MoELayer(
        hidden_size=hidden,
        expert_intermediate_size=width,
        num_experts=num_experts,
        top_k=top_k,
        precision=Precision.named(precision),
    )


def _tokens(num_tokens: int, hidden: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(num_tokens, hidden, dtype=dtype, device=kernel_device())


def _grouped_mm() -> Callable[..., torch.Tensor] | None:
    return getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def _by_torch(
    x_TH: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    w_gate_up: torch.Tensor,
    w_down: torch.Tensor,
) -> torch.Tensor:
    """The expert phase by torch's grouped GEMM; differentiable."""
    multiply = _grouped_mm()
    assert multiply is not None
    order_P = ids_TK.flatten().argsort(stable=True)
    ends_E = (
        torch.zeros(len(w_down), dtype=torch.int32, device=x_TH.device)
        .scatter_add_(0, ids_TK.flatten().long(), torch.ones_like(ids_TK).flatten())
        .cumsum(0)
        .int()
    )
    gate, up = multiply(x_TH[order_P // ids_TK.shape[1]], w_gate_up.mT, offs=ends_E).chunk(2, dim=1)
    y_PH = multiply(silu(gate) * up, w_down.mT, offs=ends_E) * weights_TK.flatten()[
        order_P, None
    ].to(x_TH.dtype)
    return torch.zeros_like(x_TH).index_add(0, order_P // ids_TK.shape[1], y_PH)


def peers(clock: Clock, file: Path) -> Iterator[Row]:
    """The expert phase over the best peer of the file, and over torch's grouped GEMM here."""
    ratios, over_torch, slowest, made = [], [], "", {}
    with file.open(encoding="utf-8", newline="") as lines:
        cases = list(csv.DictReader(lines))
    for case in cases:
        if not clock.left():
            yield Row(
                "expert phase over peers", "", f"stopped after {len(ratios)} of {len(cases)} cases"
            )
            break
        sizes = tuple(
            int(case[name])
            for name in ("hidden_size", "expert_intermediate_size", "num_experts", "top_k")
        )
        layer, num_tokens = _layer(*sizes, _PRECISION[case["dtype"]]), int(case["num_tokens"])
        if made.get("layer") != layer:
            made = {"layer": layer, "weights": None}
            made["weights"] = LayerWeights.random(layer, 0, device=kernel_device())
        weights = made["weights"]
        ids_TK = random_ids(
            num_tokens,
            layer.num_experts,
            layer.top_k,
            skew=1.0 if case["routing"].startswith("zipf") else 0.0,
            device=kernel_device(),
        )
        x_TH = _tokens(num_tokens, layer.hidden_size, result_dtype(weights.w_gate_up))
        weights_TK = torch.full(ids_TK.shape, 1 / layer.top_k, device=kernel_device())
        ours = clock.device_us(partial(expert_phase, x_TH, ids_TK, weights_TK, weights))
        best = min(
            float(us)
            for name, us in case.items()
            if name.endswith("_us") and name != "moesim_us" and us
        )
        ratios.append(ours / best)
        if ours / best == max(ratios):
            slowest = (
                f"{case['shape']} {case['routing']} {num_tokens} tokens: {ours:.0f} us, "
                f"peer {best:.0f}"
            )
        if case["dtype"] == "bf16" and _grouped_mm() is not None:
            theirs = partial(_by_torch, x_TH, ids_TK, weights_TK, weights.w_gate_up, weights.w_down)
            over_torch.append(ours / clock.device_us(theirs))
    if ratios:
        yield Row(
            "expert phase over the best peer of an H100: geometric mean / worst",
            "1.00 / 1.15 on an H100",
            f"{statistics.geometric_mean(ratios):.2f} / {max(ratios):.2f} ({len(ratios)} cases; "
            f"{slowest})",
        )
    if over_torch:
        yield Row(
            "expert phase over torch's grouped GEMM here: geometric mean / worst",
            "",
            f"{statistics.geometric_mean(over_torch):.2f} / {max(over_torch):.2f}",
        )


def regret(clock: Clock) -> Iterator[Row]:
    """What the tiles chosen by default cost over the best of those timed here."""
    found: list[float] = []
    for hidden, width, num_experts, top_k in SHAPES.values():
        weights = LayerWeights.random(
            _layer(hidden, width, num_experts, top_k), 0, device=kernel_device()
        )
        shape = Shape(
            num_experts=num_experts,
            top_k=top_k,
            hidden_size=hidden,
            expert_intermediate_size=width,
            dtype="bfloat16",
            operand_bits=16,
        )
        for num_tokens in TOKENS:
            if not clock.left():
                break
            default = choose_tiles(device_name(), shape, num_tokens, limits())
            ids_TK = random_ids(num_tokens, num_experts, top_k, device=kernel_device())
            x_TH, act_PI = _tokens(num_tokens, hidden), _tokens(ids_TK.numel(), width)
            times: dict[str, list[float]] = {"up": [], "down": []}
            for up, down in (default, *TILES.values()):
                plan = make_plan(ids_TK, num_experts, up.block_m)
                times["up"].append(
                    clock.device_us(partial(grouped_swiglu, x_TH, weights.w_gate_up, plan, up), 5)
                )
                times["down"].append(
                    clock.device_us(partial(grouped_down, act_PI, weights.w_down, plan, down), 5)
                )
            found += [us[0] / min(us) - 1 for us in times.values()]
    if found:
        yield Row(
            "of the best tile timed, as chosen by default: mean regret / worst",
            "3 / 15 %",
            f"{100 * statistics.mean(found):.1f} / {100 * max(found):.0f} % ({len(found)} GEMMs)",
        )


def host(clock: Clock) -> Iterator[Row]:
    """Host time of eager and prepared calls, and the launches of a layer."""
    layer = _layer(*SHAPES["olmoe"])
    weights = LayerWeights.random(layer, 0, device=kernel_device())
    prepared = prepare_layer(weights, layer)
    for num_tokens in HOST_TOKENS:
        x_TH, ids_TK = (
            _tokens(num_tokens, layer.hidden_size),
            random_ids(num_tokens, layer.num_experts, layer.top_k, device=kernel_device()),
        )
        weights_TK = torch.full(ids_TK.shape, 1 / layer.top_k, device=kernel_device())
        calls = (
            partial(expert_phase, x_TH, ids_TK, weights_TK, weights),
            partial(moe_layer, x_TH, weights, layer, checked=False),
            partial(prepared, x_TH),
        )
        for call in calls:
            call()
        yield Row(
            f"host time per eager expert_phase / moe_layer / prepared layer, {num_tokens} tokens",
            "150 / 250 / 60 us",
            " / ".join(f"{clock.host_us(call):.0f}" for call in calls) + " us",
        )
        yield Row(
            f"device kernels of a layer, flat gate, {num_tokens} tokens",
            "7",
            str(counted_launches(calls[1])),
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
            else _tokens(1, 1).new_empty(shape).normal_(0, shape[-1] ** -0.5)
            for name, shape in shapes(layer).items()
        }
        weights, x_TH = LayerWeights(**keys), _tokens(num_tokens, hidden)
        us = clock.device_us(partial(gate_tokens, x_TH, layer.gate, weights, layer.top_k))
        yield Row(
            f"gate {kind}, {num_experts:,} experts, {num_tokens:,} tokens of {hidden}",
            f"{bar} us",
            f"{us:.1f} us",
        )


def _step(
    forward: Callable[[], torch.Tensor], tensors: tuple[torch.Tensor, ...], grad_TH: torch.Tensor
) -> None:
    torch.autograd.grad(forward(), tensors, grad_TH)


def training(clock: Clock) -> Iterator[Row]:
    """Forward and backward over torch's grouped GEMM."""
    ratios: dict[str, float] = {}
    for name, sizes in SHAPES.items():
        hidden, _, num_experts, top_k = sizes
        weights = LayerWeights.random(_layer(*sizes), 0, device=kernel_device())
        w_gate_up, w_down = (w.requires_grad_() for w in (weights.w_gate_up, weights.w_down))
        for num_tokens in TRAIN_TOKENS:
            if not clock.left() or _grouped_mm() is None:
                break
            x_TH = _tokens(num_tokens, hidden).requires_grad_()
            ids_TK = random_ids(num_tokens, num_experts, top_k, device=kernel_device())
            weights_TK = torch.full(
                ids_TK.shape, 1 / top_k, device=kernel_device(), requires_grad=True
            )
            grad_TH = _tokens(num_tokens, hidden)

            tensors = (x_TH, weights_TK, w_gate_up, w_down)
            ours = partial(expert_phase, x_TH, ids_TK, weights_TK, weights)
            theirs = partial(_by_torch, x_TH, ids_TK, weights_TK, w_gate_up, w_down)
            took = [
                clock.eager_us(partial(_step, forward, tensors, grad_TH))
                for forward in (ours, theirs)
            ]
            ratios[f"{name} {num_tokens}"] = took[0] / took[1]
    if ratios:
        yield Row(
            "forward and backward over torch's grouped GEMM",
            "<= 1.0 each, mean .8",
            f"mean {statistics.mean(ratios.values()):.2f}: "
            + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()),
        )


def tiny(clock: Clock) -> Iterator[Row]:
    """Bytes per second of experts of one neuron."""
    num_experts, hidden, top_k, num_tokens = TINY_SIZES
    w_in = _tokens(num_experts * 2, hidden).view(num_experts, 2, hidden)
    w_out, x_TH = (
        _tokens(num_experts, hidden).view(num_experts, 1, hidden),
        _tokens(num_tokens, hidden),
    )
    ids_TK = torch.randint(
        num_experts, (num_tokens, top_k), dtype=torch.int32, device=kernel_device()
    )
    weights_TK = torch.rand(num_tokens, top_k, device=kernel_device())
    us = clock.device_us(partial(tiny_expert, x_TH, w_in, w_out, ids_TK, weights_TK, checked=False))
    rate = num_tokens * top_k * 3 * hidden * 2 / us / 1e6
    yield Row(
        f"tiny_expert, {num_tokens:,} tokens x {top_k} experts of {num_experts:,}",
        "2.4 TB/s",
        f"{rate:.2f} TB/s",
    )


def table(clock: Clock, file: Path) -> Iterator[Row]:
    """Every line, the cheap ones first."""
    for section in (host, plans, gates, tiny, lambda clock: peers(clock, file), training, regret):
        if clock.left():
            yield from section(clock)


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=440.0, help="stop starting cases after so long"
    )
    parser.add_argument("--peers", type=Path, default=Path(__file__).with_name("peers_h100.csv"))
    parser.add_argument("--out", type=Path, help="CSV file")
    options = parser.parse_args()
    if triton_mode() != "gpu":
        print("error: these figures need a GPU with an active Triton driver")
        return 2
    print(f"{device_name()}, torch {torch.__version__}", flush=True)
    rows = []
    for row in table(Clock(options.seconds), options.peers):
        rows.append(row)
        print(f"{row.what}\n    bar {row.bar or '-'}; here {row.here}", flush=True)
    if options.out is not None:
        with options.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("device", "what", "bar", "here"))
            writer.writerows((device_name(), row.what, row.bar, row.here) for row in rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
