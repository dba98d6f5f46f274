"""Draw the pictures of the docs and the README from simulations.

python docs/tools/pictures.py     # docs/assets/timeline.svg and moesim.svg, in some seconds
"""

import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from moesim import Candidate, Parallelism, Workload, load_cluster, load_preset
from moesim.design.schedule import Schedule
from moesim.report.plots.timeline import timeline_svg
from moesim.report.slices import Sheet
from moesim.search import Space, run_study
from moesim.simulation.prepare import prepare
from moesim.simulation.run import simulate_prepared
from moesim.timeline.layer import layer_sheet

ASSETS = Path(__file__).parent.parent / "assets"
BLUE, ORANGE, GREEN, PINK, SKY, GRAY = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    "#9AA3AD",
)
COLORS = {
    "gate": PINK,
    "permute": GRAY,
    "shared": SKY,
    "dispatch": ORANGE,
    "experts": BLUE,
    "combine": GREEN,
}
RATE = "layer_tokens_per_s_per_device"


def layer() -> Sheet:
    """Return the timeline of a DeepSeek-V3 layer on 64 H100 with two micro-batches."""
    design = Candidate(
        layer=load_preset("deepseek-v3").layer,
        parallelism=Parallelism(ep=64),
        placement="eplb",
        num_replicas=64,
        schedule=Schedule(exchange="deepep_normal", num_micro_batches=2),
    )
    work = Workload(num_tokens_per_device=4096, routing="power_law:1.2")
    prepared = prepare(design, load_cluster("h100-rail-8x8"), work)
    return layer_sheet(prepared, simulate_prepared(prepared))


def front(axes) -> None:
    """Draw loss against throughput of a small search, with intervals."""
    space = Space(
        dense_part="qwen3-235b-a22b",
        num_layers=32,
        train_tokens=2e12,
        hidden_size=4096,
        num_experts=[32, 64, 128, 256, 512],
        top_k=[1, 2, 4, 8, 16],
        expert_intermediate_size=[1024, 1536, 2048, 4096],
        placement=["contiguous", "eplb"],
        parallelism=["ep8", "ep4tp2"],
        precision=["bf16", "fp8"],
    )
    with tempfile.TemporaryDirectory() as folder:
        study = run_study(
            space,
            load_cluster("hgx-h100-8"),
            Workload(num_tokens_per_device=1024, routing="power_law:1.2"),
            objectives=["loss", RATE],
            num_trials=400,
            seed=0,
            storage=folder,
        )
    fit = [t.evaluation.row for t in study.trials if t.feasible]
    best = [t.evaluation.row for t in study.pareto_trials()]
    axes.scatter([r[RATE] for r in fit], [r["loss"] for r in fit], s=5, color=GRAY, alpha=0.5)
    axes.errorbar(
        [r[RATE] for r in best],
        [r["loss"] for r in best],
        xerr=[
            [r[RATE] * (1.0 - r["layer_time_us"] / r["layer_time_high_us"]) for r in best],
            [r[RATE] * (r["layer_time_us"] / r["layer_time_low_us"] - 1.0) for r in best],
        ],
        yerr=[
            [r["loss"] - r["loss_low"] for r in best],
            [r["loss_high"] - r["loss"] for r in best],
        ],
        fmt="o",
        markersize=4,
        color=BLUE,
        ecolor="#0072B255",
        elinewidth=1,
    )
    axes.set_xscale("log")
    ticks = {2e5: "200k", 5e5: "500k", 1e6: "1M", 2e6: "2M", 4e6: "4M"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens/s per device through one MoE layer")
    axes.set_ylabel("estimated loss, nats")
    axes.set_title("What wins, and how sure: the front with P10 to P90", fontsize=9, loc="left")


def bars(axes, sheet: Sheet) -> None:
    """Draw the tracks of two ranks."""
    slices = [s for s in sheet.in_lanes().slices if s.process.startswith("rank ")]
    ranks = list(dict.fromkeys(s.process for s in slices))[:2]
    rows = [(rank, track) for rank in ranks for track in ("compute", "send rdma", "receive rdma")]
    for number, (rank, track) in enumerate(rows):
        for one in slices:
            if one.process == rank and one.track == track:
                batch = one.args.get("micro_batch")
                if batch is not None and one.seconds > 1e-3:
                    middle = (one.begin_s + one.end_s) / 2 * 1e3
                    words = f"{one.category} {batch}"
                    axes.text(middle, -number, words, ha="center", va="center", fontsize=6)
                axes.broken_barh(
                    [(one.begin_s * 1e3, one.seconds * 1e3)],
                    (-number - 0.4, 0.8),
                    facecolors=COLORS.get(one.category, SKY),
                    alpha=0.75,
                    edgecolor="white",
                    linewidth=0.5,
                )
    axes.set_yticks([-n for n in range(len(rows))], [f"{r} {t}" for r, t in rows], fontsize=7)
    axes.set_xlabel("ms")
    axes.set_title("Where the time goes: a DeepSeek-V3 layer on 64 H100", fontsize=9, loc="left")
    known = {s.category for s in slices}
    for name, color in COLORS.items():
        if name in known:
            axes.plot([], [], color=color, linewidth=6, label=name)
    axes.legend(fontsize=7, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False)


def main() -> None:
    """Write both pictures."""
    ASSETS.mkdir(exist_ok=True)
    sheet = layer()
    (ASSETS / "timeline.svg").write_text(timeline_svg(sheet), encoding="utf-8")
    # the same bytes each time: no date, and names of clip paths from a fixed salt
    pyplot.rcParams.update({"svg.hashsalt": "moesim", "font.size": 8})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1, 1.2))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    front(left)
    bars(right, sheet)
    figure.tight_layout()
    figure.savefig(ASSETS / "moesim.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
