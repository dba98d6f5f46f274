"""The kernels' figures on the GPU at hand beside their targets, in one run of at most 8 minutes.

``python tests/benchmarks/gpu/figures.py --out FILE.csv`` prints a table: what was timed, its
target, and what this GPU took, each line as soon as it is known. Times are medians of CUDA graphs
with L2 overwritten before each call; host times are the least of five means; training is timed call
by call. A part that fails says why, and the others go on. Parts share what is left of --seconds.

Peers that are installed (vllm, sglang, triton_kernels, torch._grouped_mm) are timed beside ours;
``peers_h100.csv`` beside this script has what they took on an H100, scaled by this GPU's own GEMM
and copy where it is another one.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

# The parts lie beside this script, wherever it is run from.
sys.path.insert(0, str(Path(__file__).parent))

import figures_parts as parts
import figures_tiles as simulator
import torch
from figures_clock import Clock, Row
from figures_peers import peers
from moesim_kernels.ops.runtime import device_name, triton_mode

Part = Callable[[Clock], Iterator[Row]]


def all_parts(file: Path) -> dict[str, tuple[Part, float]]:
    """The parts of the table, the cheap ones first, with their shares of the time that is left."""
    return {
        "right": (parts.right, 0.1),
        "host": (parts.host, 0.1),
        "plans": (parts.plans, 0.1),
        "gates": (parts.gates, 0.15),
        "tiny": (parts.tiny, 0.15),
        "peers": (partial(peers, file=file), 0.25),
        "training": (parts.training, 0.25),
        "tiles": (simulator.tiles, 0.5),
        "tuning": (simulator.tuning, 0.45),
        "check": (simulator.check, 1.0),
    }


def table(clock: Clock, chosen: dict[str, tuple[Part, float]]) -> Iterator[Row]:
    """Every line of the table; a part that fails is a line, too."""
    for name, (part, share) in chosen.items():
        end = clock.end
        # A part ends early so that the next ones have their time.
        clock.end -= clock.left() * (1 - share)
        try:
            yield from part(clock)
        # Whatever happens on somebody's GPU belongs into the report.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            yield Row(name, "", f"failed: {type(error).__name__}: {reason[:300]}")
        clock.end = end


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="stop starting cases after so long"
    )
    parser.add_argument("--peers", type=Path, default=Path(__file__).with_name("peers_h100.csv"))
    parser.add_argument("--only", nargs="+", help="names of parts, such as host or gates")
    parser.add_argument("--out", type=Path, help="CSV file, written line by line")
    options = parser.parse_args()
    chosen = all_parts(options.peers)
    if unknown := set(options.only or ()) - set(chosen):
        print(f"error: --only: expected any of {', '.join(chosen)}, got {min(unknown)!r}")
        return 2
    if triton_mode() != "gpu":
        print("error: these figures need a GPU with an active Triton driver")
        return 2
    chosen = {name: part for name, part in chosen.items() if name in (options.only or chosen)}
    print(f"{device_name()}, torch {torch.__version__}", flush=True)
    written = None if options.out is None else options.out.open("w", encoding="utf-8", newline="")
    writer = None if written is None else csv.writer(written)
    lines = [("device", "what", "target", "here")]
    for row in table(Clock(options.seconds), chosen):
        print(f"{row.what}\n    target {row.target or '-'}; here {row.here}", flush=True)
        lines.append((device_name(), row.what, row.target, row.here))
        if writer is not None:
            writer.writerows(lines)
            written.flush()
            lines.clear()
    if written is not None:
        written.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
