"""What every command has in common: one JSON document, details, literal help, completion."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from moesim.cli.output import commands_of, literal
from moesim.cli.root import app
from moesim.report.document import plain, showing
from moesim.report.terminal import print_table, tell

RUN = CliRunner()
MOESIM = Path(sys.executable).with_name("moesim")
STUDIES = Path(__file__).parent.parent.parent / "studies"
TRAIN = "train --model olmoe-1b-7b --gpus 8 --global-batch 64 --layout ep8 --cluster hgx-h100-8"
SERVE = (
    "serve --model olmoe-1b-7b --layout ep8 --num-requests 8 --concurrency 4 --cluster hgx-h100-8"
)
#: a command -> keys of its document
DOCUMENTS = {
    "simulate --preset olmoe-1b-7b": {"tables", "lines", "result", "phases"},
    "profiles": {"tables"},
    "profiles h100-sxm": {"tables"},
    "models show olmoe-1b-7b": {"name", "kinds", "order", "total_params"},
    "quality laws": {"tables"},
    "bench alltoall --cluster star-8 --bytes-per-pair 4096": {"time_us", "cluster"},
    TRAIN: {"lines", "step", "answer"},
    SERVE: {"lines", "best", "answer"},
    f"operate --plan {STUDIES / 'operate_growth.toml'}": {"tables", "lines", "stages", "answer"},
    f"operate --plan {STUDIES / 'operate_serving.toml'}": {"lines", "days", "events", "answer"},
}


def groups(command, name=()):
    yield name, command
    for key, inner in getattr(command, "commands", {}).items():
        yield from groups(inner, (*name, key))


@pytest.mark.parametrize("command", DOCUMENTS)
def test_a_document_is_all_of_stdout(command):
    done = RUN.invoke(app, [*command.split(), "--json"])
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found.keys() >= DOCUMENTS[command]
    for table in found.get("tables", []):
        assert table["title"]
        assert all(isinstance(row, dict) for row in table["rows"])
    if "answer" in found:
        assert found["answer"].keys() == {"build", "confidence", "next_step", "assumptions"}


def test_every_command_prints_a_document_and_details():
    leaves = 0
    for name, command in groups(typer.main.get_command(app)):
        if not hasattr(command, "commands"):
            leaves += 1
            flags = {flag for parameter in command.params for flag in parameter.opts}
            assert flags >= {"--json", "--details"}, name
    assert leaves == len(list(commands_of(app)))


def test_an_error_is_one_line_and_no_document():
    done = subprocess.run(
        [sys.executable, "-m", "moesim", "simulate", "--preset", "olmoe", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown preset 'olmoe': did you mean olmoe-1b-7b?")


def test_values_of_numpy_and_values_that_are_not_finite_are_json(capsys):
    with showing(as_json=True):
        print_table("t", [{"a": np.float32(0.5), "b": float("nan"), "c": Path("x")}], ["a"])
        tell("only for details", detail=True)
    found = json.loads(capsys.readouterr().out)
    rows = [{"a": 0.5, "b": None, "c": "x"}]
    assert found == {"tables": [{"title": "t", "rows": rows}], "lines": ["only for details"]}
    assert plain({1: (np.arange(2), {3})}) == {"1": [[0, 1], [3]]}


def test_help_shows_every_bracket_and_word_as_written(monkeypatch):
    """Rich takes [word] for markup and leaves it out, unless it is escaped."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    bracketed = 0
    for name, command in groups(typer.main.get_command(app)):
        shown = "".join(re.sub(r"[│\s]", "", RUN.invoke(app, [*name, "--help"]).stdout).split())
        texts = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
        for text in filter(None, texts):
            written = text.replace("\\[", "[")
            bracketed += "[" in written
            for bracket in re.findall(r"\[[^\]]*\]", written):
                assert re.sub(r"\s", "", bracket) in shown, (name, written)
    assert bracketed


def test_literal_escapes_once():
    assert literal("a [b] \\[c]") == "a \\[b] \\[c]"
    assert literal(None) is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_completes(shell):
    env = {"_MOESIM_COMPLETE": f"source_{shell}"}
    shown = subprocess.run(
        [MOESIM], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **env}
    )
    assert "complete" in shown.stdout
    asked = {
        "_MOESIM_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "moesim st",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "moesim st",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [MOESIM],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", **asked},
    )
    assert "study" in done.stdout
