"""Commands with an input that nobody would write, and what must hold however they end.

A case starts from a command that works (`starts`), of which one or two options take another value
or one file another content. All of it follows from the case's seed, which a failure names;
``FUZZ_SEED`` moves to other cases.
"""

import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

import pytest
import typer

from moesim.cli.command import run_command
from moesim.cli.root import app
from moesim.cli.script import run_app

BATCHES, CASES = 24, 100

#: of a refusal
MOST_CHARACTERS, MOST_S, MOST_MIB = 300, 5.0, 500
#: errors of a TOML file, each on a line, and the number of the others
MOST_LINES = 21
#: how lines begin that a command may say before it is refused
BEFORE = ("assumed: ", "searching: ", "note: ")
#: what a command may take that is not refused
MOST_WORK_S = 20.0

NUMBERS = (
    "0", "-1", "1", "2", "3", "7", "1.5", "-0.0", "1e-300", "1e-9", "1e9", "1e308", "-1e308",
    "1e400", "nan", "inf", "-inf", "1000000000", "16777216", "4294967297",
    "9223372036854775807", "9223372036854775808", "9" * 30, "9" * 5000, "1_000", "0x10", "1e3",
    "١٢", "½", "", " ",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "-", "--", "é", "\x1b[31mred", "a\nb", "a\tb", "=1+1", "@x", "'; true #",
    "$(true)", "../..", "/", ".", "/dev/null", "/dev/full", "no/such/file", "x" * 300,
    "x" * 5000, "none", "auto", "zipf:nan", "zipf:1e308", "lognormal:1000", "uniform:9-1",
    "uniform:0-0", "power_law:-1", "domains:4:1e308", "rail-100000x100000", "star-0",
    "star-1000000000", "torus-1x1", "ep8", "ep0", "ep3tp5", "tp8", "a:b:c:d", ":", ",", ",,,",
    "1,2,3", "1:2", "1-2", "postgresql://user:secret@nowhere/x", "null", "{}", "[]", "true",
    "﻿x", "‮x",
)  # fmt: skip
#: what takes the place of a value in a text file
TOKENS = (
    *NUMBERS, "null", "true", "[]", "{}", '""', '"x"', "[[1]]", '{"a": 1}', "[" * 3000,
    "{" * 3000, '"' + "x" * 5000 + '"', "NaN", "Infinity", "1979-05-27", "\x00", "﻿", "'", '"',
    ",", ";", "\\", "\\u0000", "\r", "=", "#",
)  # fmt: skip
_VALUE = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?|\"[^\"\n]*\"|true|false|[A-Za-z_]+")


class Late(BaseException):
    """A case took longer than any may."""


def _late(number, frame):
    raise Late


@dataclass(frozen=True)
class Case:
    """A command, and the files that are there by name."""

    words: tuple[str, ...]
    files: dict[str, bytes]

    def __str__(self):
        return " ".join(
            word if word.isprintable() and len(word) < 80 else ascii(word)[:80]
            for word in self.words
        )


def options_of(words):
    """Return the options of a command that take a value, each with the type of its default."""
    command = typer.main.get_command(app)
    for word in words:
        commands = getattr(command, "commands", {})
        if word not in commands:
            break
        command = commands[word]
    found = []
    for parameter in command.params:
        if getattr(parameter, "is_flag", False) or parameter.name == "help":
            continue
        flag = max(parameter.opts, key=len) if parameter.param_type_name == "option" else ""
        if flag.startswith("--") and flag not in ("--install-completion", "--show-completion"):
            found.append((flag, type(parameter.default)))
    return found


def replaced(words, flag, value):
    """Return a command with another value of an option."""
    words = list(words)
    while flag in words:
        at = words.index(flag)
        del words[at : at + 2]
    return (*words, flag, value)


def mutated_options(random_, words):
    """Return a command with other values of one or two options."""
    options = options_of(words)
    if not options:  # it has an argument
        return (*words[:-1], random_.choice(TEXTS))
    for _ in range(random_.choice((1, 1, 1, 2))):
        flag, kind = random_.choice(options)
        numbers = {int: 0.85, float: 0.85, str: 0.15}.get(kind, 0.5)
        value = random_.choice(NUMBERS if random_.random() < numbers else TEXTS)
        words = replaced(words, flag, value)
    return words


def mutated_bytes(random_, content):
    """Return the content of a file with one to three changes."""
    for _ in range(random_.choice((1, 1, 2, 3))):
        content = random_.choice(CHANGES)(random_, content)
    return content


def _value(random_, content):
    """Put something else where a value or a key is."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return _flip(random_, content)
    found = list(_VALUE.finditer(text))
    if not found:
        return content + random_.choice(TOKENS).encode()
    at = random_.choice(found)
    return (text[: at.start()] + random_.choice(TOKENS) + text[at.end() :]).encode()


def _flip(random_, content):
    if not content:
        return b"\x00"
    at = random_.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << random_.randrange(8)]) + content[at + 1 :]


def _cut(random_, content):
    return content[: random_.randrange(len(content) + 1)]


def _line(random_, content):
    """Drop, repeat or swap lines."""
    lines = content.splitlines(keepends=True)
    if len(lines) < 2:
        return content * 2
    one, other = random_.randrange(len(lines)), random_.randrange(len(lines))
    way = random_.choice(("drop", "repeat", "swap"))
    if way == "drop":
        del lines[one]
    elif way == "repeat":
        lines.insert(other, lines[one])
    else:
        lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def _insert(random_, content):
    at = random_.randrange(len(content) + 1)
    return content[:at] + random_.choice(TOKENS).encode() + content[at:]


def _other(random_, content):
    del content
    return random_.choice(
        (
            b"",
            b"\xff\xfe\x00",
            b"[]",
            b"5",
            b"null",
            b"{}",
            b"[" * 100_000,
            b"\n" * 1000,
            b"PK\x03\x04",
        )
    )


CHANGES = (_value, _value, _value, _value, _flip, _cut, _line, _insert, _other)


def case_of(seed, starts):
    """Return the case of a seed."""
    random_ = random.Random(seed)
    words, files, _ = random_.choices(starts, [weight for *_, weight in starts])[0]
    if files and random_.random() < 0.65:
        name = random_.choice(sorted(files))
        return Case(words, files | {name: mutated_bytes(random_, files[name])})
    return Case(mutated_options(random_, words), files)


def fault_of(case, folder, peak_mib):
    """Run a case in a folder; return what it did that no command may, or ""."""
    for name, content in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    there = set(folder.rglob("*"))
    out, err = StringIO(), StringIO()
    held_mib = peak_mib(anew=True)
    began = time.process_time()
    argv, sys.argv = sys.argv, ["moesim", *case.words]
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(2 * int(MOST_WORK_S))
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            warnings.catch_warnings(record=True) as told,
        ):
            warnings.simplefilter("always")
            run_command(lambda: run_app(app))
        code = 0
    except SystemExit as ended:
        code = ended.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    except Late:
        return f"is not done after {time.process_time() - began:.0f} s"
    finally:
        signal.alarm(0)
        sys.argv = argv
    took_s = time.process_time() - began
    grown_mib = peak_mib() - held_mib
    odd = [str(one.message) for one in told if issubclass(one.category, RuntimeWarning)]
    if odd:
        return f"warns: {odd[0]}"
    if code == 0:
        return _fault_of_answer(out.getvalue(), took_s)
    left = sorted(path.name for path in set(folder.rglob("*")) - there)
    if left:
        return f"leaves {left} after: {err.getvalue()[:200]}"
    if took_s > MOST_S or grown_mib > MOST_MIB:
        return f"refuses after {took_s:.1f} s and {grown_mib:.0f} MiB: {err.getvalue()[:200]}"
    return _fault_of_refusal(case, code, err.getvalue())


def _fault_of_answer(text, took_s):
    if re.search(r"\bnan\b", text):
        return f"answers with nan: {text[:500]}"
    if "\x1b" in text:
        return "passes a terminal's escape on"
    if took_s > MOST_WORK_S:
        return f"works for {took_s:.0f} s"
    return ""


def _fault_of_refusal(case, code, said):
    if code not in (2, 3):
        return f"exit code {code}: {said[-300:]}"
    # what it takes as given and what it is about to do is said before
    lines = [line for line in said.splitlines() if not line.startswith(BEFORE)]
    most = MOST_LINES if any(name.endswith(".toml") for name in case.files) else 1
    if not 1 <= len(lines) <= most or not lines[0].startswith("error: "):
        return f"{len(lines)} lines: {said[:500]}"
    long = max(lines, key=len)
    if len(long) > MOST_CHARACTERS or not all(line.isprintable() for line in lines):
        return f"a line of {len(long)} characters: {long[:400]!a}"
    return ""


@pytest.mark.full
@pytest.mark.parametrize("batch", range(BATCHES))
def test_whatever_is_changed_it_works_or_is_refused_in_one_line(
    batch, starts, tmp_path, monkeypatch, record_property, peak_mib
):
    first = int(os.environ.get("FUZZ_SEED", "0")) + batch * CASES
    faults = []
    for seed in range(first, first + CASES):
        case, folder = case_of(seed, starts), tmp_path / str(seed)
        folder.mkdir()
        monkeypatch.chdir(folder)
        if fault := fault_of(case, folder, peak_mib):
            faults.append(f"seed {seed}: moesim {case}\n    {fault}")
        shutil.rmtree(folder)
    record_property("fuzzed seeds", f"{first}-{first + CASES - 1}")
    assert not faults, "\n".join(faults)
