"""Which of some ten thousand ways to serve DeepSeek-V3 on 64 H100 are best, and for whom?

Searches layouts, clients, engines, placements, redundant experts, schedules, exchanges, formats of
the KV cache and drafts for tokens per second of a device and of a user, with a limit on TTFT, and
runs the request loop for some of the Pareto front.

Writes trials.csv, pareto.csv, importance.csv and winners.csv. Run again to continue.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim import load_cluster
from moesim.cli.script import SearchOptions, run_search
from moesim.page.write import write_report
from moesim.search import ServingSpace, ServingWorkload
from moesim.search.session.answer import show_answer
from moesim.search.session.findings import show_findings

OUT = Path(__file__).parent / "out" / "serve_search"
SPACE = dict(
    concurrency=[64, 128, 256, 512, 1024, 2048, 4096, 8192],
    engine=["sglang", "vllm"],
    placement=["contiguous", "eplb"],
    redundant_per_rank=[0, 1, 2],
    num_micro_batches=[1, 2],
    exchange=["auto", "all_gather"],
    kv_format=["bfloat16", "fp8"],
    acceptance=[0.8],
    draft_length=[0, 1],
)


def main(
    options: SearchOptions,
    model: Annotated[str, typer.Option(help="Model.")] = "deepseek-v3",
    cluster: Annotated[str, typer.Option(help="Cluster.")] = "h100-rail-8x8",
    isl: Annotated[str, typer.Option(help="Tokens of a prompt.")] = "2048",
    osl: Annotated[str, typer.Option(help="Tokens of an answer.")] = "1024",
) -> None:
    """Search the ways to serve, and confirm the best."""
    if options.quick:
        options, cluster = options.reduced(trials=20, screen=0), "hgx-h100-8"
        model = "gpt-oss-120b"
    study = options.search(
        ServingSpace(model=model, **SPACE),
        load_cluster(cluster),
        ServingWorkload(isl=isl, osl=osl, seed=options.seed),
        objectives=["tokens_per_s_per_device", "tokens_per_s_per_user"],
        constraints=["ttft_ms <= 5000"],
        storage=options.out,
    )
    show_findings(study, options.out, limit=2 if options.quick else 6, title=f"{model}, {cluster}")
    write_report(options.out, study)
    show_answer(study)


if __name__ == "__main__":
    run_search(main, out=OUT, trials=10_000, screen=0)
