"""``moesim kernels``: compile the Triton kernels for GPUs that are not here, and tune them on one that is."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import MeasurementError, MoesimError

kernels_app = typer.Typer(no_args_is_help=True, help="Compile the Triton kernels, and tune their tiles.")
_COLUMNS = ("target", "kernel", "dtype", "tile", "status", "registers", "shared_bytes", "spills", "ctas_per_sm",
            "compile_s")


@kernels_app.command("compile")
def compile_kernels(
    out: Annotated[Path, typer.Option(help="CSV to write: a row per target, kernel, format and tile.")],
    targets: Annotated[
        list[str] | None, typer.Option(help="Architectures, such as sm_90,gfx942; default: all.")
    ] = None,
    kernel: Annotated[str, typer.Option(help="Only kernels whose name contains this.")] = "",
) -> None:
    """Compile every kernel and shipped tile ahead of time, without a GPU; exit code 1 if one exceeds its budget."""
    from moesim.measured.kernel_tools import KernelCompiler, kernel_tool
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say

    tool: KernelCompiler = kernel_tool("compile")
    known = tool.targets()
    chosen = list(dict.fromkeys(t.strip() for text in targets or [] for t in text.split(","))) or list(known)
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
    print_table("Kernels compiled, by target", [_summary(rows, target) for target in chosen],
                ["target", "ok", "over_budget", "failed", "unsupported", "compile_s"])
    say(f"wrote {out}")
    bad = [row for row in rows if row["status"] in ("over_budget", "failed")]
    for row in bad:
        say(f"{row['status']}: {row['target']} {row['kernel']} {row['dtype']} {row['tile']}: {row['error']}")
    if bad:
        raise typer.Exit(1)


def _summary(rows: list[dict], target: str) -> dict:
    mine = [row for row in rows if row["target"] == target]
    counts = Counter(row["status"] for row in mine)
    return {"target": target, "compile_s": round(sum(row["compile_s"] for row in mine), 1)} | {
        status: counts[status] for status in ("ok", "over_budget", "failed", "unsupported")}
