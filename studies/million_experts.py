"""What breaks first with a thousand to a million experts: memory, gate, dispatch or the kernels?

Splits the width of all experts of a published model's layer into 1,024 to 1,048,576 experts, at the
model's own size and at 100 and 1,000 times that size, with three gates on 8, 64 and 1,024 H100s,
and as one NVLink domain. `moesim.advice.limits` says what breaks; every remedy is tried alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from moesim.advice import breaking
from moesim.advice.limits import limit_points, limit_rows
from moesim.cli.script import Out, Quick, Seed, Workers, run_script
from moesim.report import write_csv
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.study import lines_by_experts
from moesim.report.ranked import print_ranked
from moesim.report.terminal import print_table, say, tell

OUT = Path(__file__).parent / "out" / "million_experts"
EXPERTS, SCALES = (1024, 16384, 65536, 262144, 1048576), (1, 100, 1000)
#: name -> nodes, devices of a node; one domain tells what the network does
CLUSTERS = {"8 H100": (1, 8), "64 H100, rail": (8, 8), "1,024 H100, rail": (128, 8)}
CLUSTERS["1,024 H100, one domain"] = (1, 1024)
GATES = ("flat", "two_level", "product_key")
PLAIN, KEYS = dict(gate="flat"), dict(gate="product_key")
FP8, TWO_HOPS = dict(precision="fp8"), dict(exchange="deepep_normal")
REMEDIES = {
    "none": PLAIN,
    "two-level gate": dict(gate="two_level"),
    "two-level gate, routers where groups live": dict(gate="two_level+local"),
    "product keys": KEYS,
    "fp8": FP8,
    "int4 weights": dict(precision="int4"),
    "two hops (DeepEP)": TWO_HOPS,
    "staged exchange": dict(exchange="hierarchical"),
    "product keys, fp8, two hops": KEYS | FP8 | TWO_HOPS,
}


def main(
    preset: Annotated[str, typer.Option(help="Published model.")] = "qwen3-30b-a3b",
    tokens: Annotated[int, typer.Option(help="Tokens of a device.", min=1)] = 256,
    seed: Seed = 0,
    workers: Workers = 2,
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Simulate every point, find what breaks first, and try every remedy."""
    clusters = list(CLUSTERS)[:2] if quick else list(CLUSTERS)
    experts, scales = (EXPERTS[::4], SCALES[1:2]) if quick else (EXPERTS, SCALES)
    grid, tried = [], []
    common = dict(preset=preset, num_tokens=min(tokens, 64) if quick else tokens, seed=seed)
    for where in clusters:
        gates = GATES[-1:] if where.endswith("one domain") else GATES
        grid += limit_points(where, CLUSTERS[where], gates, scales, experts, **common)
        if where in clusters[1:3]:
            tried += [replace(grid[-1], **(PLAIN | each)) for each in REMEDIES.values()]
    say(f"simulating {len(grid) + len(tried)} points")
    rows, found = (limit_rows(points, workers) for points in (grid, tried))
    remedies = [{"remedy": name} | row for name, row in zip([*REMEDIES] * 2, found, strict=False)]
    table = list(breaking.breaks(rows, GATES))
    print_table("First number of experts at which each breaks", table, breaking.BREAKS_SHOWN)
    title = f"Remedies at {experts[-1]:,} experts, {scales[-1]} times the size"
    print_table(title, remedies, breaking.REMEDIES_SHOWN)
    tell(breaking.against_shazeer(preset))
    for name, part in dict(points=rows, breaks=table, remedies=remedies).items():
        write_csv(out / f"{name}.csv", part)
    done = [row for row in rows if "breaks" in row]
    write_html(out / "million_experts.html", lines_by_experts(done, breaking.METRICS))
    say(f"wrote {out}/points.csv, breaks.csv, remedies.csv and million_experts.html")
    told = dict(name="{remedy} on {cluster}", value="layer_time_us", reads="{:,.0f} us a layer")
    print_ranked(remedies, **told, maximize=False, next_step="Measure gates with check_gpu.py.")


if __name__ == "__main__":
    run_script(main)
