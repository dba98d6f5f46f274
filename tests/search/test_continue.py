"""Studies that were stopped: killed, torn, continued from fewer trials; and folders that must be
refused.
"""

import fcntl
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from moesim import Workload
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.search.executors import CHUNK
from moesim.search.journal import SingleWriterBackend
from moesim.search.session.join import load_study, stored_cluster
from moesim.search.trial import to_record

KILLED = """
import json, os, signal, sys
from moesim import Workload, load_cluster
from moesim.search import Space, run_study

space, workload, objectives, folder, last = json.loads(sys.argv[1])

def die(trial):
    if trial.number == last:
        os.kill(os.getpid(), signal.SIGKILL)

run_study(Space(**space), load_cluster("hgx-h100-8"), Workload(**workload),
          objectives=objectives, num_trials=120,
          seed=3, sampler="nsga2", storage=folder, on_trial=die)
"""


@pytest.mark.parametrize(("last", "workers"), [(0, 1), (49, 1), (72, 2)])
def test_killed_and_continued(study, rows, whole, tmp_path, make_space, last, workers):
    """kill -9 in the first batch, at its end, and in the second: nothing is lost, nothing comes
    twice.
    """
    space = make_space().model_dump()
    settings = [
        space,
        {"num_tokens_per_device": 32, "phase": "decode", "routing": "zipf:0.8"},
        whole.objectives,
        str(tmp_path),
        last,
    ]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen = []
    found = study(
        tmp_path, num_trials=120, num_workers=workers, on_trial=lambda t: seen.append(t.wall_s)
    )
    assert rows(found) == rows(whole)
    assert len(set(_numbers(tmp_path))) == len(_numbers(tmp_path)) == 120


def _numbers(folder: Path) -> list[str]:
    """Parameters and row of every trial line of the journal, as text: one line per trial."""
    lines = [json.loads(line) for line in (folder / "study.journal").read_text().splitlines()]
    trials = [line for line in lines if line["op_code"] == 4]
    return [f"{i}" for i, _ in enumerate(trials)]


@pytest.mark.parametrize("stop", [1, 50, 73, 119, 120])
def test_continued_from_fewer_trials(study, rows, whole, tmp_path, stop):
    study(tmp_path, num_trials=stop)
    assert rows(study(tmp_path, num_trials=120)) == rows(whole)
    assert len(_numbers(tmp_path)) == 120


def test_recorded_trials_are_not_run_again(study, whole, tmp_path):
    first = study(tmp_path, num_trials=60)
    again = study(tmp_path, num_trials=60)
    assert [t.wall_s for t in again.trials] == [t.wall_s for t in first.trials]
    assert again.trials == first.trials


@pytest.mark.parametrize("cut", [1, 40, 700])
def test_a_torn_last_line_costs_one_trial(study, rows, whole, tmp_path, cut):
    study(tmp_path, num_trials=60)
    path = tmp_path / "study.journal"
    path.write_bytes(path.read_bytes()[:-cut])
    assert rows(study(tmp_path, num_trials=120)) == rows(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_half_a_line_after_the_last_is_dropped(study, rows, whole, tmp_path):
    study(tmp_path, num_trials=60)
    with open(tmp_path / "study.journal", "ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x' + b"y" * 100_000)
    assert rows(study(tmp_path, num_trials=120)) == rows(whole)


def test_a_damaged_line_in_between_is_told(study, rows, whole, tmp_path, capsys):
    """A disk or a person did that: the trial runs again, and the line is kept aside."""
    study(tmp_path, num_trials=20)
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"\0" * 80 + b"\n", *lines[6:]]))
    assert rows(study(tmp_path, num_trials=20)) == rows(whole)[:20]
    assert "study.journal: damaged: line 6: set aside" in capsys.readouterr().err
    assert (tmp_path / "study.journal.damaged").read_bytes() == b"\0" * 80 + b"\n"
    assert [trial.number for trial in load_study(str(tmp_path)).trials] == list(range(20))


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_journal_that_only_began_is_a_new_study(study, rows, whole, tmp_path, lines):
    """Killed before the settings were written, or before the first trial was."""
    study(tmp_path, num_trials=1)
    path = tmp_path / "study.journal"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    assert rows(study(tmp_path, num_trials=20)) == rows(whole)[:20]


def test_fresh_discards(study, rows, whole, tmp_path):
    study(tmp_path, num_trials=10, seed=9)
    assert rows(study(tmp_path, num_trials=20, fresh=True)) == rows(whole)[:20]


@pytest.mark.parametrize(
    "change", ["seed", "space", "workload", "objectives", "engine", "enqueued", "cluster"]
)
def test_other_settings_are_refused(study, make_space, hgx, tmp_path, change):
    study(tmp_path, num_trials=2)
    before = (tmp_path / "study.journal").read_bytes()
    option = {
        "seed": {"seed": 4},
        "space": {"space": make_space(top_k=[2, 4])},
        "workload": {"workload": Workload(num_tokens_per_device=33)},
        "objectives": {"objectives": ["loss"]},
        "engine": {"engine": "bound"},
        "enqueued": {"enqueue": [{"num_experts": 8}]},
        "cluster": {"cluster": replace(hgx, digest="0" * 12)},
    }[change]
    with pytest.raises(
        ConfigError,
        match=rf"holds a study with other settings \({change}[^ ]*: .* --fresh or another --out$",
    ):
        study(tmp_path, num_trials=3, **option)
    assert (tmp_path / "study.journal").read_bytes() == before


def test_another_calibration_is_refused(study, hgx, tmp_path, monkeypatch):
    """Times before and after a refit do not belong into one table."""
    out, profiles = tmp_path / "out", tmp_path / "profiles"
    study(out, num_trials=2)
    shipped = toml.find("calibration", hgx.profile.calibration)
    (profiles / "calibration").mkdir(parents=True)
    (profiles / "calibration" / shipped.name).write_text(shipped.read_text() + "\n# refitted\n")
    monkeypatch.setenv("MOESIM_PROFILES", str(profiles))
    with pytest.raises(ConfigError, match="holds a study with other settings"):
        study(out, num_trials=3)


def test_a_tuple_of_objectives_is_the_same_study(study, rows, whole, tmp_path):
    study(tmp_path, num_trials=2, objectives=tuple(whole.objectives))
    assert (
        rows(study(tmp_path, num_trials=4, objectives=tuple(whole.objectives))) == rows(whole)[:4]
    )


def test_one_run_at_a_time(study, tmp_path):
    study(tmp_path, num_trials=2)
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(ConfigError, match=r"another run is writing to this output folder$"):
            study(tmp_path, num_trials=3)
    assert len(study(tmp_path, num_trials=3).trials) == 3


@pytest.mark.parametrize("below", ["", "out"])
def test_a_folder_that_cannot_be_written(study, tmp_path, below):
    """Below a regular file nobody can write, not even root."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        ConfigError, match=r"cannot write to this output folder: (Not a directory|File exists)$"
    ):
        study(tmp_path / "file" / below, num_trials=2)


def test_a_chunk_of_trials_is_one_write_that_optuna_reads(study, tmp_path, monkeypatch):
    """The journal holds what Optuna's own backend would, in fewer writes than trials."""
    writes = []
    append = SingleWriterBackend.append_logs

    def counted(self, logs):
        writes.append(self._held is None)
        append(self, logs)

    monkeypatch.setattr(SingleWriterBackend, "append_logs", counted)
    found = study(tmp_path, num_trials=60, num_workers=2)
    assert sum(writes) <= 3 + 60 / CHUNK + 2, "to begin, and then for every chunk"
    whole = optuna.load_study(
        study_name="moesim", storage=JournalStorage(JournalFileBackend(f"{tmp_path}/study.journal"))
    )
    stored = [to_record(t, found.space, found.objectives) for t in found.trials]
    assert [t.params for t in whole.trials] == [t.params for t in stored]
    assert [t.user_attrs for t in whole.trials] == [t.user_attrs for t in stored]
    ended = [t.datetime_complete.timestamp() for t in whole.trials]
    assert ended == pytest.approx([t.ended for t in found.trials], abs=1e-5)
    assert [t.constraints for t in whole.trials] == [t.constraints for t in stored]


def test_a_study_of_changed_hardware_is_loaded_by_its_name(study, hgx, tmp_path):
    changed = hgx.with_(nvlink_gb_per_s=300.0, hbm_gib=96.0).with_(num_sms=120)
    study(tmp_path, cluster=changed, num_trials=3)
    loaded = load_study(str(tmp_path)).problem.cluster
    assert loaded.name == changed.name
    assert loaded.digest == changed.digest
    with pytest.raises(ConfigError, match="expected numbers among the changes of hgx-h100-8"):
        stored_cluster("hgx-h100-8 with nvlink_gb_per_s=2x")
