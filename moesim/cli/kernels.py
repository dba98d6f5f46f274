"""``moesim kernels``: compile Triton kernels for absent GPUs, and tune them on a present one."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import MeasurementError, MoesimError

kernels_app = typer.Typer(
    no_args_is_help=True, help="Compile the Triton kernels, and tune their tiles."
)
_COLUMNS = (
    *("target", "kernel", "dtype", "tile", "status", "registers", "shared_bytes", "spills"),
    *("ctas_per_sm", "compile_s", "held_to"),
)
_MOST_TOKENS = 4194304


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
    preset: Annotated[
        str, typer.Option(help="Model whose layer is tuned; `moesim profiles` lists them.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV to write or add to; default: this GPU's table, which layers look up."
        ),
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="Numbers of tokens, each tuned for itself.")
    ] = "1,16,64,256,1024,4096",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    skew: Annotated[
        float, typer.Option(help="Zipf exponent of the experts' popularity.", min=0.0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of routing, tokens and weights.", min=0)] = 0,
) -> None:
    """Search the tiles of a model's expert GEMMs by timing them on this machine's GPU."""
    from moesim.measured.plugins import KernelTuner, kernel_tool
    from moesim.model.presets import load_preset
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say

    layer = load_preset(preset).layer
    numbers = [text.strip() for text in tokens.split(",")]
    if not all(
        text.isascii() and text.isdigit() and 0 < int(text) <= _MOST_TOKENS for text in numbers
    ):
        raise MoesimError(
            f"--tokens: expected integers from 1 to {_MOST_TOKENS}, such as 16,1024, got {tokens!r}"
        )
    tool: KernelTuner = kernel_tool("tune")
    rows: list[dict] = []
    try:
        out = out or tool.table()
        check_writable(out, make_folder=True)
        tool.merged(out, rows)
        for row in tool.rows(
            layer, [int(text) for text in numbers], dtype=dtype, skew=skew, seed=seed
        ):
            say(f"tuned {row['gemm']} for {row['num_tokens']} tokens")
            rows.append(row)
            write_csv(out, tool.merged(out, rows))
    except RuntimeError as error:
        raise MeasurementError(f"kernels tune: {error}") from None
    print_table(
        "Tiles, and microseconds of the expert phase",
        rows,
        [
            "num_tokens",
            "gemm",
            "block_m",
            "block_n",
            "block_k",
            "num_warps",
            "num_stages",
            "tuned_us",
            "default_us",
        ],
    )
    say(f"wrote {out}")
