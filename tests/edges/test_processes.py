"""Processes end together and in order: real commands, real signals, a real scheduler."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moesim.search.session.join import load_study

STUDY = Path(__file__).parent.parent.parent / "studies" / "small_study.toml"
SOON_S = 2.5

pytestmark = pytest.mark.full


def start(out, *options, trials=5000):
    """Start a study in a group of its own, as a shell does."""
    words = ["study", "run", str(STUDY), "--trials", str(trials), "--confirm", "0"]
    # the same one for any number of trials, so that a study may go on
    words += ["--sampler", "nsga2"]
    return subprocess.Popen(
        [sys.executable, "-m", "moesim.cli", *words, "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "80"},
    )


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def has_trials(out):
    journal = out / "study.journal"
    return journal.exists() and journal.stat().st_size > 20_000


def children(pid):
    """Processes below one, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found += [int(stat.parent.name), *children(int(stat.parent.name))]
    return found


def alive(pids):
    def state(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "X"

    return [pid for pid in pids if state(pid) not in "XZ"]


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        (signal.SIGTERM, False, 143),
        (signal.SIGHUP, False, 129),
        (signal.SIGINT, True, 130),
        (signal.SIGKILL, False, -9),
    ],
    ids=["SIGTERM", "SIGHUP", "Ctrl-C", "SIGKILL"],
)
def test_no_worker_outlives_its_parent_and_trials_are_kept(tmp_path, number, group, code):
    out = tmp_path / "out"
    study = start(out, "--workers", "2")
    until(lambda: has_trials(out))
    workers = children(study.pid)
    assert len(workers) >= 2
    (os.killpg if group else os.kill)(study.pid, number)
    _, said = study.communicate(timeout=SOON_S)
    until(lambda: not alive(workers), SOON_S)
    assert study.returncode == code
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        last = said.strip().splitlines()[-1]
        assert last.startswith(f"ended by {number.name}: finished trials are kept")
    kept = len(load_study(str(out)).trials)
    assert kept > 0
    again = start(out, "--workers", "2", trials=kept + 10)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 0, said
    assert len(load_study(str(out)).trials) == kept + 10


def test_ctrl_c_while_a_command_loads_is_no_traceback(tmp_path):
    for wait_s in (0.12, 0.2, 0.3, 0.5):
        study = start(tmp_path / "out")
        time.sleep(wait_s)
        os.killpg(study.pid, signal.SIGINT)
        _, said = study.communicate(timeout=10)
        assert "Traceback" not in said
        if study.returncode != -signal.SIGINT:  # the interpreter had not begun
            assert study.returncode == 130
            assert "ended by SIGINT" in said


def test_a_scheduler_that_dies_is_one_line(tmp_path):
    port = 20_000 + os.getpid() % 20_000
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler = subprocess.Popen(
        [*dask, "--port", str(port), "--host", "127.0.0.1", "--no-dashboard"], **options
    )
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_worker", f"127.0.0.1:{port}"),
            *("--nthreads", "1", "--no-dashboard", "--no-nanny"),
        ],
        **options,
    )
    try:
        time.sleep(3)
        out = tmp_path / "out"
        study = start(out, "--executor", f"dask://127.0.0.1:{port}")
        until(lambda: has_trials(out))
        scheduler.kill()
        begun = time.monotonic()
        _, said = study.communicate(timeout=60)
        took_s = time.monotonic() - begun
        assert study.returncode == 3, said
        assert "Traceback" not in said
        assert "went away; finished trials are kept" in said.strip().splitlines()[-1]
        assert took_s < 20
    finally:
        scheduler.kill()
        worker.kill()
    assert load_study(str(out)).trials
