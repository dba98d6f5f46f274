"""Which gate to build for how many experts: flat, group-limited, two-level and product key, from 8 to 1,048,576
experts.

Gate times are simulated on an H100 and on this machine's CPU, and measured on the CPU: the same torch code that a layer
there uses, one thread, caches flushed (`moesim_kernels.cpu_layer`). The profile of the CPU is measured first, from
stand-alone primitives and never from a gate; ``--profile`` takes one that `moesim measure` wrote. A layer around the
gate, whose experts are together as wide whatever their number, tells the gate's share of the layer's time.

Writes gates.csv (a row per device, size and gate), summary.csv (error on the CPU by gate), pairs.csv (how often the
faster of two gates is named right), and pages that need no network: gate_time.html, gate_share.html and
simulated_against_measured.html.
"""

import math
from collections.abc import Iterator
from itertools import combinations, groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from moesim import Candidate, Gate, MoELayer, Precision, Profile, Workload, load_profile, simulate
from moesim.cli import run_command
from moesim.costs.gate import price_gate
from moesim.costs.primitives import kernels_for
from moesim.costs.serial import phase_intervals
from moesim.errors import ConfigError
from moesim.measured.scores import error_scores
from moesim.quality.gates import gate_delta
from moesim.report import write_csv
from moesim.report.gate_plots import gate_shares, gate_times, simulated_against_measured
from moesim.report.plots import write_html
from moesim.report.terminal import print_table, say
from moesim.topology import single_device
from moesim.units import US
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "gating_hierarchy"
EXPERTS = (8, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
#: hidden size, tokens, top_k, and width of all experts together
H100_CASES = ((4096, 256, 8, 1 << 18), (4096, 4096, 8, 1 << 18), (7168, 4096, 8, 1 << 18))
CPU_CASES = ((256, 64, 2, 1 << 14), (512, 256, 8, 1 << 14), (1024, 128, 4, 1 << 14), (256, 1024, 1, 1 << 14),
             (128, 512, 16, 1 << 14))
#: what a measured gate may hold: bytes of keys, bytes of logits
KEY_BYTES, LOGIT_BYTES = 640e6, 160e6
#: gates whose measured times differ by less are ties
TIE = 0.05
SCORES = {"gate": "gate", "points": "points", "median": "median %", "mape": "MAPE %", "p90": "P90 %", "bias": "bias %"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def gates_for(num_experts: int, top_k: int) -> Iterator[Gate]:
    """Gates that can choose among so many experts."""
    side = 1 << (num_experts.bit_length() // 2)
    limited = "group_limited:8:4" if num_experts >= 64 else "group_limited:2:1"
    level = f"two_level:{side}:{min(4, side // 2)}"
    for text in ("flat", limited, level, "product_key:1:256", "product_key:4:128"):
        gate = Gate.parse(text)
        square = math.isqrt(num_experts) ** 2 == num_experts
        kept = gate.num_limited_groups * (num_experts // gate.num_expert_groups)
        if kept >= top_k and (square or gate.kind != "product_key"):
            yield gate


def layers(cases: tuple, experts: tuple[int, ...], fmt: str) -> Iterator[tuple[MoELayer, int]]:
    """Layers and their tokens: every gate of every case and number of experts."""
    for num_experts in experts:
        for hidden, tokens, top_k, width in cases:
            chosen = min(top_k, max(num_experts // 4, 1))
            for gate in gates_for(num_experts, chosen):
                yield MoELayer(hidden_size=hidden, expert_intermediate_size=max(width // num_experts, 16), top_k=chosen,
                               num_experts=num_experts, gate=gate, precision=Precision.named(fmt)), tokens


def measurable(layer: MoELayer, tokens: int) -> bool:
    """Whether keys and logits stay within what this study spends on one gate."""
    gate, experts = layer.gate, layer.num_experts
    logits = experts if gate.kind in ("flat", "group_limited") else math.isqrt(experts)
    keys = gate.params(layer.hidden_size, experts) * 2.0
    return keys <= (LOGIT_BYTES if logits == experts else KEY_BYTES) and 4.0 * tokens * logits <= LOGIT_BYTES


def simulated_row(profile: Profile, layer: MoELayer, tokens: int) -> dict[str, Any]:
    """Gate and layer of one device, simulated."""
    gate_us = float(price_gate(kernels_for(profile), layer, np.array([tokens])).solo_s_D()[0]) / US
    result = simulate(Candidate(layer=layer), single_device(profile), Workload(num_tokens_per_device=tokens))
    delta = gate_delta(layer.gate)
    return {"device": profile.name, "num_experts": layer.num_experts, "hidden_size": layer.hidden_size,
            "tokens": tokens,
            "top_k": layer.top_k, "gate": str(layer.gate), "kind": layer.gate.kind, "gate_us": gate_us,
            "layer_us": result.layer_time_s / US, "gate_share": gate_us * US / result.layer_time_s,
            "gate_params": layer.gate_params, "gate_loss_delta": delta.nats, "gate_loss_delta_low": delta.low,
            "gate_loss_delta_high": delta.high, "gate_loss_unknown": delta.unknown, "calibration": result.calibration,
            "profile_hash": result.profile_hash}


def measured_rows(profile: Profile, experts: tuple[int, ...], cases: tuple, seconds: float) -> list[dict[str, Any]]:
    """Gates on this CPU, simulated and measured."""
    from moesim_kernels.cpu_layer import Sentinel, measuring, time_gate
    from moesim_kernels.cpu_primitives import DTYPES

    fmt = max(DTYPES, key=profile.peak)
    low, high = phase_intervals(profile, fmt, fmt).get("gate", (1.0, 1.0))
    with measuring():
        sentinel = Sentinel()
    rows = []
    for layer, tokens in layers(cases, experts, "bf16"):
        if not measurable(layer, tokens):
            continue
        row = simulated_row(profile, layer, tokens)
        timing = time_gate(layer, tokens, DTYPES[fmt], seconds=seconds, sentinel=sentinel)
        spread = timing.phases["total"]
        rows.append(row | {"gate_low_us": row["gate_us"] * low, "gate_high_us": row["gate_us"] * high,
                           "measured_us": spread.p10_s / US, "measured_median_us": spread.median_s / US,
                           "error_percent": 100.0 * (row["gate_us"] * US / spread.p10_s - 1.0),
                           "repeats": timing.repeats, "contended": timing.contended})
    return rows


def scores(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Errors by kind of gate, and of all."""
    kinds = sorted({row["kind"] for row in rows})
    parts = [("all", rows), *((kind, [row for row in rows if row["kind"] == kind]) for kind in kinds)]
    return [{"gate": name, "points": len(part),
             **error_scores(np.array([r["gate_us"] for r in part]), np.array([r["measured_us"] for r in part]))}
            for name, part in parts]


def named_right(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pairs of gates for the same layer and tokens, and how many of them the simulation orders as measured."""
    def size(row: dict[str, Any]) -> tuple:
        return row["num_experts"], row["hidden_size"], row["tokens"], row["top_k"]

    right = pairs = ties = 0
    for _, group in groupby(sorted(rows, key=size), key=size):
        for one, two in combinations(list(group), 2):
            if abs(math.log(one["measured_us"] / two["measured_us"])) < TIE:
                ties += 1
                continue
            pairs += 1
            right += (one["gate_us"] < two["gate_us"]) == (one["measured_us"] < two["measured_us"])
    return {"pairs": pairs, "right": right, "right_percent": 100.0 * right / max(pairs, 1), "ties": ties}


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
    device: Annotated[str, typer.Option(help="Device profile simulated beside this CPU.")] = "h100-sxm",
    profile: Annotated[str | None, typer.Option(help="Profile of this CPU; default: measured now.")] = None,
    seconds: Annotated[float, typer.Option(help="For the CPU's profile.", min=0.5)] = 30.0,
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes, for a test.")] = False,
) -> None:
    """Simulate and measure gates over the number of experts."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot write to this output folder: {error.strerror}") from None
    experts, cpu_cases, gpu_cases = (((64, 4096), CPU_CASES[:1], H100_CASES[:1]) if quick
                                     else (EXPERTS, CPU_CASES, H100_CASES))
    gpu = load_profile(device)
    if profile is None:
        from moesim_kernels.cpu_source import local_profile

        say(f"measuring this CPU, about {seconds:.0f} s")
        cpu, _ = local_profile(seconds)
    else:
        cpu = load_profile(profile)
    if cpu.execution != "serial":
        raise ConfigError(f"--profile: expected a profile of a CPU, got {cpu.name}, whose execution is {cpu.execution}")
    common = {"evidence": "simulated", "version": VERSION}
    rows = [simulated_row(gpu, layer, tokens) | common for layer, tokens in layers(gpu_cases, experts, "bf16")]
    say(f"simulated {len(rows)} gates on {gpu.name}; measuring gates on this CPU")
    measured = [row | common for row in measured_rows(cpu, experts, cpu_cases, 0.02 if quick else 0.05)]
    table, order = scores(measured), named_right(measured)
    columns = list(measured[0])
    write_csv(out / "gates.csv", [dict.fromkeys(columns) | row for row in [*rows, *measured]], columns)
    write_csv(out / "summary.csv", [row | {"version": VERSION} for row in table])
    write_csv(out / "pairs.csv", [order | {"version": VERSION}])
    write_html(out / "gate_time.html", gate_times([*rows, *measured]))
    write_html(out / "gate_share.html", gate_shares([*rows, *measured]))
    write_html(out / "simulated_against_measured.html", simulated_against_measured(measured))
    print_table(f"Gates on this CPU: simulated against measured, {len(measured)} points", table, SCORES)
    print(f"the faster gate named right in {order['right']} of {order['pairs']} pairs ({order['right_percent']:.1f} "
          f"%), {order['ties']} ties within {100 * TIE:.0f} %")
    if sum(row["contended"] for row in measured) > len(measured) / 10:
        say("contended: something else slowed the machine down meanwhile; run again when it is idle")
    say(f"wrote {out}/gates.csv, summary.csv, pairs.csv and *.html")


if __name__ == "__main__":
    run_command(app)
