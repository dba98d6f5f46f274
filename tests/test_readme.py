"""The README's snippets run and its commands exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("moesim")
]


#: commands of five seconds and more
LONG = (
    "moesim measure",
    "moesim validate kernels",
    "moesim validate libraries",
    "moesim validate published",
    "moesim recommend --model deepseek-v3 --compare",
    "moesim recommend --model gpt-oss-120b",
)


def test_readme_has_snippets_and_commands():
    assert len(SNIPPETS) == 3
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if "readme/winners.csv" in code:
        assert len((tmp_path / "studies/out/readme/winners.csv").read_text().splitlines()) > 1
    elif "ServingSpace" in code:
        assert done.stdout.count(" ms a token") > 1
    else:
        assert done.stdout.count(" us  imbalance ") == 3


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.full) if command.startswith(LONG) else command
        for command in COMMANDS
    ],
)
def test_command_runs(command, tmp_path):
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    words = shlex.split(command)
    if "--out" in words:
        words[words.index("--out") + 1] = str(tmp_path / "out")
    environment = os.environ | {"COLUMNS": "150", "MOESIM_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "moesim.cli", *words[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_exist():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    for command in re.findall(r"`?make (\w[\w-]*)", README):
        assert command in targets
