"""Print tables on stdout, and progress and messages on stderr."""

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich import box, progress
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from moesim.errors import printable
from moesim.report.document import collect, shown
from moesim.report.labels import without_common_words
from moesim.report.table_layout import GAP, TextColumn, column_widths, wrapped

_PLAIN_WIDTH = 160
#: a line of text is at most so wide, since longer ones are hard to read
_WIDEST = 100
#: whether an empty line was printed last
_AFTER_GAP: ContextVar[bool] = ContextVar("after_gap", default=False)
#: a cell that reads as a number, such as ``+2.0`` or ``14 %``
_NUMBER = re.compile(r"[+-]?[\d,.]+(e[+-]?\d+)?( ?%)?|-")
#: characters of a progress bar with its counts, rate and time
_BAR = 50
#: number of columns that people see without asking for details
_COLUMNS = 6


def console(*, stderr: bool = False) -> Console:
    """Make a console; without a terminal it is wide and plain, so that tables survive a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() or os.environ.get("COLUMNS") else _PLAIN_WIDTH
    return Console(file=stream, width=wide, highlight=False, markup=False, emoji=False)


def text_width() -> int:
    """Return the width in characters at which lines of text wrap: nowhere in a pipe, where other
    programs read lines, unless the environment states ``COLUMNS``.
    """
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return min(console().width, _WIDEST)
    return sys.maxsize


def tell(text: str, *, indent: int = 0, detail: bool = False) -> None:
    """Print a line of findings on stdout, wrapped between words.

    Args:
        text: The line.
        indent: Number of characters by which further lines are indented.
        detail: Whether people see it only with ``--details``.
    """
    if collect("lines", text) or (detail and not shown().details):
        return
    _AFTER_GAP.set(False)
    print(
        textwrap.fill(
            printable(text),
            text_width(),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def print_gap() -> None:
    """Print an empty line on stdout, unless one was printed last."""
    if not _AFTER_GAP.get():
        print()
    _AFTER_GAP.set(True)


def tell_command(text: str) -> None:
    """Print a command, or the lines of a file, on stdout: never wrapped, so that they can be
    copied.
    """
    if not collect("lines", text):
        _AFTER_GAP.set(False)
        print(text)


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
    title: str,
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str],
    *,
    limit: int | None = None,
) -> None:
    """Print rows as a table that fits the terminal.

    It has the first six columns, or as many as fit; with ``--details`` all, in several tables
    below each other where they do not fit. A line below says what was left out. In JSON the rows
    are whole.

    Args:
        title: Heading of the table.
        rows: Rows, as flat mappings.
        columns: Keys to show, or key -> heading, the most important ones first: the first names
            the row. Words that all rows have in a column ``candidate`` are written below it once.
        limit: Number of rows to show without ``--details``; None for all.
    """
    rows = list(rows)
    if collect("tables", {"title": title, "rows": [dict(row) for row in rows]}):
        return
    _AFTER_GAP.set(False)
    details, out = shown().details, console()
    headings = dict(columns) if isinstance(columns, Mapping) else {c: c for c in columns}
    seen = rows if details or limit is None else rows[:limit]
    texts, shared = _as_text(seen, headings)
    notes = [f"all: {shared}"] if shared else []
    if len(seen) < len(rows):
        notes.append(f"{len(seen)} of {len(rows)} rows")
    out.print(wrapped(printable(title), out.width), style="bold", soft_wrap=True)
    widths = column_widths(texts if details else texts[:_COLUMNS], out.width)
    _print_columns(out, texts[: len(widths)], widths)
    done = len(widths)
    while details and done < len(texts):  # the rest below, each part with the rows' names
        part = [texts[0], *texts[done:]]
        widths = column_widths(part, out.width)
        if len(widths) == 1:  # not even one beside the names
            part, widths = texts[done : done + 1], column_widths(texts[done : done + 1], out.width)
            done += 1
        else:
            done += len(widths) - 1
        _print_columns(out, part[: len(widths)], widths)
    if done < len(texts):
        notes.append(f"{done} of {len(texts)} columns")
    if notes:
        more = "; --details shows all" if done < len(texts) or len(seen) < len(rows) else ""
        note = f"({'; '.join(notes)}{more})"
        out.print(wrapped(printable(note), out.width), style="dim", soft_wrap=True)
    print_gap()


def _as_text(
    rows: Sequence[Mapping[str, Any]], headings: Mapping[str, str]
) -> tuple[list[TextColumn], str]:
    """Return the columns as text, and the words that all candidates share."""
    texts, shared = [], ""
    for key, heading in headings.items():
        values = [row.get(key) for row in rows]
        cells = [cell(value) for value in values]
        if key == "candidate":
            cells, words = without_common_words(cells)
            shared = shared or words
        numeric = all(isinstance(value, int | float) or value is None for value in values)
        numeric = numeric or all(_NUMBER.fullmatch(text) for text in cells)
        texts.append(TextColumn(heading=heading, cells=tuple(cells), numeric=numeric))
    return texts, shared


def _print_columns(out: Console, columns: Sequence[TextColumn], widths: Sequence[int]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column, size in zip(columns, widths, strict=True):
        table.add_column(
            _aligned(column, column.heading, size),
            width=size,
            no_wrap=True,
            overflow="ignore",
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        lines = zip(columns, row, widths, strict=True)
        table.add_row(*(_aligned(*line) for line in lines))
    out.print(table)


def _aligned(column: TextColumn, text: str, size: int) -> str:
    """Return a text wrapped to a width, to the right for a number."""
    lines = wrapped(text, size).split("\n")
    if column.numeric:
        lines = [" " * (size - cell_len(line)) + line for line in lines]
    return "\n".join(lines)


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
    out = console(stderr=True)
    for line in text.split("\n"):
        safe = printable(line)
        out.print(wrapped(safe, out.width) if out.is_terminal else safe, soft_wrap=True)


@contextmanager
def trial_progress(total: int) -> Iterator[Any]:
    """Show a progress bar over trials, and yield a function to call now and then.

    The function takes the number of trials since it was last called, and texts about the best so
    far, of which it shows the first ones that fit.
    """
    bar = progress.Progress(
        progress.TextColumn("search"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[best]}"),
        console=console(stderr=True),
        transient=False,
    )
    with bar:
        task = bar.add_task("trials", total=total, rate="", best="")

        def advance(trials: int, best: Sequence[str]) -> None:
            speed = bar.tasks[task].speed
            text, room = "", bar.console.width - _BAR
            for part in best:
                longer = f"{text}  {part}".strip()
                if len(longer) > room:
                    break
                text = longer
            bar.update(
                task, advance=trials, best=text, rate=f"{speed:,.0f} trials/s" if speed else ""
            )

        yield advance
