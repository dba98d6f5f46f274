"""Choose expert count, placement and gating hierarchy for an HGX H100 node; check on real kernels.

Searches loss, layer throughput and energy for a model of hidden size 4096 with 32 MoE layers,
trained on 2e12 tokens, served with 1,024 tokens and 131,072 tokens of KV cache per device under a
power-law load. The bound engine looks at ``--screen`` points first. The fluid engine simulates the
best of them and the points that the sampler proposes from these. The winners are simulated again
chunk by chunk, and then checked: against measured Triton kernels (every architecture of this width
that was measured on an H100 is tried first, so there is always something to compare), on this
machine's GPU if it has one, and, scaled down, numerically through the Triton interpreter and by the
clock on this CPU. Writes trials, pareto, importance, winners and check .csv, and report.html; run
it again to continue.
"""

from dataclasses import replace
from pathlib import Path

from moesim import Workload, load_cluster
from moesim.cli.script import SearchOptions, run_search
from moesim.measured.check import check_all, csv_row, write_check
from moesim.measured.check_text import print_check
from moesim.measured.kernels.source import measured_architectures
from moesim.measured.sources import installed_sources
from moesim.page.write import write_report
from moesim.report.terminal import say
from moesim.search import Space
from moesim.search.session.answer import show_answer
from moesim.search.session.findings import show_findings

OUT = Path(__file__).parent / "out" / "codesign_hgx_h100"
SPACE = Space(
    dense_part="qwen3-235b-a22b",
    num_layers=32,
    train_tokens=2e12,
    hidden_size=4096,
    num_experts=[8, 16, 32, 64, 128, 256, 512],
    top_k=[1, 2, 4, 6, 8, 10, 22],
    expert_intermediate_size=[1024, 1536, 2048, 2688, 4096, 14336],
    gate=["flat", "group_limited:8:4", "group_limited:4:2", "two_level:8:4", "two_level:16:4"],
    placement=["contiguous", "balanced", "eplb"],
    num_replicas=[0, 8, 32],
    parallelism=["ep8tp1", "ep4tp2", "ep2tp4", "ep1tp8"],
    precision=["bf16", "fp8"],
)
#: what a measured architecture leaves open: the plainest choice, which the measured kernels ran
PLAIN = {"gate": "flat", "placement": "contiguous", "num_replicas": 0}
OBJECTIVES = ["loss", "layer_tokens_per_s_per_device", "layer_joules_per_token"]
WINNERS = 8


def main(options: SearchOptions) -> None:
    """Search, simulate the winners again, check them, write tables and a page."""
    if options.quick:
        options = options.reduced(trials=40, screen=500)
    cluster, out = load_cluster("hgx-h100-8"), options.out
    workload = Workload(
        num_tokens_per_device=1024,
        routing="power_law:1.2",
        kv_tokens_per_device=131072,
        seed=options.seed,
    )
    measured = [p | PLAIN for p in measured_architectures(cluster, workload, SPACE.hidden_size)]
    study = options.search(
        SPACE, cluster, workload, objectives=OBJECTIVES, storage=out, enqueue=measured
    )
    show_findings(study, out, limit=WINNERS, title="HGX H100")
    if options.quick:
        write_report(out, study)
        show_answer(study)
        return
    tried = [replace(SPACE.decode(p, cluster)[0], kernels="sglang-triton") for p in measured]
    winners = study.pareto(limit=WINNERS)
    checks = check_all(winners, tried, cluster, workload, installed_sources(), say)
    write_check(out / "check.csv", checks)
    write_report(out, study)
    print_check(checks)
    show_answer(study, [csv_row(row, role) for role, row in checks])


if __name__ == "__main__":
    run_search(main, trials=2000, screen=10000, out=OUT)
