"""The studies of whole models write what they say."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

STUDIES = Path(__file__).parent.parent.parent / "studies"


@pytest.mark.parametrize(
    ("script", "words", "name"),
    [
        ("serve_any.py", ["gpt-oss-120b", "--engine", "vllm"], "runs.csv"),
        ("serve_deepseek_v3.py", ["--clusters", "h100-rail-8x8"], "designs.csv"),
    ],
)
def test_designs_and_their_front(tmp_path, script, words, name):
    subprocess.run(
        [sys.executable, str(STUDIES / script), *words, "--quick", "--out", str(tmp_path)],
        check=True,
        capture_output=True,
    )
    rows = list(csv.DictReader((tmp_path / name).open()))
    front = list(csv.DictReader((tmp_path / "front.csv").open()))
    assert 0 < len(front) <= len(rows)
    best = max(float(row["output_tokens_per_s_per_device"]) for row in rows)
    assert float(front[0]["output_tokens_per_s_per_device"]) == best


@pytest.mark.full
def test_a_search_confirms_its_winners(tmp_path):
    subprocess.run(
        [sys.executable, str(STUDIES / "serve_search.py"), "--quick", "--out", str(tmp_path)],
        check=True,
        capture_output=True,
    )
    trials = list(csv.DictReader((tmp_path / "trials.csv").open()))
    winners = list(csv.DictReader((tmp_path / "winners.csv").open()))
    assert len(trials) == 20
    assert {row["requests_by"] for row in winners} == {"request loop"}
    assert {row["model"] for row in trials + winners} == {"gpt-oss-120b"}
