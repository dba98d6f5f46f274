"""A study's journal opens in Optuna's dashboard as it is."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest


@pytest.mark.full
def test_the_dashboard_shows_a_study(study, tmp_path, free_port):
    found = study(tmp_path, num_trials=60, constraints=["layer_time_us <= 1e5"])
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "optuna_dashboard._cli",
            str(tmp_path / "study.journal"),
            "--port",
            str(free_port),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        whole = _get(free_port, "/api/studies", server)["study_summaries"]
        assert [s["study_name"] for s in whole] == ["moesim"]
        detail = _get(free_port, f"/api/studies/{whole[0]['study_id']}?after=0", server)
        states = [t["state"] for t in detail["trials"]]
        assert len(states) == 60
        assert states.count("Complete") == sum(not t.evaluation.reason for t in found.trials)
        shown = {p["name"] for t in detail["trials"] for p in t["params"]}
        assert shown == {name for t in found.trials for name in t.params}
    finally:
        server.terminate()
        server.wait(20)


def _get(port, path, server):
    for _ in range(150):
        assert server.poll() is None, server.stderr.read()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return json.loads(answer.read())
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError("the dashboard did not answer")
