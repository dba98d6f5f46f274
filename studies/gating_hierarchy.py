"""Which gate to build for how many experts: flat, group-limited, two-level, product key, up to 1M?

Gate times are simulated on an H100 and on this machine's CPU, and measured on the CPU: the same
torch code that a layer there uses, one thread, caches flushed. The profile of the CPU is measured
first, from stand-alone primitives; ``--profile`` names one that `moesim measure` wrote.
Writes gates.csv, summary.csv (error on the CPU by gate), pairs.csv (how often the faster of two
gates is predicted right), gate_time.html, gate_share.html and simulated_against_measured.html.
"""

from pathlib import Path
from typing import Annotated

import typer
from moesim_kernels.sources.cpu import local_profile
from moesim_kernels.sources.gate_loop import gate_rows

from moesim import load_profile
from moesim.cli.script import Out, Quick, run_script
from moesim.errors import ConfigError
from moesim.measured import gate_rows as gates
from moesim.report.plots import gates as gate_plots
from moesim.report.plots.fidelity import write_html
from moesim.report.ranked import print_trusted
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say, tell
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "gating_hierarchy"
EXPERTS = (8, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
#: hidden size, tokens, top_k, and width of all experts together
H100_CASES = ((4096, 256, 8, 1 << 18), (4096, 4096, 8, 1 << 18), (7168, 4096, 8, 1 << 18))
CPU_CASES = ((256, 64, 2, 1 << 14), (512, 256, 8, 1 << 14), (1024, 128, 4, 1 << 14))
CPU_CASES += ((256, 1024, 1, 1 << 14), (128, 512, 16, 1 << 14))


def main(
    out: Out = OUT,
    device: Annotated[str, typer.Option(help="Profile simulated beside this CPU.")] = "h100-sxm",
    profile: Annotated[str | None, typer.Option(help="Profile of this CPU; default: new.")] = None,
    seconds: Annotated[float, typer.Option(help="For the CPU's profile.", min=0.5)] = 30.0,
    quick: Quick = False,
) -> None:
    """Simulate and measure gates over the number of experts."""
    writable_folder(out)
    experts, few = ((64, 4096), 1) if quick else (EXPERTS, None)
    gpu_cases, cpu_cases = (gates.cases(sizes[:few]) for sizes in (H100_CASES, CPU_CASES))
    gpu = load_profile(device)
    if profile is None:
        say(f"measuring this CPU, about {seconds:.0f} s")
    cpu = local_profile(seconds)[0] if profile is None else load_profile(profile)
    if cpu.execution != "serial":
        found = f"{cpu.name}, whose execution is {cpu.execution}"
        raise ConfigError(f"--profile: expected a profile of a CPU, got {found}")
    common = {"evidence": "simulated", "version": VERSION}
    layers = gates.gate_layers(gpu_cases, experts)
    rows = [gates.simulated_gate(gpu, *layer) | common for layer in layers]
    say(f"simulated {len(rows)} gates on {gpu.name}; measuring gates on this CPU")
    found = gate_rows(cpu, cpu_cases, experts, 0.02 if quick else 0.05)
    measured = [row | common for row in found]
    table, order = gates.gate_scores(measured), gates.named_right(measured)
    every, columns = [*rows, *measured], list(measured[0])
    write_csv(out / "gates.csv", [dict.fromkeys(columns) | row for row in every], columns)
    write_csv(out / "summary.csv", [row | {"version": VERSION} for row in table])
    write_csv(out / "pairs.csv", [order | {"version": VERSION}])
    write_html(out / "gate_time.html", gate_plots.gate_times(every))
    write_html(out / "gate_share.html", gate_plots.gate_shares(every))
    scatter = gate_plots.simulated_against_measured(measured)
    write_html(out / "simulated_against_measured.html", scatter)
    title = f"Gates on this CPU: simulated against measured, {len(measured)} points"
    print_table(title, table, gates.SHOWN)
    tell(gates.right_text(order))
    if sum(row["contended"] for row in measured) > len(measured) / 10:
        say("contended: something else slowed the machine down meanwhile; run again when idle")
    say(f"wrote {out}/gates.csv, summary.csv, pairs.csv and *.html")
    next_step = "Time the gates on a GPU with check_gpu.py."
    print_trusted(table, name="{gate} gates", value="mape", next_step=next_step)


if __name__ == "__main__":
    run_script(main)
