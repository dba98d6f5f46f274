"""Measure how far off moesim is, and write the accuracy page from the result.

    python docs/tools/accuracy.py measure   # every scoreboard: some 15 minutes; writes docs/data
    python docs/tools/accuracy.py           # docs/accuracy.md from docs/data, at once

`moesim validate` prints the same figures one part at a time. Rows that were fitted are left out,
and so are expert kernels of less than 50 us, whose launches decide.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent
SCORES, POINTS, ABOUT = (
    DOCS / "data" / name for name in ("accuracy.csv", "published.csv", "accuracy.json")
)
NOTES, PAGE = DOCS / "data" / "accuracy_notes.md", DOCS / "accuracy.md"
COLUMNS = "part what class system dataset rows median mape p90 bias inside roofline_mape basis"
Row = dict[str, Any]


def kernel_scores() -> Iterator[Row]:
    """Yield the scores of expert kernels, Triton's and other libraries'."""
    from moesim.errors import MoesimError
    from moesim.measured.kernels.family_records import FAMILIES
    from moesim.measured.kernels.scoreboard import error_table
    from moesim.measured.kernels.validate import measured_rows, predicted

    for family in ("", *FAMILIES):
        try:
            rows = measured_rows("all", 400 if family else 2000, family)
        except MoesimError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for score in error_table(predicted(rows, "spec")):
            if not score["fitted"] and score["us"] == ">= 50":
                what = f"{score['family']} {score['precision']}"
                yield score | {"part": "expert kernels", "what": what, "class": score["ep"]}


def exchange_scores() -> Iterator[Row]:
    """Yield the scores of exchanges from the spec sheet, and with ten rows of the device."""
    from moesim.measured.exchanges.scoreboard import scoreboard

    for mode in ("spec", "calibrated"):
        for score in scoreboard(mode):
            named = [score["family"], score["quantity"].replace("-", "")]
            yield score | {"part": f"exchanges, {mode}", "what": " ".join(named).strip()}


def dense_scores() -> Iterator[Row]:
    """Yield the scores of dense GEMMs, all-reduces and attention."""
    from moesim.measured.dense.scoreboard import scoreboard
    from moesim.measured.dense.table import systems

    for kind in ("dense", "attention"):
        for score in scoreboard(kind, tuple(systems())):
            yield score | {
                "part": kind,
                "what": f"{score['op']} {score['format']}",
                "calibration": f"grade {score['grade']}",
            }


def model_scores() -> Iterator[Row]:
    """Yield the scores of whole models that were served."""
    from moesim.measured.models.validate import repaired, scoreboard

    runs, _ = repaired()
    for score in scoreboard(runs):
        yield score | {"part": "whole models, TPOT", "class": score["what"], "what": "TPOT"}


def measure() -> None:
    """Run every scoreboard and write docs/data."""
    from moesim.measured.models.validate import repaired
    from moesim.measured.published import compare, summary
    from moesim.report import write_csv
    from moesim.version import VERSION

    rows: list[Row] = []
    for scores in (exchange_scores, dense_scores, kernel_scores, model_scores):
        rows += [score | {"basis": score.get("calibration", "")} for score in scores()]
    write_csv(SCORES, [{name: rounded(row.get(name)) for name in COLUMNS.split()} for row in rows])
    points = compare()
    names = ["point", "metric", "published", "simulated"]
    names += ["error_percent", "scored", "note", "source"]
    write_csv(POINTS, [{name: rounded(row[name]) for name in names} for row in points])
    about = {"version": VERSION, "runs": dict(repaired()[1]), "points": summary(points)}
    ABOUT.write_text(json.dumps(about, indent=1, default=float) + "\n")


def rounded(value: Any) -> Any:
    """Return a number with as many digits as a page shows."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def cell(row: Mapping[str, str]) -> str:
    """Return median / P90 of the error, and the share inside the interval."""
    return f"{float(row['median']):.0f} / {float(row['p90']):.0f} ({float(row['inside']):.0f})"


def newest(rows: list[Mapping[str, str]]) -> Mapping[str, str]:
    """Return the row of the newest version of an engine."""
    return max(rows, key=lambda row: [int(n) for n in re.findall(r"\d+", row["dataset"])])


def matrix(rows: list[Mapping[str, str]]) -> str:
    """Return kinds of work against devices; an empty cell has no measured rows."""
    systems = sorted(dict.fromkeys(row["system"] for row in rows), key=age)
    kinds: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        engine = row["dataset"].partition("/")[0]
        kinds.setdefault((row["what"], engine, row["class"]), []).append(row)
    lines = []
    for kind, own in sorted(kinds.items()):
        by_system = [[row for row in own if row["system"] == system] for system in systems]
        count = sum(int(float(row["rows"])) for row in own)
        cells = [cell(newest(found)) if found else "n/a" for found in by_system]
        lines.append([*kind, f"{count:,}", *cells])
    return table(["what", "engine", "class", "rows", *systems], lines)


def age(system: str) -> tuple[bool, str]:
    """Order systems: the A100 and Hopper first."""
    return not system.startswith(("a100", "h")), system


def overview(rows: list[Mapping[str, str]], parts: Iterable[str]) -> str:
    """Return one line for each part: rows, cells, and how the cells are off."""
    lines = []
    for part in parts:
        own = [row for row in rows if row["part"] == part]
        if part.startswith("whole models"):  # its other cells are parts of these
            own = [row for row in own if row["class"] in ("EP 1", "EP > 1")]
        medians = sorted(float(row["median"]) for row in own)
        inside = sorted(float(row["inside"]) for row in own)
        good = sum(median <= 10 for median in medians)
        total = sum(int(float(row["rows"])) for row in own)
        lines.append(
            [
                part,
                f"{total:,}",
                len(own),
                f"{medians[len(medians) // 2]:.1f}",
                f"{100 * good / len(own):.0f}",
                f"{inside[len(inside) // 2]:.0f}",
            ]
        )
    heads = ["part", "held-out rows", "cells", "median cell, %", "cells within 10 %, %"]
    return table([*heads, "inside the interval, %"], lines)


def read(path: Path) -> list[dict[str, str]]:
    """Read a table of docs/data."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page() -> str:
    """Return the accuracy page."""
    about, points = json.loads(ABOUT.read_text()), read(POINTS)
    rows = [row for row in read(SCORES) if row["inside"]]
    long = [row for row in rows if not row["class"].endswith("< 20 us")]
    parts = list(dict.fromkeys(row["part"] for row in rows))
    models = [row for row in rows if row["part"].startswith("whole models")]
    scored = [row for row in points if row["scored"] == "True"]
    sections = [
        "# Accuracy",
        "How far off moesim is, on measurements that nothing was fitted to. "
        f"Version {about['version']}; written by `make accuracy` from `docs/data/accuracy.csv`, "
        "which holds every cell with its rows, MAPE, bias and the error of a plain roofline. "
        "`moesim validate` prints the same figures.",
        overview(rows, parts),
        "Cells read **median / P90 of the error in percent (share of the measurements inside the "
        "80 % interval)**; `n/a`: no measured rows. Of several versions of an engine the newest "
        "is shown; the file has all.",
    ]
    for part in parts:
        if part.startswith("whole models"):
            continue
        own = [row for row in long if row["part"] == part]
        sections += [f"## {part[0].upper()}{part[1:]}", matrix(own)]
    sections += [
        "## Whole models",
        "Measured serving runs: " + ", ".join(f"{n:,} {what}" for what, n in about["runs"].items()),
        table(
            ["runs", "number", "median / P90, % (inside)"],
            [[r["class"], f"{float(r['rows']):,.0f}", cell(r)] for r in models],
        ),
        "## Published figures",
        f"{about['points']['scored']:.0f} are scored, {about['points']['covered']:.0f} covered; "
        f"{about['points']['within_20_percent']:.0f} % come within 20 % (one that is not covered "
        "counts as a miss).",
        table(
            ["figure", "metric", "published", "simulated", "error, %"],
            [
                [
                    r["point"],
                    r["metric"],
                    r["published"],
                    r["simulated"] or f"not covered: {r['note']}",
                    f"{float(r['error_percent']):+.0f}" if r["error_percent"] else "n/a",
                ]
                for r in scored
            ],
        ),
        NOTES.read_text(encoding="utf-8").strip(),
    ]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    PAGE.write_text(page(), encoding="utf-8")
