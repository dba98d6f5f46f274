"""Write the performance page from what `make bench` measured.

python docs/tools/performance.py BENCH.json   # docs/data/performance.csv, then the page
python docs/tools/performance.py              # the page alone
"""

import csv
import json
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent
DATA, ABOUT, PAGE = (
    DOCS / "data" / "performance.csv",
    DOCS / "data" / "performance.json",
    DOCS / "performance.md",
)


def take(path: Path) -> None:
    """Read a report of pytest-benchmark and write docs/data."""
    from moesim.report import write_csv
    from moesim.version import VERSION

    report = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for found in report["benchmarks"]:
        of = found["stats"]
        extra = ", ".join(f"{key} {short(value)}" for key, value in found["extra_info"].items())
        rows.append(
            {
                "part": Path(found["fullname"].partition("::")[0]).stem[5:].removesuffix("_speed"),
                "what": named(found["name"]),
                "minimum_s": of["min"],
                "median_s": of["median"],
                "rounds": of["rounds"],
                "further": extra,
            }
        )
    write_csv(DATA, rows)
    machine = report["machine_info"]
    run = {row["part"] for row in rows}
    every = {
        path.stem[5:].removesuffix("_speed")
        for path in (DOCS.parent / "tests" / "benchmarks").glob("test_*.py")
    }
    about = {
        "version": VERSION,
        "cpu": machine["cpu"].get("brand_raw", machine["machine"]),
        "cores": machine["cpu"].get("count"),
        "python": machine["python_version"],
        "date": report["datetime"][:10],
        "left_out": sorted(every - run),
    }
    ABOUT.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def named(test: str) -> str:
    """Return the name of a benchmark in words."""
    name, _, case = test.removeprefix("test_").partition("[")
    words = name.replace("_", " ")
    return f"{words}: {case.rstrip(']').replace('-', ', ')}" if case else words


def short(value: object) -> str:
    """Return a number with three digits, or a text."""
    return f"{value:,.3g}" if isinstance(value, float) else str(value)


def time(seconds: str) -> str:
    """Return a time with its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if float(seconds) >= size:
            return f"{float(seconds) / size:.3g} {unit}"
    return f"{float(seconds) / 1e-9:.3g} ns"


def page() -> str:
    """Return the performance page."""
    about = json.loads(ABOUT.read_text(encoding="utf-8"))
    with DATA.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    text = [
        "# Performance",
        f"Written by `make bench`: version {about['version']}, {about['date']}, on "
        f"{about['cores']} cores of {about['cpu']}, Python {about['python']}. "
        "Machines in a cloud are noisy: the minimum is what the machine can do, the median what "
        "it did. No test asserts a time.",
    ]
    if about["left_out"]:
        names = ", ".join(name.replace("_", " ") for name in about["left_out"])
        text.append(f"Not in this run: {names}.")
    for part in dict.fromkeys(row["part"] for row in rows):
        lines = [
            f"| {r['what']} | {time(r['minimum_s'])} | {time(r['median_s'])} | {r['further']} |"
            for r in rows
            if r["part"] == part
        ]
        heads = ["| what | minimum | median | further |", "|---|---|---|---|"]
        text += [f"## {part.replace('_', ' ').capitalize()}", "\n".join([*heads, *lines])]
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    if sys.argv[1:]:
        take(Path(sys.argv[1]))
    PAGE.write_text(page(), encoding="utf-8")
