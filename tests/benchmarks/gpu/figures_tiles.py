"""What the table of figures asks of the simulator: prices of tiles, tuning, and whole layers."""

import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures_clock import Clock, Row, layer_of
from moesim_kernels.ops.runtime import device_name, limits
from moesim_kernels.tiles.choice import Shape, default_tiles
from moesim_kernels.timing.sweep import sweep
from moesim_kernels.timing.tune import tune

from moesim.costs.tiles import TILE_FIELDS, Tile
from moesim.measured.tiles.rows import TimedTiles
from moesim.measured.tiles.validate import predicted, scores

#: hidden size, expert width, experts, top_k; the last was kept from every fit
SHAPES = {
    "olmoe": (2048, 1024, 64, 8),
    "mixtral": (4096, 14336, 8, 2),
    "dsv3_ep8": (7168, 2048, 32, 8),
    "kept": (4096, 1536, 128, 8),
}
TOKENS, TUNED_TOKENS = (16, 128, 1024, 4096), (1, 16, 64, 256, 1024, 4096)
TUNE_SECONDS = 90.0
CHECK = Path(__file__).parents[3] / "studies" / "check_gpu.py"


def _default(row: dict[str, Any]) -> tuple[Tile, Tile]:
    shape = Shape(
        num_experts=row["num_experts"],
        top_k=row["top_k"],
        hidden_size=row["hidden_size"],
        expert_intermediate_size=row["expert_intermediate_size"],
        dtype="bfloat16",
        operand_bits=16,
    )
    return default_tiles(device_name(), shape, row["num_tokens"], limits())


def _is(row: dict[str, Any], tile: Tile) -> bool:
    read = "descriptors" in row["path"]
    same = all(row[name] == getattr(tile, name) for name in TILE_FIELDS)
    return same and read == bool(tile.descriptors)


def tiles(clock: Clock) -> Iterator[Row]:
    """Every compiled tile, timed: what the default costs over the best, and the model's errors."""
    rows: list[dict[str, Any]] = []
    for index, sizes in enumerate(SHAPES.values()):
        seconds = clock.left() / (len(SHAPES) - index)
        rows += sweep(layer_of(*sizes), TOKENS, seconds=seconds)
    found: dict[str, float] = {}
    table = TimedTiles.of(rows)
    for group in table.groups():
        mine = [rows[index] for index in group]
        up, down = _default(mine[0])
        tile = up if mine[0]["gemm"] == "up" else down
        own = [row["median_us"] for row in mine if _is(row, tile)]
        if own:
            what = f"H {mine[0]['hidden_size']}, {mine[0]['num_tokens']} tokens, {mine[0]['gemm']}"
            found[what] = own[0] / min(row["median_us"] for row in mine) - 1
    if found:
        worst = max(found, key=found.__getitem__)
        yield Row(
            "of the best tile timed, as chosen by default: mean regret / worst",
            "3 / 15 % (1 / 5)",
            f"{100 * statistics.mean(found.values()):.1f} / {100 * found[worst]:.0f} % "
            f"({len(rows)} tiles; worst {worst})",
        )
    for score in scores(table, predicted(table)):
        yield Row(
            f"tile model, {score['gemm']}: MAPE per tile, rank correlation over tiles",
            "10 %, .9",
            f"{score['mape']:.1f} %, {score['rank'] or float('nan'):.2f}; P90 {score['p90']:.0f}, "
            f"bias {score['bias']:.1f} %",
        )


def tuning(clock: Clock) -> Iterator[Row]:
    """Six numbers of tokens of one model, tuned."""
    seconds = min(TUNE_SECONDS, clock.left())
    started, best = time.monotonic(), {}
    for up, _ in tune(layer_of(*SHAPES["olmoe"]), TUNED_TOKENS, seconds=seconds):
        best[up["num_tokens"]] = up
    took = time.monotonic() - started
    gains = [row["default_us"] / row["tuned_us"] - 1 for row in best.values()]
    yield Row(
        "tune, one model, six token counts",
        f"{TUNE_SECONDS:.0f} s, within 3 % of an exhaustive search",
        f"{took:.0f} s, {len(best)} of {len(TUNED_TOKENS)} reached, "
        f"{min(row['timed'] for row in best.values())} to "
        f"{max(row['timed'] for row in best.values())} tiles timed where the best was found; over "
        f"the default {100 * statistics.mean(gains):.1f} % on average, {100 * max(gains):.0f} % "
        "at most",
    )


def check(clock: Clock) -> Iterator[Row]:
    """Layers of a search, simulated and run: studies/check_gpu.py for the time that is left."""
    minutes = max(clock.left() / 60 - 0.3, 0.2)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable,
                str(CHECK),
                "--seconds",
                "10",
                "--trials",
                "60",
                "--minutes",
                f"{minutes:.2f}",
                "--out",
                folder,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
        with (Path(folder) / "summary.csv").open(encoding="utf-8", newline="") as file:
            summary = {row["quantity"]: row for row in csv.DictReader(file)}
        with (Path(folder) / "check.csv").open(encoding="utf-8", newline="") as file:
            checked = list(csv.DictReader(file))
    for part, target in (("experts", "7 / 15"), ("gate", "12 / 25"), ("layer", "8 / 18")):
        score = summary[f"{part}_time_us"]
        yield Row(
            f"check_gpu, {part}: MAPE / P90; bias",
            f"{target}; within 4 %",
            f"{float(score['mape']):.1f} / {float(score['p90']):.1f}; "
            f"{float(score['bias']):.1f} % ({score['rows']} designs)",
        )
    verdicts = Counter(row["verdict"] for row in checked if row["role"] == "winner")
    yield Row(
        "check_gpu, verdicts of the winners' times",
        ">= 80 % confirmed, 0 refuted",
        ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()),
    )
