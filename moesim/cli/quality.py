"""``moesim quality``: list the laws behind the estimated loss, and refit them to your own runs."""

from pathlib import Path
from typing import Annotated

import typer

quality_app = typer.Typer(
    no_args_is_help=True, help="What the estimated loss rests on; fit it to your runs."
)


@quality_app.command("laws")
def laws() -> None:
    """List the scaling laws and measured differences with their ranges, intervals and sources."""
    from moesim.quality.catalog import LAWS
    from moesim.quality.deltas import (
        CAPACITY,
        DELTAS,
        ROUNDED_BITS,
        capacity_delta,
        weight_bits_delta,
    )
    from moesim.report.terminal import print_table

    print_table(
        "Scaling laws",
        [
            {
                "law": law.name,
                "coefficients": "read in the paper" if law.kind == "published" else "second hand",
                "range": "; ".join(
                    f"{name} {low:g}-{high:g}" for name, (low, high) in law.ranges.items()
                ),
                "fitted on": law.fitted_on,
                "used for": law.used_for,
                "source": law.source,
            }
            for law in LAWS
        ],
        ["law", "coefficients", "range", "fitted on", "used for", "source"],
    )
    listed = DELTAS | {
        f"capacity {factor:g}, top-{top_k}": capacity_delta(factor, top_k)
        for top_k, points in CAPACITY.items()
        for factor, _ in points
    }
    listed |= {
        f"{bits:g}-bit weights, rounded": weight_bits_delta(bits) for bits, _ in ROUNDED_BITS
    }
    print_table(
        "Differences, nats",
        [
            {
                "choice": name,
                "nats": delta.nats,
                "low": delta.low,
                "high": delta.high,
                "source": delta.source
                if not delta.unknown
                else f"no measured figure of {delta.unknown} ({delta.source})",
            }
            for name, delta in listed.items()
        ],
        ["choice", "nats", "low", "high", "source"],
    )


@quality_app.command("fit")
def fit(
    points: Annotated[
        Path,
        typer.Argument(
            help="CSV file: num_experts, top_k, active_params, train_tokens, "
            "granularity, loss, and weight if you like."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Law to write (TOML).")] = Path("law.toml"),
    residuals: Annotated[
        Path | None, typer.Option(help="Write every point with its predictions as CSV.")
    ] = None,
) -> None:
    """Refit the published laws to measured losses, as far as the points support it."""
    from moesim.quality import read_points, refit, save_law
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say, tell

    check_writable(out)
    if residuals is not None:
        check_writable(residuals)
    found = refit(read_points(points))
    law = found.law
    print_table(
        f"{law.num_points} points of {law.name}: nats",
        found.rows,
        [
            "line",
            "E_eff",
            "active_params",
            "train_tokens",
            "granularity",
            "loss",
            "published",
            "fitted",
            "residual",
            "left_out_error",
        ],
    )
    print_table(
        "Correction of ln L",
        [
            {"variable": name, "slope": slope, "centre": centre, "low": low, "high": high}
            for (name, low, high), slope, centre in zip(
                law.ranges, law.slopes, law.centre, strict=True
            )
        ],
        ["variable", "slope", "centre", "low", "high"],
    )
    kept = (
        "offset and slopes"
        if any(law.slopes)
        else "offset alone (slopes predicted points left out no better)"
    )
    tell(
        f"{kept}; root mean square error in nats: as published {found.published_rms:.4f}; points "
        f"left out {found.left_out_rms:.4f} (offset alone {found.offset_rms:.4f}); own points "
        f"{found.residual_rms:.4f}"
    )
    save_law(out, law)
    say(f"wrote {out}: use it as estimate_loss(..., law=load_law({str(out)!r}))")
    if residuals is not None:
        write_csv(residuals, found.rows)
        say(f"wrote {residuals}")
