"""How well measured Triton MoE kernels are predicted, on every system that has any: where the model errs, and how far.

Predicts the measured rows of all systems (``--limit`` rows per system, dataset, format, EP class and fit class; 0 for
all of them, which takes minutes) and scores them beside a plain roofline. No row is used for fitting here. With fewer
rows fewer candidates share their conditions: rankings to be cited want ``--limit 0``.

Writes rows.csv (every row with its prediction), scoreboard.csv and ranking.csv, the errors of rows of at least 50 us
by token count, shape and tile (error_by_tokens.csv, error_by_shape.csv, error_by_tile.csv), and three pages that need
no network: error_by_tokens.html, predicted_against_measured.html and error_by_shape.html.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from moesim import load_profile
from moesim.cli import run_command
from moesim.errors import ConfigError
from moesim.measured.rows import row_tile
from moesim.measured.scoreboard import FLOOR_MS, error_table, ranking_table
from moesim.measured.scores import error_scores
from moesim.measured.validate import measured_rows, predicted
from moesim.report import write_csv
from moesim.report.plots import error_by_shape, error_by_tokens, predicted_against_measured, write_html
from moesim.report.terminal import print_table, say
from moesim.version import VERSION

OUT = Path(__file__).parent / "out" / "kernel_fidelity"
MODES = ("calibrated", "spec")
#: rows of one class share a calibration, and are either all fitted or all not
CLASS = ("system", "dataset", "precision", "ep", "fitted")
RANKING = ("system", "dataset", "precision", "groups", "kendall_tau", "regret_percent", "regret_p90_percent",
           "roofline_tau", "roofline_regret_percent", "evidence", "calibration", "mode", "version")
SCORES = {"system": "system", "dataset": "dataset", "precision": "precision", "ep": "EP", "fitted": "fitted",
          "rows": "rows", "median": "median %", "mape": "MAPE %", "p90": "P90 %", "bias": "bias %",
          "inside": "inside %", "roofline_mape": "roofline %", "calibration": "calibration"}
RANKS = {"system": "system", "dataset": "dataset", "precision": "precision", "groups": "groups", "kendall_tau": "tau",
         "regret_percent": "regret %", "regret_p90_percent": "P90 %", "roofline_tau": "roofline tau",
         "roofline_regret_percent": "roofline regret %", "calibration": "calibration"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def described(rows):
    """Rows with what they are grouped by: precision, EP class, shape, and the tile the model used."""
    records = rows.to_dict("records")
    devices = {system: load_profile(system).name for system in rows["system"].unique()}
    return rows.assign(
        precision=rows["moe_dtype"], ep=np.where(rows["moe_ep_size"] > 1, "EP>1", "EP=1"),
        shape=[f"{r['hidden_size']}x{r['inter_size']}, {r['topk']} of {r['num_experts']}" for r in records],
        tile=[str(row_tile(r, devices[r["system"]])) for r in records])


def errors_by(rows, bucket: str, common: dict[str, str]) -> list[dict[str, object]]:
    """Errors of rows of at least 50 us by class and one more column; ``bias`` is the median signed error, in percent.

    Args:
        rows: DataFrame of `described` rows with predictions.
        bucket: Column.
        common: Columns that every row of the table ends with.
    """
    table = []
    for key, part in rows[rows["latency_ms"] >= FLOOR_MS].groupby([*CLASS, bucket]):
        named = dict(zip((*CLASS, bucket), key, strict=True))
        scores = error_scores(part["predicted_latency_ms"].to_numpy(), part["latency_ms"].to_numpy())
        table.append({**named, **scores, "evidence": part["evidence"].iloc[0],
                      "calibration": part["calibration"].iloc[0], **common})
    return table


def sourced(table: Sequence[dict], rows, common: dict[str, str]) -> list[dict[str, object]]:
    """A table by system and dataset, with the evidence and calibration of its predictions."""
    first = rows.groupby(["system", "dataset"])[["evidence", "calibration"]].first()
    return [row | first.loc[(row["system"], row["dataset"])].to_dict() | common for row in table]


def prepare(out: Path) -> None:
    """Create the output folder before any work is done.

    Raises:
        ConfigError: It cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot write to this output folder: {error.strerror}") from None


@app.command()
def main(
    mode: Annotated[str, typer.Option(help="calibrated, or spec: no few-shot factors, spec sheets only.")] = MODES[0],
    limit: Annotated[int, typer.Option(help="Rows per class, drawn; 0 for all.", min=0)] = 1000,
    out: Annotated[Path, typer.Option(help="Output folder.")] = OUT,
) -> None:
    """Predict measured kernels of all systems and write where the errors are."""
    if mode not in MODES:
        raise ConfigError(f"--mode: expected {' or '.join(MODES)}, got {mode!r}")
    prepare(out)
    rows = described(predicted(measured_rows("all", limit), mode))
    say(f"predicted {len(rows):,} rows of {rows['system'].nunique()} systems")
    common = {"mode": mode, "version": VERSION}
    scores = sourced(error_table(rows), rows, common)
    ranks = sourced(ranking_table(rows), rows, common)
    buckets = {"tokens": "num_tokens", "shape": "shape", "tile": "tile"}
    errors = {name: errors_by(rows, column, common) for name, column in buckets.items()}

    write_csv(out / "rows.csv", rows.drop(columns=["precision", "ep", "shape"]).assign(**common).to_dict("records"))
    write_csv(out / "scoreboard.csv", scores)
    write_csv(out / "ranking.csv", ranks, RANKING)
    for name, table in errors.items():
        write_csv(out / f"error_by_{name}.csv", table)
    unseen = {name: [row for row in table if not row["fitted"]] for name, table in errors.items()}
    write_html(out / "error_by_tokens.html", error_by_tokens(unseen["tokens"]))
    write_html(out / "error_by_shape.html", error_by_shape(unseen["shape"]))
    write_html(out / "predicted_against_measured.html", predicted_against_measured(rows))

    print_table(f"Measured Triton MoE kernels of at least 50 us, {mode}: error, and share inside the 80 % interval",
                [row for row in scores if row["us"] == ">= 50"], SCORES)
    if ranks:
        print_table("Ranking of architecture x TP x EP under equal conditions", ranks, RANKS)
    else:
        say("no ranking: no six of the rows drawn share their conditions")
    say(f"wrote {out}/rows.csv, scoreboard.csv, ranking.csv, error_by_*.csv and *.html")


if __name__ == "__main__":
    run_command(app)
