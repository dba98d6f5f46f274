"""``moesim validate``: compare predictions with measured and published figures."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moesim.errors import MoesimError

validate_app = typer.Typer(
    no_args_is_help=True, help="Compare simulated with measured or published figures."
)


@validate_app.command("comm")
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
    """Predict measured exchanges (NCCL, DeepEP, NVL72); without --rows, score all rows that were
    not fitted.
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
        print_table(title, *_named(scores))
        return
    table = read_comm_rows(rows)
    predictions = predict_comm_rows(table, few_shot=mode == "calibrated")
    scores = comm_scores(table, predictions)
    if scores:
        print_table(title.replace(" that were not fitted", ""), *_named(scores))
    if out is not None:
        added = predicted_columns(table["family"].unique())
        given = table[[c for c in table.columns if c not in added]]
        joined = given.assign(**{c: predictions[c] for c in added})
        empty = joined.astype(object).where(joined.notna(), None)
        write_csv(out, empty.to_dict("records"), list(joined.columns))
        say(f"wrote {out}")


def _named(scores: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return rows with the name of their class in front, and the columns to show."""
    classes = ("system", "family", "quantity", "class")
    rows = [{"what": " ".join(str(r[k]) for k in classes if r.get(k))} | r for r in scores]
    return rows, ["what", *(key for key in scores[0] if key not in classes)]


@validate_app.command("published")
def validate_published(
    out: Annotated[Path | None, typer.Option(help="Write every point as CSV.")] = None,
) -> None:
    """Simulate the published figures that can be simulated, and say why the others cannot."""
    from moesim.measured.published import WITHIN, compare, summary
    from moesim.measured.train_points import fitted_efficiency
    from moesim.report.tables import write_csv
    from moesim.report.terminal import print_table, say, tell

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
    tell(
        f"{found['scored']:.0f} scored points, {found['covered']:.0f} covered: {shares}; "
        f"{found['off_by_more_than_2x']:.0f} off by more than 2x (one not covered counts as a miss)"
    )
    tell(f"efficiency of training by the rows marked fitted: {fitted_efficiency(rows):.3f}")
    if out is not None:
        write_csv(out, rows)
        say(f"wrote {out}")


@validate_app.command("tiles")
def validate_tiles(
    rows: Annotated[
        Path | None,
        typer.Option(help="Table of tiles (`moesim kernels sweep`); default: the shipped rows."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write every row with predicted_us as CSV.")
    ] = None,
) -> None:
    """Predict the tiles of this project's grouped GEMMs, and compare those that were timed."""
    from moesim.measured.tiles.calibrate import shipped_rows
    from moesim.measured.tiles.rows import read_all
    from moesim.measured.tiles.validate import SHOWN, predicted, scores
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say

    if out is not None:
        check_writable(out)
    table = read_all([rows] if rows is not None else shipped_rows())
    predictions = predicted(table)
    if found := scores(table, predictions):
        print_table("Tiles of the grouped GEMMs: error and regret in %", found, SHOWN)
    if rows is None:
        say("these rows were fitted; `moesim calibrate tiles` scores layers left out of the fit")
    if out is not None:
        columns = [name for name in table.rows[0] if name != "predicted_us"]
        joined = [
            row | {"predicted_us": float(predicted_us)}
            for row, predicted_us in zip(table.rows, predictions, strict=True)
        ]
        write_csv(out, joined, [*columns, "predicted_us"])
        say(f"wrote {out}")


#: columns of `error_table` and `ranking_table` -> headings that fit 80 characters
_ERRORS = {
    "ep": "ep",
    "us": "us",
    "fitted": "fit",
    "median": "median",
    "mape": "mape",
    "p90": "p90",
    "bias": "bias",
    "rows": "rows",
    "inside": "inside",
    "roofline_mape": "roof",
}
_PART = ("system", "dataset", "family", "precision", "calibration")
_RANKS = {
    "precision": "precision",
    "groups": "groups",
    "kendall_tau": "tau",
    "regret_percent": "regret",
    "regret_p90_percent": "p90",
    "roofline_tau": "roof tau",
    "roofline_regret_percent": "roof regret",
}


@validate_app.command("kernels")
def validate_kernels(
    rows: Annotated[
        Path | None, typer.Option(help="Table of rows (parquet or CSV) to predict.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="calibrated, or spec: fitted on A100 and H100 plus the spec sheet.")
    ] = "calibrated",
    system: Annotated[
        str, typer.Option(help="Without --rows: which system's measured rows, or all.")
    ] = "h100_sxm",
    limit: Annotated[
        int, typer.Option(help="Without --rows: rows per class, drawn; 0 for all.", min=0)
    ] = 500,
    family: Annotated[
        str,
        typer.Option(
            help="Without --rows: another library, such as trtllm-deepgemm or vllm_cutlass."
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write every row with its prediction as CSV.")
    ] = None,
) -> None:
    """Predict measured MoE kernels, Triton's or another library's, fitted rows and others, and
    compare with a roofline.
    """
    from moesim.measured.kernels.predict import read_rows
    from moesim.measured.kernels.scoreboard import error_table, ranking_table
    from moesim.measured.kernels.validate import PREDICTIONS, measured_rows, predicted
    from moesim.report.tables import write_csv
    from moesim.report.terminal import print_parts, say

    if mode not in ("calibrated", "spec"):
        raise MoesimError(f"--mode: expected calibrated or spec, got {mode!r}")
    given = read_rows(rows) if rows is not None else measured_rows(system, limit, family, say)
    table = predicted(given, mode)
    if "latency_ms" in table:
        print_parts(error_table(table), _PART, _ERRORS)
        if ranks := ranking_table(table):
            say("ranking of architecture x TP x EP under equal conditions; regret in %")
            print_parts(ranks, ("system", "dataset"), _RANKS)
        say("error, roofline's error (roof) and share inside the 80 % interval, in %")
    if out is not None:
        columns = [c for c in given.columns if c not in PREDICTIONS]
        write_csv(out, table.to_dict("records"), [*columns, *PREDICTIONS])
        say(f"wrote {out}")


#: columns of `moesim.measured.kernels.choices.choice_table` -> headings that fit 80 characters
_CHOICES = {
    "precision": "format",
    "layers": "layers",
    "as_good_percent": "good",
    "regret_percent": "regret",
    "usual": "always",
    "usual_regret_percent": "regret",
}


@validate_app.command("libraries")
def validate_libraries(
    system: Annotated[str, typer.Option(help="Whose measured rows.")] = "h100_sxm",
    limit: Annotated[int, typer.Option(help="Layers and loads, drawn; 0 for all.", min=0)] = 1000,
) -> None:
    """Score the choice of a kernel library: is the one predicted fastest the one measured so?"""
    from moesim.measured.kernels.choices import choice_table, measured_libraries
    from moesim.report.terminal import print_table, say

    table = choice_table(measured_libraries(system, limit))
    print_table(f"The library predicted fastest on {system}", table, _CHOICES)
    say(
        "good: share measured fastest, or within 5 %; regret over the fastest, of the choice and "
        "of always taking the library that is fastest most often; in %"
    )


#: columns of `moesim.measured.dense.scoreboard.scores` -> headings that fit 80 characters
_DENSE = {
    "class": "class",
    "rows": "rows",
    "median": "median",
    "mape": "mape",
    "p90": "p90",
    "bias": "bias",
    "inside": "inside",
    "roofline_mape": "roof",
    "grade": "grade",
}
_DENSE_PART = ("op", "system", "dataset", "format")
_Rows = Annotated[Path | None, typer.Option(help="Table of rows (parquet or CSV) to predict.")]
_System = Annotated[str, typer.Option(help="Without --rows: which system's measured rows, or all.")]
_Out = Annotated[
    Path | None, typer.Option(help="With --rows: write every row with its prediction as CSV.")
]


@validate_app.command("dense")
def validate_dense(rows: _Rows = None, system: _System = "h100_sxm", out: _Out = None) -> None:
    """Predict measured dense GEMMs and engines' all-reduces; without --rows, score all rows that
    were not fitted.
    """
    _validate_dense_parts("dense", rows, system, out)


@validate_app.command("attention")
def validate_attention(rows: _Rows = None, system: _System = "h100_sxm", out: _Out = None) -> None:
    """Predict measured attention; without --rows, score all rows that were not fitted."""
    _validate_dense_parts("attention", rows, system, out)


def _validate_dense_parts(
    kind: Literal["dense", "attention"], rows: Path | None, system: str, out: Path | None
) -> None:
    from moesim.measured.dense.predict import PREDICTIONS, predict_rows, read_rows
    from moesim.measured.dense.scoreboard import scoreboard, scores
    from moesim.measured.dense.table import systems
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_parts, say

    if out is not None and rows is None:
        raise MoesimError(
            "--out: expected --rows FILE, too: it holds the predictions of that file's rows"
        )
    if rows is None:
        table = scoreboard(kind, tuple(systems()) if system == "all" else (system,))
    else:
        if out is not None:
            check_writable(out)
        given = read_rows(rows, kind)
        predictions = predict_rows(given)
        table = scores(given, predictions)
        if out is not None:
            columns = [c for c in given.columns if c not in PREDICTIONS]
            joined = given[columns].assign(**predictions)
            empty = joined.astype(object).where(joined.notna(), None)
            write_csv(out, empty.to_dict("records"), [*columns, *PREDICTIONS])
            say(f"wrote {out}")
    if table:
        print_parts(table, _DENSE_PART, _DENSE)
        say("error, roofline's error (roof) and share inside the 80 % interval, in %")


@validate_app.command("models")
def validate_models(
    rows: Annotated[
        Path | None, typer.Option(help="CSV of serving runs to predict; default: score the sample.")
    ] = None,
    out: _Out = None,
    most: Annotated[
        int | None, typer.Option(help="Without --rows: score so many runs, drawn evenly from all.")
    ] = None,
) -> None:
    """Predict TPOT and TTFT of measured serving runs of whole models; without --rows, score the
    runs of aiconfigurator-core's sample to which nothing was fitted (some minutes).
    """
    from moesim.measured.models.predict import PREDICTED, predict
    from moesim.measured.models.validate import SHOWN, read_serving_rows, repaired, scoreboard
    from moesim.report.tables import check_writable, write_csv
    from moesim.report.terminal import print_table, say, tell

    if rows is None:
        if out is not None:
            raise MoesimError(
                "--out: expected --rows FILE, too: it holds the predictions of that file's rows"
            )
        found, counts = repaired()
        table = [{"what": what, "runs": number} for what, number in counts.items()]
        print_table("Serving runs", table, ["what", "runs"])
        print_table(
            "TPOT of runs that nothing was fitted to: error in %, share inside the interval in %",
            scoreboard(found, most=most),
            SHOWN,
        )
        return
    if out is not None:
        check_writable(out)
    runs, given = read_serving_rows(rows)
    made = list(predict(runs))
    if out is not None:
        columns = [name for name in (given[0] if given else {}) if name not in PREDICTED]
        write_csv(
            out,
            [row | new for row, new in zip(given, made, strict=True)],
            [*columns, *PREDICTED],
        )
        say(f"wrote {out}")
    covered = sum(one["status"] == "ok" for one in made)
    tell(f"{covered} of {len(made)} runs are covered")
    reasons: dict[str, int] = {}
    for one in made:
        if one["status"] != "ok":
            reasons[str(one["reason"])] = reasons.get(str(one["reason"]), 0) + 1
    if reasons:
        missing = [{"reason": reason, "runs": number} for reason, number in reasons.items()]
        print_table("Not covered", missing, ["reason", "runs"])
