"""Print tables on stdout, and progress and messages on stderr."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from moesim.errors import printable

_PLAIN_WIDTH = 160


def console(*, stderr: bool = False) -> Console:
    """Make a console; without a terminal it is wide and plain, so that tables survive a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() or os.environ.get("COLUMNS") else _PLAIN_WIDTH
    return Console(file=stream, width=wide, highlight=False, markup=False, emoji=False)


def width() -> int:
    """Return the width of stdout in characters."""
    return console().width


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout as they are."""
    for line in lines:
        print(printable(line))


def cell(value: Any) -> str:
    """Format a value for people: 4 digits for numbers, grouped thousands, - for nothing."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def print_table(
    title: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str]
) -> None:
    """Print rows as a table.

    Args:
        title: Heading of the table.
        rows: Rows, as flat mappings.
        columns: Keys to show, or key -> heading.
    """
    headings = dict(columns) if isinstance(columns, Mapping) else {c: c for c in columns}
    rows = list(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for key, heading in headings.items():
        numeric = all(isinstance(row.get(key), int | float) or row.get(key) is None for row in rows)
        table.add_column(
            heading,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=key == "candidate",
        )
    for row in rows:
        table.add_row(*(cell(row.get(key)) for key in headings))
    out = console()
    out.print(printable(title), style="bold", soft_wrap=True)
    out.print(table)


def print_parts(
    rows: Sequence[Mapping[str, Any]], parts: Sequence[str], columns: Mapping[str, str]
) -> None:
    """Print a table for each run of rows that share the values of ``parts``, which head it.

    Args:
        rows: Rows, as flat mappings, those of a part next to each other.
        parts: Keys that name a part.
        columns: Key -> heading of the other columns.
    """
    for named, found in groupby(rows, itemgetter(*parts)):
        print_table(", ".join(str(value) for value in named), found, columns)


def say(text: str) -> None:
    """Print a line for the person who waits, on stderr."""
    for line in text.split("\n"):
        console(stderr=True).print(printable(line), soft_wrap=True)


@contextmanager
def trial_progress(total: int) -> Iterator[Any]:
    """Show a progress bar over trials, and yield a function to call now and then.

    The function takes the number of trials since it was last called, and a text about the best so
    far.
    """
    shown = Progress(
        TextColumn("search"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"),
        console=console(stderr=True),
        transient=False,
    )
    with shown:
        task = shown.add_task("trials", total=total, rate="", best="")

        def advance(trials: int, best: str) -> None:
            speed = shown.tasks[task].speed
            shown.update(
                task, advance=trials, best=best, rate=f"{speed:,.0f} trials/s" if speed else ""
            )

        yield advance
