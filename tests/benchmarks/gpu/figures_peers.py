"""The expert phase beside the peers that are installed, and beside what others took on an H100."""

import csv
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from figures_clock import Clock, Row, equal_weights, layer_of, tokens_of
from moesim_kernels.ops.layer import LayerWeights, expert_phase
from moesim_kernels.ops.operands import result_dtype
from moesim_kernels.ops.runtime import device as kernel_device
from moesim_kernels.ops.runtime import device_name
from moesim_kernels.timing.bench import random_ids
from moesim_kernels.timing.peers import PEERS, Operands, Peer, agrees, missing_because

#: formats of the cases of peers_h100.csv
_PRECISION = {"bf16": "bf16", "fp8_block": "fp8"}
#: FLOP/s and bytes/s of the H100 that the published rows are from: its own GEMM and stream
_H100 = (790e12, 3.0e12)
_SIZES = ("hidden_size", "expert_intermediate_size", "num_experts", "top_k")


def rates(clock: Clock) -> tuple[float, float]:
    """FLOP/s of a large bfloat16 GEMM and bytes/s of a copy on this GPU."""
    a, b = (tokens_of(8192, 8192) for _ in range(2))
    flops = 2 * 8192**3 / clock.device_us(partial(torch.mm, a, b)) * 1e6
    source, target = (torch.empty(1 << 29, dtype=torch.int8, device=a.device) for _ in range(2))
    moved = 2 * source.numel() / clock.device_us(partial(target.copy_, source)) * 1e6
    return flops, moved


def bound_us(case: dict[str, str], flops: float, moved: float) -> float:
    """Microseconds that a GPU of these rates needs at least for a case of peers_h100.csv."""
    hidden, width, num_experts, top_k = (int(case[name]) for name in _SIZES)
    pairs = int(case["num_tokens"]) * top_k
    scaled = case["dtype"] == "fp8_block"
    # An 8-bit product runs at twice the rate, an 8-bit weight is half as long.
    work = 6 * pairs * hidden * width / (flops * (2 if scaled else 1))
    weights = 3 * min(num_experts, pairs) * hidden * width * (1 if scaled else 2)
    return max(work, (weights + 4 * pairs * (hidden + width)) / moved) * 1e6


def _weights_of(case: dict[str, str]) -> int:
    return (
        int(case["hidden_size"]) * int(case["expert_intermediate_size"]) * int(case["num_experts"])
    )


@dataclass
class _Ratios:
    """Ours over the best peer, case by case."""

    found: list[float] = field(default_factory=list)
    worst: str = ""

    def add(self, ours: float, best: float, name: str, case: str) -> None:
        self.found.append(ours / best)
        if ours / best == max(self.found):
            self.worst = f"{case}: {ours:.0f} us, {name} {best:.0f}"

    def __str__(self) -> str:
        mean = statistics.geometric_mean(self.found)
        return f"{mean:.2f} / {max(self.found):.2f} ({len(self.found)} cases; worst {self.worst})"


def _published(case: dict[str, str], scale: float) -> dict[str, float]:
    return {
        name.removesuffix("_us"): float(us) * scale
        for name, us in case.items()
        if name.endswith("_us") and name != "moesim_us" and us
    }


def _timed(
    clock: Clock, here: list[Peer], operands: Operands, want_TH: torch.Tensor, said: set[str]
) -> dict[str, float]:
    """Microseconds of each peer; what goes wrong with one is said once."""
    took = {}
    for peer in here:
        try:
            call = peer.prepare(operands)
            found_TH = call()
            if peer.exact and not agrees(found_TH, want_TH):
                raise ValueError("its result differs from ours")
            took[peer.name] = clock.device_us(call)
        # Whatever somebody else's package raises is a line of the report.
        except Exception as error:
            if peer.name not in said:
                said.add(peer.name)
                reason = (str(error).strip().splitlines() or [""])[0]
                print(f"    {peer.name}: {type(error).__name__}: {reason[:150]}", flush=True)
    return took


def peers(clock: Clock, file: Path) -> Iterator[Row]:
    """The expert phase over the best peer installed here, and over the rows of the file."""
    here = [peer for peer in PEERS if missing_because(peer) is None]
    absent = [f"{p.name}: {missing_because(p)}" for p in PEERS if missing_because(p) is not None]
    yield Row(
        "peers here",
        "",
        ", ".join(f"{peer.name} {peer.version}" for peer in here)
        + "".join(f"; {line}" for line in absent),
    )
    with file.open(encoding="utf-8", newline="") as lines:
        cases = list(csv.DictReader(lines))
    flops, moved = _H100 if "H100 80GB HBM3" in device_name() else rates(clock)
    on_paper, live, said, made = _Ratios(), _Ratios(), set[str](), {}
    # Shape by shape, whose weights are made once, the small ones first.
    cases.sort(key=lambda case: (_weights_of(case), bound_us(case, flops, moved)))
    for case in cases:
        if not clock.left():
            break
        key = (*(int(case[name]) for name in _SIZES), _PRECISION[case["dtype"]])
        if key not in made:
            made = {key: LayerWeights.random(layer_of(*key), 0, device=kernel_device())}
        weights, num_tokens = made[key], int(case["num_tokens"])
        skew = 1.0 if case["routing"].startswith("zipf") else 0.0
        ids_TK = random_ids(num_tokens, key[2], key[3], skew=skew, device=kernel_device())
        x_TH = tokens_of(num_tokens, key[0], result_dtype(weights.w_gate_up))
        weights_TK = equal_weights(ids_TK)
        ours = clock.device_us(partial(expert_phase, x_TH, ids_TK, weights_TK, weights))
        label = f"{case['shape']} {case['routing']} {num_tokens} tokens"
        scale = bound_us(case, flops, moved) / bound_us(case, *_H100)
        known = _published(case, scale)
        took = {}
        if case["dtype"] == "bf16":
            operands = Operands(
                x_TH=x_TH,
                ids_TK=ids_TK,
                weights_TK=weights_TK,
                w_gate_up=weights.w_gate_up,
                w_down=weights.w_down,
            )
            took = _timed(
                clock, here, operands, expert_phase(x_TH, ids_TK, weights_TK, weights), said
            )
        for ratios, times in ((on_paper, known), (live, took)):
            if times:
                best = min(times, key=times.__getitem__)
                ratios.add(ours, times[best], best, label)
        beside = ", ".join(f"{name} {us:.0f}" for name, us in took.items())
        print(
            f"    {label}: {ours:.0f} us{'; here ' + beside if beside else ''}; "
            f"published {min(known.values(), default=0.0):.0f}",
            flush=True,
        )
    done = (
        f"; stopped after {len(on_paper.found)} of {len(cases)} cases" if not clock.left() else ""
    )
    if live.found:
        yield Row(
            "expert phase over the best peer installed here: geometric mean / worst",
            "1.00 / 1.15 (.93 / 1.05)",
            f"{live}{done}",
        )
    if on_paper.found:
        scaled = "" if (flops, moved) == _H100 else ", scaled by this GPU's GEMM and copy"
        yield Row(
            f"expert phase over an H100's best peer, published{scaled}: geometric mean / worst",
            "1.00 / 1.15 (.93 / 1.05)",
            f"{on_paper}{done}",
        )
