"""How well are measured Triton MoE kernels predicted, on every system that has any?

Predicts the measured rows of all systems (``--limit`` rows per system, dataset, format, EP class
and fit class; 0 for all of them, which takes minutes) and scores them next to a plain roofline. No
row is used for fitting here. With fewer rows, fewer candidates share their conditions: use
``--limit 0`` for rankings to cite.

Writes rows.csv (every row with its prediction), scoreboard.csv and ranking.csv, the errors of rows
of at least 50 us by token count, shape and tile (error_by_tokens.csv, error_by_shape.csv,
error_by_tile.csv), and three pages that need no network: error_by_tokens.html,
predicted_against_measured.html and error_by_shape.html.
"""

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.script import Out, run_script
from moesim.errors import ConfigError
from moesim.measured.kernels import errors as kernel_errors
from moesim.measured.kernels.errors import BUCKETS, described, errors_by, sourced, unseen
from moesim.measured.kernels.scoreboard import error_table, ranking_table
from moesim.measured.kernels.validate import measured_rows, predicted
from moesim.report.plots import fidelity
from moesim.report.plots.fidelity import write_html
from moesim.report.ranked import print_trusted
from moesim.report.tables import writable_folder, write_csv
from moesim.report.terminal import print_table, say
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "kernel_fidelity"
MODES = ("calibrated", "spec")
Mode = Annotated[str, typer.Option(help="calibrated, or spec: no few-shot factors.")]
Limit = Annotated[int, typer.Option(help="Rows per class, drawn; 0 for all.", min=0)]


def main(mode: Mode = MODES[0], limit: Limit = 1000, out: Out = OUT) -> None:
    """Predict measured kernels of all systems and write where the errors are."""
    if mode not in MODES:
        raise ConfigError(f"--mode: expected {' or '.join(MODES)}, got {mode!r}")
    writable_folder(out)
    rows = described(predicted(measured_rows("all", limit), mode))
    say(f"predicted {len(rows):,} rows of {rows['system'].nunique()} systems")
    common = {"mode": mode, "version": VERSION}
    scores = sourced(error_table(rows), rows, common)
    ranks = sourced(ranking_table(rows), rows, common)
    errors = {name: errors_by(rows, column, common) for name, column in BUCKETS.items()}

    kept = rows.drop(columns=["precision", "ep", "shape"]).assign(**common)
    write_csv(out / "rows.csv", kept.to_dict("records"))
    write_csv(out / "scoreboard.csv", scores)
    write_csv(out / "ranking.csv", ranks, kernel_errors.RANKING_COLUMNS)
    for name, table in errors.items():
        write_csv(out / f"error_by_{name}.csv", table)
    write_html(out / "error_by_tokens.html", fidelity.error_by_tokens(unseen(errors["tokens"])))
    write_html(out / "error_by_shape.html", fidelity.error_by_shape(unseen(errors["shape"])))
    write_html(out / "predicted_against_measured.html", fidelity.predicted_against_measured(rows))

    title = f"Measured Triton MoE kernels of at least 50 us, {mode}: error, and share inside the"
    long = kernel_errors.named(row for row in scores if row["us"] == ">= 50")
    print_table(f"{title} 80 % interval", long, kernel_errors.ERRORS_SHOWN)
    title = "Ranking of architecture x TP x EP under equal conditions"
    if ranks:
        print_table(title, kernel_errors.named(ranks), kernel_errors.RANKING_SHOWN)
    else:
        say("no ranking: no six of the rows drawn share their conditions")
    say(f"wrote {out}/rows.csv, scoreboard.csv, ranking.csv, error_by_*.csv and *.html")
    told = dict(name="{what}", value="mape")
    never = [row for row in long if row["fitted"] != "yes"]
    print_trusted(never, **told, next_step="Measure ten rows of the worst system, and refit.")


if __name__ == "__main__":
    run_script(main)
