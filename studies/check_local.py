"""The closed loop on any machine: measure this CPU, search it, run what was found, and say how far off all of it was.

A profile of primitives is measured in about 20 seconds, fitted to no layer. Then, simulated on it *before* they run for
real in processes of their own, one thread each:

1. random layers (sizes, gates, routing all drawn), beside a roofline of the same measured peaks;
2. all-to-alls between two processes, at sizes between those of the profile;
3. random layers over two ranks, as simulated and by a + b x simulated, a and b from eight of them, scored on the rest;
4. a search over experts, width, top-k, kind of gate and ranks: its winners, and candidates drawn at random from it.

Writes layers.csv, alltoall.csv, ranks.csv, candidates.csv, summary.csv, targets.csv and
simulated_against_measured.html. A machine that was disturbed is reported, never failed on.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from moesim import Candidate, Profile, Workload, load_profile
from moesim.cli import run_script
from moesim.errors import MeasurementError
from moesim.measured.loop_scores import against_targets, best_of_regret, scores
from moesim.report import write_csv
from moesim.report.plots.fidelity import write_html
from moesim.report.terminal import print_table, say
from moesim.search import Space, run_study

OUT = Path(__file__).parent / "out" / "check_local"
SPACE = Space(
    dense_part="switch-base-128",
    train_tokens=1e10,
    hidden_size=768,
    num_experts=[8, 16, 32, 64],
    top_k=[1, 2, 4],
    expert_intermediate_size=[64, 128, 256, 512, 1024],
    gate=["flat", "two_level:4:2"],
    parallelism=["tp1"],
)
WORK = Workload(num_tokens_per_device=128, routing="zipf:0.8", kv_tokens_per_device=4096)
RANKS, WINNERS = (1, 2), 4
#: layers, layers over ranks, those of them that a and b are fitted on, trials for each number of ranks, random
#: candidates, seconds for each run
FULL, QUICK = (40, 24, 8, 60, 20, 0.25), (5, 5, 3, 12, 2, 0.0)


def found_by_search(
    profile: Profile, ranks: int, trials: int, drawn: int, seed: int
) -> list[tuple[str, Candidate, float]]:
    """Winners of a search on a number of ranks, and candidates drawn from the rest of what it tried: role and loss."""
    from moesim_kernels.sources.local_loop import cluster_of

    cluster = cluster_of(profile, ranks)
    with tempfile.TemporaryDirectory() as folder:
        study = run_study(
            SPACE,
            cluster,
            WORK,
            objectives=["loss", "layer_time_us"],
            num_trials=trials,
            seed=seed,
            sampler="nsga2",
            storage=folder,
        )
    tried = {
        str(trial.evaluation.row["candidate"]): trial for trial in study.trials if trial.feasible
    }
    winners = [candidate.label for candidate in study.pareto(limit=WINNERS)]
    others = [label for label in tried if label not in winners]
    others = list(np.random.default_rng(seed).permutation(others)[:drawn])
    return [
        (
            role,
            study.space.decode(tried[label].params, cluster)[0],
            float(tried[label].evaluation.row["loss"]),
        )
        for role, labels in (("winner", winners), ("random", others))
        for label in labels
    ]


def beaten_winners(rows: list[dict[str, Any]]) -> float:
    """Percent of the winners that a random candidate on as many ranks was measured to beat in loss and time."""
    winners, others = (
        [row for row in rows if row["role"] == role] for role in ("winner", "random")
    )
    beaten = [
        any(
            o["ranks"] == w["ranks"]
            and o["loss"] <= w["loss"]
            and o["measured_us"] < w["measured_us"]
            for o in others
        )
        for w in winners
    ]
    return 100 * float(np.mean(beaten))


def summarise(
    layers: list[dict[str, Any]],
    exchanges: list[dict[str, Any]],
    ranks: list[dict[str, Any]],
    candidates: list[dict[str, Any]],
    seed: int,
) -> list[dict[str, Any]]:
    """Scores of every part."""
    work = np.array(
        [
            row["num_tokens"] * row["top_k"] * row["hidden_size"] * row["expert_intermediate_size"]
            for row in layers
        ],
        dtype=np.float64,
    )
    each = {
        name: np.array([row[name] for row in layers]) / work
        for name in ("simulated_us", "measured_us")
    }
    plain = scores(layers, "roofline_us")
    first = {
        "what": "layers",
        **scores(layers),
        "best_of_8_regret_percent": best_of_regret(each["simulated_us"], each["measured_us"], seed),
    }
    first["roofline_ratio"] = plain["mape"] / first["mape"]
    out = [first, {"what": "layers, roofline", **plain}]
    if exchanges:
        out.append({"what": "all-to-all, 2 ranks", **scores(exchanges)})
    if ranks:
        unseen = [row for row in ranks if not row["in_fit"]]
        out += [
            {"what": "layers on 2 ranks", **scores(unseen)},
            {"what": "layers on 2 ranks, a + b x simulated", **scores(unseen, "fitted_us")},
        ]
    for count in sorted({row["ranks"] for row in candidates}):
        here = [row for row in candidates if row["ranks"] == count]
        out.append(
            {
                "what": f"candidates on {count} rank{'s' * (count > 1)}",
                **scores(here, "fitted_us"),
                "beaten_winners_percent": beaten_winners(here),
            }
        )
    return out


def figure(parts: dict[str, tuple[list[dict[str, Any]], str]]):
    """Simulated over measured of every part, and the roofline of the layers."""
    import plotly.graph_objects as go

    every = [row["measured_us"] for rows, _ in parts.values() for row in rows]
    low, high = min(every) * 0.8, max(every) * 1.25
    made = go.Figure(
        [
            go.Scatter(
                x=[row["measured_us"] for row in rows],
                y=[row[column] for row in rows],
                mode="markers",
                name=name,
            )
            for name, (rows, column) in parts.items()
        ]
    )
    made.add_trace(go.Scatter(x=[low, high], y=[low, high], mode="lines", name="equal"))
    made.update_layout(title="On this CPU, simulated before it ever ran", template="plotly_white")
    made.update_xaxes(type="log", title="measured, us")
    made.update_yaxes(type="log", title="simulated, us")
    return made


def main(
    seconds: Annotated[
        float, typer.Option(help="About how long to measure the profile.", min=1.0)
    ] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed of layers, search and draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few layers and a short profile, for tests.")
    ] = False,
) -> None:
    """Measure, simulate, search, run, compare; CSV files and a page."""
    from moesim_kernels.cpu.layer import Sentinel, measuring
    from moesim_kernels.profile.cpu_profile import write_profile
    from moesim_kernels.sources import local_loop

    started = time.perf_counter()
    num_layers, num_ranked, num_fitted, trials, drawn, each = QUICK if quick else FULL
    with measuring():
        sentinel = Sentinel()
    slowdowns = []

    def said(text: str) -> None:
        with measuring():
            slowdowns.append(sentinel.slowdown())
        say(f"{time.perf_counter() - started:5.1f} s: {text}")

    said(f"measuring this CPU, about {1.0 if quick else seconds:.0f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "local.toml"
        write_profile(path, 1.0 if quick else seconds, fabric=True)
        profile = load_profile(str(path))
    said(f"simulating and running {num_layers} layers")
    layers = local_loop.layer_rows(
        profile, local_loop.random_runs(profile, num_layers, seed), seconds=each
    )
    exchanges: list[dict[str, Any]] = []
    ranked: list[dict[str, Any]] = []
    line = (0.0, 1.0)
    several = profile.host_fabric is not None
    if several:
        try:
            said("exchanging between two processes")
            exchanges = local_loop.exchange_rows(profile)
            said(f"simulating and running {num_ranked} layers over two ranks")
            ranked, line = local_loop.rank_rows(
                profile, num_ranked, seed, fitted_on=num_fitted, seconds=each
            )
        except MeasurementError as error:
            several = False
            say(f"several ranks: not here ({error})")
    said("searching")
    chosen = [
        entry
        for ranks in (RANKS if several else RANKS[:1])
        for entry in found_by_search(profile, ranks, trials, drawn // len(RANKS), seed)
    ]
    said(f"running {len(chosen)} candidates")
    candidates = local_loop.candidate_rows(profile, chosen, WORK, line=line, seconds=each)
    summary = summarise(layers, exchanges, ranked, candidates, seed)
    said("done")
    contended = (
        profile.contended
        or max(slowdowns) > 0.08
        or any(row["contended"] for row in (*layers, *ranked, *candidates))
    )
    summary.append(
        {
            "what": "the whole run",
            "rows": len(layers) + len(ranked) + len(candidates) + len(exchanges),
            "seconds": time.perf_counter() - started,
            "contended": float(contended),
        }
    )
    targets = against_targets(summary)
    for name, rows in (
        ("layers", layers),
        ("alltoall", exchanges),
        ("ranks", ranked),
        ("candidates", candidates),
        ("targets", targets),
    ):
        if rows:
            write_csv(out / f"{name}.csv", rows)
    columns = [
        "what",
        "rows",
        "median",
        "mape",
        "p90",
        "bias",
        "kendall_tau",
        "regret",
        "inside_percent",
        "best_of_8_regret_percent",
        "roofline_ratio",
        "beaten_winners_percent",
        "seconds",
        "contended",
    ]
    write_csv(out / "summary.csv", summary, columns)
    parts = {
        "layers": (layers, "simulated_us"),
        "layers, roofline": (layers, "roofline_us"),
        "all-to-alls": (exchanges, "simulated_us"),
        "layers on 2 ranks, a + b x simulated": (ranked, "fitted_us"),
        "candidates": (candidates, "fitted_us"),
    }
    write_html(out / "simulated_against_measured.html", figure(parts))
    print_table("Simulated against measured on this CPU, error in %", summary, columns)
    print_table(
        "Targets, for an idle machine", targets, ["what", "score", "target", "found", "met"]
    )
    if ranked:
        say(f"layers on 2 ranks: measured = {line[0]:.0f} us + {line[1]:.2f} x simulated")
    if contended:
        say("the machine was disturbed meanwhile: errors are larger than on an idle one")
    say(
        f"wrote {out}/layers.csv, alltoall.csv, ranks.csv, candidates.csv, summary.csv, targets.csv, "
        "simulated_against_measured.html"
    )


if __name__ == "__main__":
    run_script(main)
