"""The closed loop on any machine: measure this CPU, predict layers it has never run, run them, and say how far off.

A profile of primitives is measured in about 20 seconds, fitted to no layer. Then random layers (sizes, gates, routing
all drawn) are simulated on it *before* they run for real, one thread, caches flushed between repeats. Beside the error:
that of a roofline of the same measured peaks, the rank correlation, and how often the best of eight is named right.
All-to-alls between two processes (gloo) are measured again, at sizes between those of the profile, and compared.

Writes layers.csv (a row per layer), alltoall.csv, summary.csv and simulated_against_measured.html. A machine that was
disturbed is reported, never failed on.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from moesim import Candidate, Gate, MoELayer, Precision, Profile, Workload, load_profile, simulate
from moesim.cli import run_script
from moesim.errors import MeasurementError
from moesim.measured.scores import error_scores, ranking
from moesim.report import write_csv
from moesim.report.plots import write_html
from moesim.report.terminal import print_table, say
from moesim.simulate import batches_of
from moesim.topology import single_device
from moesim.units import US
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "check_local"
#: largest layer, in multiply-adds and bytes of weights: what one core runs in a tenth of a second
_WORK, _WEIGHTS = 2e10, 256e6
_BEST_OF, _DRAWS = 8, 400
_SIZES = tuple(3 << exponent for exponent in range(10, 20))  # between the profile's powers of two


def random_layer(rng: np.random.Generator, fmt: str) -> tuple[MoELayer, Workload]:
    """A layer and a load that nobody chose."""
    while True:
        experts = int(2 ** rng.integers(2, 9))
        top_k = int(rng.choice([k for k in (1, 2, 4, 8) if k <= experts]))
        hidden, width = (int(64 * rng.integers(2, 17)) for _ in range(2))
        tokens = int(2 ** rng.uniform(4, 11))
        kind = str(rng.choice(["flat", "two_level:4:2"])) if experts >= 16 and top_k <= experts // 4 else "flat"
        layer = MoELayer(hidden_size=hidden, expert_intermediate_size=width, num_experts=experts, top_k=top_k,
                         gate=Gate.parse(kind), precision=Precision(weights=fmt, activations=fmt, dispatch=fmt,
                                                                    combine=fmt))
        if tokens * top_k * layer.params_per_expert < _WORK and experts * layer.bytes_per_expert < _WEIGHTS:
            routing = str(rng.choice(["uniform", "zipf:0.8", "power_law:1.2"]))
            return layer, Workload(num_tokens_per_device=tokens, routing=routing, seed=int(rng.integers(1 << 16)))


def roofline_s(layer: MoELayer, active_experts: int, tokens: int, profile: Profile) -> float:
    """The usual estimate from the same peaks: the larger of FLOPs over peak and weight bytes over bandwidth."""
    fmt = layer.precision.activations
    flops = 2.0 * tokens * (layer.top_k * layer.params_per_expert + layer.gate_params)
    num_bytes = active_experts * layer.bytes_per_expert
    return max(flops / profile.peak(fmt), num_bytes / profile.hbm_bandwidth_bytes_per_s)


def layer_rows(profile: Profile, sentinel: Any, num_layers: int, seed: int) -> list[dict[str, Any]]:
    """Predict each layer, then run it."""
    from moesim_kernels.cpu_layer import time_layer
    from moesim_kernels.cpu_primitives import DTYPES

    from moesim.routing import RoutingSpec, route

    rng = np.random.default_rng(seed)
    formats = [fmt for fmt in DTYPES if fmt in profile.peak_flops_per_s]
    rows = []
    for number in range(num_layers):
        fmt = formats[number % len(formats)]
        layer, work = random_layer(rng, fmt)
        cluster, candidate = single_device(profile), Candidate(layer=layer)
        result = simulate(candidate, cluster, work)
        _, (traffic,) = batches_of(candidate, cluster, work)
        routing = route(RoutingSpec.parse(work.routing), layer.gate, num_experts=layer.num_experts, top_k=layer.top_k,
                        num_tokens_S=np.array([work.num_tokens_per_device]), seed=work.seed)
        timing = time_layer(layer, routing.expert_ids_TK, DTYPES[fmt], sentinel=sentinel, seed=work.seed)
        measured = timing.phases["total"]
        plain = roofline_s(layer, int((traffic.counts_DL > 0).sum()), work.num_tokens_per_device, profile)
        rows.append({
            "layer": number, "num_tokens": work.num_tokens_per_device, "num_experts": layer.num_experts,
            "top_k": layer.top_k, "hidden_size": layer.hidden_size,
            "expert_intermediate_size": layer.expert_intermediate_size, "gate": str(layer.gate), "precision": fmt,
            "routing": work.routing, "simulated_us": result.layer_time_s / US,
            "simulated_low_us": result.layer_time_low_s / US, "simulated_high_us": result.layer_time_high_s / US,
            "measured_us": measured.p10_s / US, "measured_p90_us": measured.p90_s / US, "roofline_us": plain / US,
            "error_percent": 100 * (result.layer_time_s / measured.p10_s - 1), "contended": timing.contended,
            "evidence": "measured", "calibration": result.calibration, "seed": work.seed, "version": VERSION})
    return rows


def alltoall_rows(profile: Profile) -> list[dict[str, Any]]:
    """All-to-alls of two processes, at sizes that the profile's fit has not seen; none where they cannot run."""
    from moesim_kernels.host_fabric import measure_gloo

    fabric = profile.host_fabric
    if fabric is None:
        return []
    try:
        found = measure_gloo(2, sizes=_SIZES)
    except MeasurementError as error:
        say(f"all-to-alls: not here ({error})")
        return []
    rows = []
    for point in found:
        simulated = fabric.start_s + (point.ranks - 1) * point.bytes_per_pair / fabric.port_bytes_per_s
        measured = float(np.quantile(point.seconds, 0.1))
        rows.append({"ranks": point.ranks, "bytes_per_pair": point.bytes_per_pair, "simulated_us": simulated / US,
                     "measured_us": measured / US, "error_percent": 100 * (simulated / measured - 1),
                     "evidence": "measured", "version": VERSION})
    return rows


def best_of_regret(rows: list[dict[str, Any]], seed: int) -> float:
    """Mean regret, in percent of time per multiply-add, of the layer that simulation calls best of eight."""
    rng = np.random.default_rng(seed)
    work = np.array([row["num_tokens"] * row["top_k"] * row["hidden_size"] * row["expert_intermediate_size"]
                     for row in rows], dtype=np.float64)
    simulated, measured = (np.array([row[name] for row in rows]) / work for name in ("simulated_us", "measured_us"))
    regrets = []
    for _ in range(_DRAWS):
        among = rng.choice(len(rows), min(_BEST_OF, len(rows)), replace=False)
        regrets.append(measured[among[simulated[among].argmin()]] / measured[among].min() - 1)
    return 100 * float(np.mean(regrets))


def summarise(rows: list[dict[str, Any]], exchanges: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Errors in percent, of the simulator and of a roofline; rank correlation, coverage, regret."""
    simulated, measured, plain = (np.array([row[name] for row in rows])
                                  for name in ("simulated_us", "measured_us", "roofline_us"))
    inside = np.mean([row["simulated_low_us"] <= row["measured_us"] <= row["simulated_high_us"] for row in rows])
    out = []
    for name, predicted in (("layers", simulated), ("layers, roofline", plain)):
        ranks = ranking(predicted, measured) or {"kendall_tau": float("nan")}
        out.append({"what": name, **error_scores(predicted, measured), "kendall_tau": ranks["kendall_tau"]})
    out[0] |= {"inside_percent": 100 * float(inside), "best_of_8_regret_percent": best_of_regret(rows, seed),
               "contended": sum(row["contended"] for row in rows)}
    if exchanges:
        out.append({"what": "gloo all-to-all, 2 ranks", **error_scores(
            np.array([row["simulated_us"] for row in exchanges]), np.array([row["measured_us"] for row in exchanges]))})
    return out


def figure(rows: list[dict[str, Any]]):
    """Simulated over measured, with the interval."""
    import plotly.graph_objects as go

    measured = [row["measured_us"] for row in rows]
    low, high = min(measured) * 0.8, max(measured) * 1.25
    made = go.Figure([
        go.Scatter(x=measured, y=[row["simulated_us"] for row in rows], mode="markers", name="simulated",
                   error_y={"type": "data", "symmetric": False,
                            "array": [row["simulated_high_us"] - row["simulated_us"] for row in rows],
                            "arrayminus": [row["simulated_us"] - row["simulated_low_us"] for row in rows]}),
        go.Scatter(x=measured, y=[row["roofline_us"] for row in rows], mode="markers", name="roofline"),
        go.Scatter(x=[low, high], y=[low, high], mode="lines", name="equal")])
    made.update_layout(title="MoE layers on this CPU, never run before they were simulated", template="plotly_white")
    made.update_xaxes(type="log", title="measured, us")
    made.update_yaxes(type="log", title="simulated, us")
    return made


def main(
    layers: Annotated[int, typer.Option(help="Random layers.", min=4)] = 40,
    seconds: Annotated[float, typer.Option(help="About how long to measure the profile.", min=1.0)] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed of the layers.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
    quick: Annotated[bool, typer.Option("--quick", help="A few layers and a short profile, for tests.")] = False,
) -> None:
    """Measure, predict, run, compare; three CSV files and a page."""
    from moesim_kernels.cpu_layer import Sentinel, measuring
    from moesim_kernels.cpu_profile import write_profile

    layers, seconds = (6, 3.0) if quick else (layers, seconds)
    with measuring():
        sentinel = Sentinel()
    say(f"measuring this CPU, about {seconds:.0f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local.toml"
        write_profile(path, seconds, fabric=True)
        profile = load_profile(str(path))
    say(f"predicting and running {layers} layers")
    rows = layer_rows(profile, sentinel, layers, seed)
    exchanges = alltoall_rows(profile)
    summary = summarise(rows, exchanges, seed)
    write_csv(out / "layers.csv", rows)
    if exchanges:
        write_csv(out / "alltoall.csv", exchanges)
    write_csv(out / "summary.csv", summary, list(summary[0]))
    write_html(out / "simulated_against_measured.html", figure(rows))
    print_table("Simulated against measured on this CPU, error in %", summary,
                ["what", "rows", "median", "mape", "p90", "bias", "kendall_tau", "inside_percent",
                 "best_of_8_regret_percent", "contended"])
    if profile.contended or any(row["contended"] for row in rows):
        say("the machine was disturbed meanwhile: errors are larger than on an idle one")
    say(f"wrote {out}/layers.csv, summary.csv, simulated_against_measured.html")


if __name__ == "__main__":
    run_script(main)
