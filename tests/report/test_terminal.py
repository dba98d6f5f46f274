"""Tables fit any terminal and any pipe: no number is broken, and no word letter by letter."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from moesim.advice.breaking import BREAKS_SHOWN, REMEDIES_SHOWN
from moesim.advice.serving_text import DIVIDED
from moesim.advice.serving_text import SHOWN as ADVISED
from moesim.cli.operate import _POINTS, _STAGES
from moesim.cli.recommend import _OFFERED
from moesim.cli.recommend import _SHOWN as RECOMMENDED
from moesim.cli.serve import _SHOWN as SERVED
from moesim.measured.check_text import _COMPARED, _UNMEASURED, _WINNERS
from moesim.measured.kernels.errors import ERRORS_SHOWN, RANKING_SHOWN
from moesim.report.document import showing
from moesim.report.table_layout import GAP, TextColumn, column_widths, wrapped
from moesim.report.terminal import cell, print_table
from moesim.search.evaluate import Problem
from moesim.search.serving_problem import ServingProblem
from moesim.search.training_problem import TrainingProblem

WIDTHS = (60, 80, 100, 120, 200)
LABELS = (
    "E512 k22 I1536 fp8 group_limited:8:4 ep2tp4 eplb+8 H4096 L32#40f150",
    "E8 k1 I1024 bf16 flat ep8tp1 contiguous deepep_low_latency H4096 L32#40f150",
)
#: columns of every table that demo, recommend, serve, simulate, check and operate print
TABLES = {
    "winners": Problem.shown,
    "served winners": ServingProblem.shown,
    "trained winners": TrainingProblem.shown,
    "check": _WINNERS,
    "check, nothing measured": _UNMEASURED,
    "every comparison": _COMPARED,
    "phases": ("phase", "time_us", "share", "grade", "rests_on"),
    "alternatives": RECOMMENDED,
    "clusters": _OFFERED,
    "layouts": SERVED,
    "advised": ADVISED,
    "divided": DIVIDED,
    "ways": _POINTS,
    "stages": _STAGES,
    "errors": ERRORS_SHOWN,
    "ranking": RANKING_SHOWN,
    "breaks": BREAKS_SHOWN,
    "remedies": REMEDIES_SHOWN,
}
#: texts of columns that hold no numbers
TEXTS = {
    "candidate": LABELS,
    "interval": ("3,892-4,883", "209-307"),
    "verdict": ("not measured", "inconclusive"),
    "by": ("silicon experts", "triton layer"),
    "source": ("torch-cpu", "silicon"),
    "quantity": ("experts warm", "layer"),
    "why": ("no row of exactly this shape on h100-sxm", "nor rows of fewer and more tokens"),
    "rests_on": ("fitted on 1,780 rows of h100-sxm bfloat16", "assumed: no measured rows"),
    "way": ("every 3,619 s, 2 x copied each 46 steps, 8 spares, elastic", "every 690 s, waiting"),
    "design": ("P/D tp2 dp2 moe_tp4 trtllm", "dp64 ep64 sglang"),
    "layout": ("tp2 dp2 moe_tp4", "dp64 ep64"),
    "cluster": ("h100-rail-8x8", "gb200-nvl72"),
    "remedy": ("product keys, fp8, two hops", "int4 weights"),
    "dataset": ("sglang/0.5.14", "vllm/0.24"),
    "calibration": ("spec_sheet", "calibrated"),
    "what": ("h100_sxm sglang/0.5.14 fp8_block EP>1 fitted", "a100_sxm vllm/0.24 bfloat16 EP=1"),
    "grade": ("A", "D"),
}


def rows_of(columns):
    return [
        {
            key: TEXTS[key][i] if key in TEXTS else (1234567.8, -0.000271)[i] * (1 + place)
            for place, key in enumerate(columns)
        }
        for i in range(2)
    ]


def pieces(word):
    """A word, and what it may break into: runs of its parts that end in punctuation."""
    parts = re.findall(r"[^_/,;:+=\-]*[_/,;:+=\-]+|[^_/,;:+=\-]+", word)
    return {"".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits_with_whole_numbers_and_words(name, details, monkeypatch, capsys):
    columns = TABLES[name]
    rows = rows_of(columns)
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        with showing(details=details):
            print_table(name, rows, columns)
        text = capsys.readouterr().out
        lines = text.splitlines()
        assert max(map(cell_len, lines)) <= width, text
        numbers = {cell(v) for row in rows for v in row.values() if isinstance(v, float)}
        words = {w for row in rows for v in row.values() if isinstance(v, str) for w in v.split()}
        headings = columns if isinstance(columns, tuple) else columns.values()
        named = {w for heading in headings for w in heading.split()}
        known = numbers | {piece for word in words | named for piece in pieces(word)}
        # without the title, rules, and the notes in parentheses
        body = re.sub(r"^\([^)]*\)$|─+", "", text.partition("\n")[2], flags=re.MULTILINE)
        assert set(body.split()) <= known, text
        count = len(columns)
        if details:
            assert " columns" not in text
        elif count > 6 or f" of {count} columns" in text:
            assert "; --details shows all)" in " ".join(text.split())


COMMAND = f"""
from moesim.report.terminal import print_table, tell
from moesim.report.answer import Answer, print_answer
rows = [dict(candidate=c, us=1234567.8, fit="yes", a=1.5, b=2.5, c=3.5, d=4.5)
        for c in {LABELS!r}]
print_table("A table", rows, ["candidate", "us", "fit", "a", "b", "c", "d"])
tell("a line of findings " * 8)
print_answer(Answer(build="Build it. " * 9, confidence="Sure. " * 20, next_step="Measure. " * 20))
"""


@pytest.mark.parametrize("width", WIDTHS)
def test_a_real_terminal_is_filled_to_its_width(width):
    """In a pseudo-terminal, which states its size itself."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdout=slave,
        env=env | {"TERM": "xterm", "NO_COLOR": "1"},
    ) as process:
        os.close(slave)
        read = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            read += part
    os.close(master)
    assert process.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", read.decode()).splitlines()
    assert max(map(len, lines)) <= width
    assert any("1,234,568" in line for line in lines)
    assert any(line.startswith("Next: Measure.") for line in lines)


def test_in_a_pipe_lines_are_whole():
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND], capture_output=True, text=True, check=True, env=env
    )
    assert "a line of findings " * 7 in done.stdout
    assert f"Next: {'Measure. ' * 19}Measure." in done.stdout


texts = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), max_size=30)


@given(
    columns=st.lists(
        st.tuples(texts, st.lists(texts, min_size=2, max_size=2), st.booleans()), min_size=1
    ),
    width=st.integers(1, 200),
)
def test_any_columns_fit_any_width(columns, width):
    made = [TextColumn(heading=h, cells=tuple(c), numeric=n) for h, c, n in columns]
    widths = column_widths(made, width)
    assert 1 <= len(widths) <= len(made)
    assert sum(widths) + GAP * (len(widths) - 1) <= width
    for column, size in zip(made, widths, strict=False):
        if column.numeric and len(widths) > 1:
            assert all(cell_len(text) <= size for text in column.cells)


@given(text=texts, width=st.integers(3, 40))
def test_wrapped_lines_fit(text, width):
    assert all(cell_len(line) <= width for line in wrapped(text, width).split("\n"))


def test_rows_beyond_a_limit_are_counted(capsys):
    rows = [{"candidate": f"E{i} k1", "us": i} for i in range(9)]
    print_table("t", rows, ["candidate", "us"], limit=3)
    text = capsys.readouterr().out
    assert "(all: k1; 3 of 9 rows; --details shows all)" in text
    with showing(details=True):
        print_table("t", rows, ["candidate", "us"], limit=3)
    assert "E8" in capsys.readouterr().out
