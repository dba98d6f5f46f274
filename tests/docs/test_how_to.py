"""Pages that tell how to do something are followed to the letter, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moesim

PAGES = Path(moesim.__file__).parent.parent / "docs" / "how-to"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def follow(page, folder):
    """Run the blocks of a page one after the other; return what each printed."""
    bin_folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}
    env.pop("MOESIM_PROFILES", None)
    printed = []
    for language, text in BLOCK.findall((PAGES / page).read_text(encoding="utf-8")):
        command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{page}: {text}\n{done.stderr}"
        printed.append(done.stdout)
    assert printed
    return printed


@pytest.mark.full
def test_an_unlisted_gpu_is_made_by_its_page_alone(tmp_path):
    printed = follow("own-hardware.md", tmp_path)
    shown = printed[2]
    assert re.search(r"hbm.bandwidth_gb_per_s\s+4,000\s+assumed", shown)
    assert "knee at" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "cluster node of my" in printed[4]
    assert "layer " in printed[4]
    assert "qwen3" in printed[5].lower()


def test_routing_of_ones_own_is_used_by_its_page_alone(tmp_path):
    printed = follow("own-trace.md", tmp_path)
    assert "ids of 1 layers" in printed[1]


@pytest.mark.full
def test_timelines_are_written_by_their_page_alone(tmp_path):
    printed = follow("timeline.md", tmp_path)
    assert printed[-1].startswith("<svg")
    assert {path.name for path in tmp_path.iterdir()} >= {"layer.json", "serve.json", "train.json"}
