"""``moesim kernels``: compile Triton kernels for absent GPUs, and time them on a present one."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.options import Lenient, model_of
from moesim.errors import MeasurementError, MoesimError

kernels_app = typer.Typer(
    no_args_is_help=True, help="Compile the Triton kernels, and time their tiles."
)
_COLUMNS = (
    *("target", "kernel", "dtype", "tile", "status", "registers", "shared_bytes", "spills"),
    *("ctas_per_sm", "compile_s", "held_to"),
)
_MOST_TOKENS = 4194304
Preset = Annotated[
    str,
    typer.Option(
        help="Model whose layer is timed: a preset of `moesim profiles`, a config.json or its "
        "folder."
    ),
]
Tokens = Annotated[str, typer.Option(help="Numbers of tokens, each timed for itself.")]
Skew = Annotated[float, typer.Option(help="Zipf exponent of the experts' popularity.", min=0.0)]
RoutingSeed = Annotated[int, typer.Option(help="Seed of routing, tokens and weights.", min=0)]


@kernels_app.command("compile")
def compile_kernels(
    out: Annotated[
        Path, typer.Option(help="CSV to write: a row per target, kernel, format and tile.")
    ],
    targets: Annotated[
        list[str] | None, typer.Option(help="Architectures, such as sm_90,gfx942; default: all.")
    ] = None,
    kernel: Annotated[str, typer.Option(help="Only kernels whose name contains this.")] = "",
) -> None:
    """Compile every kernel and shipped tile ahead of time, without a GPU; exit code 1 if one
    exceeds its budget.
    """
    from moesim.measured.plugins import KernelCompiler, kernel_tool
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say

    tool: KernelCompiler = kernel_tool("compile")
    known = tool.targets()
    chosen = list(
        dict.fromkeys(t.strip() for text in targets or [] for t in text.split(","))
    ) or list(known)
    if unknown := [target for target in chosen if target not in known]:
        raise MoesimError(f"--targets: expected any of {', '.join(known)}, got {unknown[0]!r}")
    check_writable(out, make_folder=True)
    rows: list[dict] = []
    try:
        for row in tool.rows(chosen, kernel):
            if not rows or rows[-1]["target"] != row["target"]:
                say(f"compiled for {row['target']}")
            rows.append(row)
    except (RuntimeError, ValueError) as error:
        raise MeasurementError(f"kernels compile: {error}") from None
    write_csv(out, rows, _COLUMNS)
    print_table(
        "Kernels compiled, by target",
        [_summary(rows, target) for target in chosen],
        ["target", "ok", "over_budget", "failed", "unsupported", "compile_s"],
    )
    say(f"wrote {out}")
    bad = [row for row in rows if row["status"] in ("over_budget", "failed")]
    for row in bad:
        say(
            f"{row['status']}: {row['target']} {row['kernel']} {row['dtype']} {row['tile']}: "
            f"{row['error']}"
        )
    if bad:
        raise typer.Exit(1)


def _summary(rows: list[dict], target: str) -> dict:
    mine = [row for row in rows if row["target"] == target]
    counts = Counter(row["status"] for row in mine)
    return {"target": target, "compile_s": round(sum(row["compile_s"] for row in mine), 1)} | {
        status: counts[status] for status in ("ok", "over_budget", "failed", "unsupported")
    }


@kernels_app.command("tune")
def tune_kernels(
    preset: Preset,
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV to write or add to; default: this GPU's table, which layers look up."
        ),
    ] = None,
    tokens: Tokens = "1,16,64,256,1024,4096",
    seconds: Annotated[float, typer.Option(help="When to stop.", min=1.0)] = 90.0,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    skew: Skew = 0.0,
    seed: RoutingSeed = 0,
    lenient: Lenient = False,
) -> None:
    """Search the tiles of a model's expert GEMMs by timing them on this machine's GPU."""
    from moesim.measured.plugins import KernelTuner, kernel_tool
    from moesim.model import Precision
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say

    layer = model_of(preset, lenient).with_precision(Precision()).layer
    numbers = _numbers(tokens)
    tool: KernelTuner = kernel_tool("tune")
    best: dict[int, list[dict]] = {}
    try:
        out = out or tool.table()
        check_writable(out, make_folder=True)
        tool.merged(out, [])
        for rows in tool.rows(layer, numbers, seconds=seconds, dtype=dtype, skew=skew, seed=seed):
            up, tokens_now = rows[0], rows[0]["num_tokens"]
            known = best.get(tokens_now)
            # kept after every timing that found something better
            if known is None or up["tuned_us"] < known[0]["tuned_us"]:
                say(
                    f"{tokens_now} tokens: {up['tuned_us']:.0f} us after {up['timed']} tiles, "
                    f"default {up['default_us']:.0f} us"
                )
                write_csv(out, tool.merged(out, rows))
                best[tokens_now] = rows
    except RuntimeError as error:
        raise MeasurementError(f"kernels tune: {error}") from None
    print_table(
        "Tiles, and microseconds of both GEMMs",
        [row | {"tile": _tile_name(row)} for rows in best.values() for row in rows],
        {
            "num_tokens": "tokens",
            "gemm": "gemm",
            "tile": "tile",
            "path": "path",
            "timed": "timed",
            "tuned_us": "tuned us",
            "default_us": "default us",
        },
    )
    if missing := [str(number) for number in numbers if number not in best]:
        say(f"not reached: {', '.join(missing)} tokens; try --seconds {2 * seconds:.0f}")
    say(f"wrote {out}")


def _tile_name(row: dict) -> str:
    sizes = "x".join(str(row[name]) for name in ("block_m", "block_n", "block_k"))
    group = f"g{row['group_m']}" if row["group_m"] > 1 else ""
    return f"{sizes}w{row['num_warps']}s{row['num_stages']}{group}"


def _numbers(tokens: str) -> list[int]:
    """Return the numbers of tokens of a list.

    Raises:
        MoesimError: One is not a number of tokens.
    """
    numbers = [text.strip() for text in tokens.split(",")]
    if not all(
        text.isascii() and text.isdigit() and 0 < int(text) <= _MOST_TOKENS for text in numbers
    ):
        raise MoesimError(
            f"--tokens: expected integers from 1 to {_MOST_TOKENS}, such as 16,1024, got {tokens!r}"
        )
    return [int(text) for text in numbers]


@kernels_app.command("sweep")
def sweep_kernels(
    preset: Preset,
    out: Annotated[Path, typer.Option(help="CSV to write, row by row.")],
    tokens: Tokens = "16,64,256,1024,4096",
    seconds: Annotated[float, typer.Option(help="When to stop.", min=1.0)] = 120.0,
    skew: Skew = 0.0,
    seed: RoutingSeed = 0,
    lenient: Lenient = False,
) -> None:
    """Time every compiled tile of a model's expert GEMMs on this machine's GPU.

    `moesim validate tiles --rows FILE` compares the times with the tile model's.
    """
    from moesim.measured.plugins import KernelSweeper, kernel_tool
    from moesim.model import Precision
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import say

    layer = model_of(preset, lenient).with_precision(Precision()).layer
    numbers = _numbers(tokens)
    tool: KernelSweeper = kernel_tool("sweep")
    check_writable(out, make_folder=True)
    rows: list[dict] = []
    try:
        for row in tool.rows(layer, numbers, seconds=seconds, skew=skew, seed=seed):
            if not rows or rows[-1]["num_tokens"] != row["num_tokens"]:
                say(f"timing tiles of {row['num_tokens']} tokens, {len(rows)} rows so far")
            rows.append(row)
            # a row is kept as soon as it was timed
            write_csv(out, rows)
    except RuntimeError as error:
        raise MeasurementError(f"kernels sweep: {error}") from None
    say(f"wrote {out}, {len(rows)} rows")
    say(f"`moesim validate tiles --rows {out}` compares them with the tile model")
