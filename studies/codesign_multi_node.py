"""Which DeepSeek-V3-sized model, gate, placement and exchange to build for 8 nodes of 8 H100?

Searches experts, top-k, width, gates whose groups are the nodes, placements, number formats,
exchanges and micro-batches around DeepSeek-V3's dense part. The bound engine looks at ``--screen``
points, the fluid engine simulates the best, and the event engine simulates the winners again, chunk
by chunk. The published design is one of the points and is always tried.

On one cluster the price of a token follows from throughput alone, so the third objective is energy.
With ``--hardware`` the NIC and HBM rates vary as well, and the third objective is price; all
simulated devices then count as ``spec_sheet``. ``--phase decode`` takes 128 tokens per device with
4,096 tokens of cache each, and layers of at most 1,000 us. Writes all tables and report.html.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import Workload, load_cluster
from moesim.cli.script import EconomicsName, RoutingText, SearchOptions, run_search
from moesim.errors import ConfigError
from moesim.page.write import write_report
from moesim.report.terminal import tell
from moesim.search import Space
from moesim.search.session.answer import show_answer
from moesim.search.session.findings import against_trial, show_findings

OUT = Path(__file__).parent / "out" / "codesign_multi_node"
CLUSTER = "h100-rail-8x8"
RATES = ["loss", "layer_tokens_per_s_per_device"]
MODEL = dict(dense_part="deepseek-v3", train_tokens=14.8e12, hidden_size=7168, num_shared_experts=1)
SIZES = dict(
    num_experts=[128, 256, 512], top_k=[4, 8, 16], expert_intermediate_size=[1024, 1536, 2048, 3072]
)
GATES = dict(gate=["flat", "group_limited:8:4", "group_limited:8:3"])
PLACEMENTS = dict(
    placement=["contiguous", "eplb", "eplb_hierarchical/nearest"], num_replicas=[64, 128]
)
EXCHANGES = dict(exchange=["nccl", "deepep_normal", "deepep_ll", "hierarchical"])
FORMATS = dict(precision=["bf16", "fp8"], num_micro_batches=[1, 2])
CHOICES = MODEL | SIZES | GATES | PLACEMENTS | EXCHANGES | FORMATS
QUICK = dict(num_experts=[128, 256], top_k=[8], placement=["eplb"], num_replicas=[64])
#: twice the NIC, and the bandwidth of an H200
HARDWARE = dict(nic_gb_per_s=["1x", "2x"], hbm_gb_per_s=[3350.0, 4800.0])
#: tokens of a device, tokens in its KV cache, constraints
PHASES = dict(prefill=(2048, 65536, ()), decode=(128, 128 * 4096, ("layer_time_us <= 1000",)))
PUBLISHED = dict(num_experts=256, top_k=8, expert_intermediate_size=2048, gate="group_limited:8:4")
PUBLISHED |= dict(precision="fp8", placement="eplb", num_replicas=64)
PUBLISHED |= dict(exchange="deepep_normal", num_micro_batches=2)


def main(
    options: SearchOptions,
    phase: Annotated[str, typer.Option(help="prefill or decode.")] = "prefill",
    routing: RoutingText = "zipf:0.8",
    hardware: Annotated[bool, typer.Option("--hardware", help="Vary NIC and HBM too.")] = False,
    economics: EconomicsName = "default",
) -> None:
    """Search, confirm the winners, compare with the published design."""
    if phase not in PHASES:
        raise ConfigError(f"--phase: expected {' or '.join(PHASES)}, got {phase!r}")
    tokens, kv_tokens, constraints = PHASES[phase]
    space = Space(**CHOICES, hardware=HARDWARE if hardware else {})
    if options.quick:
        space, tokens = space.model_copy(update=QUICK), 128
        options = options.reduced(trials=40, screen=200)
    size = dict(num_tokens_per_device=tokens, kv_tokens_per_device=kv_tokens)
    work = Workload(**size, phase=phase, routing=routing, seed=options.seed)
    third = "layer_usd_per_million_tokens" if hardware else "layer_joules_per_token"
    asked = dict(objectives=[*RATES, third], constraints=constraints, economics=economics)
    cluster, folder = load_cluster(CLUSTER), options.out or OUT / phase
    study = options.search(space, cluster, work, storage=folder, enqueue=[PUBLISHED], **asked)
    show_findings(study, folder, limit=8, title=f"{phase} on {CLUSTER}")
    tell(against_trial(study, 0, "published design"))
    write_report(folder, study)
    show_answer(study)


if __name__ == "__main__":
    run_search(main, trials=400, screen=20000)
