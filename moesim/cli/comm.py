"""``moesim calibrate comm`` and ``moesim validate comm``; see `moesim.cli`, which registers them.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import ConfigError, MoesimError


def validate_comm(
    rows: Annotated[
        Path | None, typer.Option(help="Table of rows (parquet or CSV) to predict.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="calibrated, or spec: rows that may be fitted plus the target's spec sheet."
        ),
    ] = "calibrated",
    out: Annotated[
        Path | None, typer.Option(help="With --rows: write every row with its prediction as CSV.")
    ] = None,
) -> None:
    """Predict measured exchanges (NCCL, DeepEP, NVL72); without --rows score all rows that were not
    fitted.
    """
    from moesim.measured.exchanges.predict import (
        predict_comm_rows,
        predicted_columns,
        read_comm_rows,
    )
    from moesim.measured.exchanges.scoreboard import comm_scores, scoreboard
    from moesim.report.tables import write_csv
    from moesim.report.terminal import print_table, say

    if mode not in ("calibrated", "spec"):
        raise MoesimError(f"--mode: expected calibrated or spec, got {mode!r}")
    if out is not None and rows is None:
        raise MoesimError(
            "--out: expected --rows FILE, too: it holds the predictions of that file's rows"
        )
    title = (
        "Measured exchanges that were not fitted: error in %, share inside the 80 % interval in %"
    )
    if rows is None:
        scores = scoreboard(mode)
        print_table(title, scores, list(scores[0]))
        return
    table = read_comm_rows(rows)
    predictions = predict_comm_rows(table, few_shot=mode == "calibrated")
    scores = comm_scores(table, predictions)
    if scores:
        print_table(title.replace(" that were not fitted", ""), scores, list(scores[0]))
    if out is not None:
        added = predicted_columns(table["family"].unique())
        given = table[[c for c in table.columns if c not in added]]
        joined = given.assign(**{c: predictions[c] for c in added})
        empty = joined.astype(object).where(joined.notna(), None)
        write_csv(out, empty.to_dict("records"), list(joined.columns))
        say(f"wrote {out}")


def calibrate_comm(
    out: Annotated[Path, typer.Option(help="Folder for the calibration files.")] = Path("."),
) -> None:
    """Fit the communication kernels to measured rows of A100, H100 and GB200; about half a minute.
    """
    from moesim.measured.exchanges import calibrate as fitting
    from moesim.report.terminal import print_table, say

    if not out.is_dir():
        raise ConfigError(f"{out}: expected a folder for the calibration files")
    scores = fitting.calibrate(out)
    print_table(
        "Error on rows left out of the fit, %",
        [{"class": k, **v} for k, v in scores.items()],
        ["class", "rows", "median", "mape", "p90", "bias"],
    )
    say(f"wrote {', '.join(str(out / f'{name}.toml') for name in fitting.NAMES)}")


def validate_published(
    out: Annotated[Path | None, typer.Option(help="Write every point as CSV.")] = None,
) -> None:
    """Simulate the published figures that can be simulated, and say why the others cannot."""
    from moesim.measured.published import WITHIN, compare, summary
    from moesim.report.tables import write_csv
    from moesim.report.terminal import print_table, say

    rows = compare()
    columns = ["point", "metric", "published", "simulated", "error_percent", "note"]
    covered = [row for row in rows if row["simulated"] is not None]
    print_table("Published figures, simulated (flow engine)", covered, columns)
    print_table(
        "Not covered",
        [row for row in rows if row["simulated"] is None],
        ["point", "scored", "note"],
    )
    found = summary(rows)
    shares = ", ".join(
        f"{found[f'within_{limit}_percent']:.0f} % within {limit} %" for limit in WITHIN
    )
    print(
        f"{found['scored']:.0f} scored points, {found['covered']:.0f} covered: {shares}; "
        f"{found['off_by_more_than_2x']:.0f} off by more than 2x (one not covered counts as a miss)"
    )
    if out is not None:
        write_csv(out, rows)
        say(f"wrote {out}")
