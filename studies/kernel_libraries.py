"""Which kernel library is fastest where: tokens x experts x format x device?

Prices the experts of one layer on one device by every library that was measured in the format on
the device's generation, and says where the intervals leave no doubt.

Writes libraries.csv (a row per point and library), winners.csv (by device and format) and
libraries.html.
"""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from moesim import MoELayer
from moesim.advice.libraries import LibraryPoint, library_rows, winners
from moesim.cli.script import Out, Quick, run_script
from moesim.errors import ConfigError
from moesim.report.plots.fidelity import write_html
from moesim.report.plots.libraries import library_map
from moesim.report.ranked import print_ranked
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say

OUT = Path(__file__).parent / "out" / "kernel_libraries"
DEVICES = "h100-sxm b200-sxm gb200"
FORMATS = "bf16 fp8 fp8_tensor nvfp4 int4 mxfp4 mxfp4_a8"
#: experts -> (experts of a token, width): Mixtral, Llama 4, Qwen3, DeepSeek-V3, Kimi K2 in kind
EXPERTS = {8: (2, 14336), 16: (1, 8192), 128: (8, 1536), 256: (8, 2048), 384: (8, 2048)}
TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
SHOWN = dict(device="device", precision="format", kernels="kernels", points="points")
SHOWN |= dict(fastest="fastest", certain="certain", median_behind_percent="behind %")


def main(
    devices: Annotated[str, typer.Option(help="Device profiles.")] = DEVICES,
    formats: Annotated[str, typer.Option(help="Recipes of number formats.")] = FORMATS,
    routing: Annotated[str, typer.Option(help="Load of the experts.")] = "power_law:1.2",
    hidden: Annotated[int, typer.Option(help="Width of a token.")] = 4096,
    quick: Quick = False,
    out: Out = OUT,
) -> None:
    """Compare kernel libraries and write which is fastest where."""
    if hidden < 16:
        raise ConfigError(f"--hidden: expected at least 16, got {hidden}")
    writable_folder(out)
    rows = []
    for device, precision in product(devices.split(), formats.split()):
        points = product((128,) if quick else EXPERTS, (64, 4096) if quick else TOKENS)
        for experts, tokens in points:
            top_k, width = EXPERTS[experts]
            sizes = dict(hidden_size=hidden, expert_intermediate_size=width)
            layer = MoELayer(**sizes, num_experts=experts, top_k=top_k)
            about = dict(device=device, precision=precision, routing=routing)
            rows += library_rows(LibraryPoint(layer=layer, num_tokens=tokens, **about))
    if not rows:
        raise ConfigError(f"no library was measured in {formats} on {devices}")
    write_csv(out / "libraries.csv", rows)
    write_csv(out / "winners.csv", table := winners(rows))
    write_html(out / "libraries.html", library_map(rows))
    print_table("The fastest library, by device and format", table, SHOWN)
    say(f"wrote {out}/libraries.csv, winners.csv and libraries.html")
    told = dict(name="{kernels} ({precision} on {device})", value="fastest", maximize=True)
    next_step = "Time the best two on the device with check_gpu.py."
    print_ranked(table, **told, reads="fastest at {:,} points", next_step=next_step)


if __name__ == "__main__":
    run_script(main)
