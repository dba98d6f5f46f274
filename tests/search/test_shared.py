"""Studies that several processes share, in a real PostgreSQL server; and storages that do not
answer.
"""

import json
import os
import subprocess
import sys
import time

import pytest
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, text

from moesim.errors import ConfigError
from moesim.search.session.join import load_study

PASSWORD = "s3cret-word"
STUDY = """
cluster = "hgx-h100-8"
[workload]
num_tokens_per_device = 32
phase = "decode"
routing = "zipf:0.8"
[space]
dense_part = "qwen3-30b-a3b"
num_layers = 24
train_tokens = 1e11
hidden_size = 2048
num_experts = [8, 64, 1024]
top_k = [2, 4, 8, 16]
expert_intermediate_size = [512, 1024, 4096, 8192]
gate = ["flat", "group_limited:4:2"]
placement = ["contiguous", "eplb"]
num_replicas = [0, 8]
precision = ["bf16", "fp8"]
"""


def moesim(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "moesim.cli", *map(str, words)],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"COLUMNS": "160"},
        **options,
    )


@pytest.mark.full
def test_two_processes_share_a_study(postgres_url, tmp_path):
    """One begins it, one joins with the URL alone; no trial is lost, none asked twice by the same
    process.
    """
    (tmp_path / "study.toml").write_text(STUDY)
    first = moesim(
        "study",
        "run",
        tmp_path / "study.toml",
        "--storage",
        postgres_url,
        "--trials",
        160,
        "--sampler",
        "nsga2",
        "--out",
        tmp_path / "out",
    )
    while True:
        time.sleep(0.5)
        try:
            if load_study(postgres_url).trials:
                break
        except ConfigError:  # it has not begun
            assert first.poll() is None, first.stderr.read()
    second = moesim("study", "worker", "--storage", postgres_url, "--trials", 160)
    out, err = first.communicate(timeout=200)
    assert first.returncode == 0, err
    assert second.wait(200) == 0, second.stderr.read()
    found = load_study(postgres_url)
    assert len(found.trials) >= 160
    assert [t.number for t in found.trials] == list(range(len(found.trials)))
    points = [json.dumps(t.params, sort_keys=True) for t in found.trials]
    # both may ask for a point before they see the other's: within a batch of each, not more
    assert len(points) - len(set(points)) <= 50
    assert len(found.pareto_trials()) > 1
    told = moesim("study", "status", postgres_url)
    out, _ = told.communicate(timeout=60)
    assert PASSWORD not in out
    assert "Pareto front" in out


@pytest.mark.full
def test_processes_that_begin_an_empty_database_together(postgres_url):
    """All want to make its tables; one does, and none fails."""
    name = f"together_{os.getpid()}"
    with create_engine(postgres_url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = postgres_url.rsplit("/", 1)[0] + f"/{name}"
    told = [moesim("study", "status", url) for _ in range(6)]
    for process in told:
        _, err = process.communicate(timeout=100)
        assert process.returncode == 2, err
        assert "expected a study that `moesim study run` began, got none" in err


@pytest.mark.full
def test_a_killed_process_of_a_shared_study_loses_its_batch_only(postgres_url, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.replace("1e11", "2e11"))
    run = [
        "study",
        "run",
        tmp_path / "study.toml",
        "--storage",
        postgres_url,
        "--fresh",
        "--sampler",
        "random",
        "--out",
        tmp_path / "out",
    ]
    first = moesim(*run, "--trials", 400)
    while not 60 <= len(_trials(postgres_url)) < 150:  # the study before had more
        time.sleep(0.2)
        assert first.poll() is None, first.stderr.read()
    first.kill()
    first.wait()
    there = len(_trials(postgres_url))
    again = moesim(*[w for w in run if w != "--fresh"], "--trials", there + 20)
    assert again.wait(200) == 0, again.stderr.read()
    found = _trials(postgres_url)
    assert len(found) == there + 20
    assert len({json.dumps(t.params, sort_keys=True) for t in found}) == len(found)


def _trials(url):
    try:
        return load_study(url).trials
    except ConfigError:
        return []


@pytest.mark.full
def test_a_study_discarded_while_it_is_read_is_read_anew(study, postgres_url, monkeypatch):
    """Its tables are read one after the other; what another process deletes in between is not
    taken for half a trial.
    """
    study(postgres_url, num_trials=20, fresh=True)
    read = RDBStorage._build_frozen_trial_from_trial_model
    discarded = []

    def discard_first(storage, trial):
        if not discarded:
            discarded.append(True)
            study(postgres_url, num_trials=5, fresh=True)
        return read(storage, trial)

    monkeypatch.setattr(RDBStorage, "_build_frozen_trial_from_trial_model", discard_first)
    assert len(load_study(postgres_url).trials) == 5


@pytest.mark.full
def test_another_space_is_refused_with_what_differs(postgres_url, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    done = moesim(
        "study",
        "run",
        tmp_path / "study.toml",
        "--storage",
        postgres_url,
        "--fresh",
        "--trials",
        2,
        "--out",
        tmp_path / "out",
    )
    assert done.wait(100) == 0
    (tmp_path / "study.toml").write_text(STUDY.replace("[8, 64, 1024]", "[8, 64]"))
    done = moesim(
        "study",
        "run",
        tmp_path / "study.toml",
        "--storage",
        postgres_url,
        "--trials",
        3,
        "--out",
        tmp_path / "out",
    )
    _, err = done.communicate(timeout=100)
    assert done.returncode == 2
    assert "space.num_experts: [8, 64, 1024] there, [8, 64] now" in err
    assert PASSWORD not in err
    assert len(err.strip().splitlines()) == 1


def test_a_database_that_does_not_answer_is_one_line_and_code_3(free_port, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    url = f"postgresql://moesim:{PASSWORD}@127.0.0.1:{free_port}/studies"
    done = moesim(
        "study",
        "run",
        tmp_path / "study.toml",
        "--storage",
        url,
        "--trials",
        2,
        "--out",
        tmp_path / "out",
    )
    _, err = done.communicate(timeout=100)
    assert done.returncode == 3, err
    assert len(err.strip().splitlines()) == 1
    assert "postgresql://moesim:***@127.0.0.1" in err
    assert PASSWORD not in err


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nosuch://x/y", ConfigError),
        ("postgresql:/x", ConfigError),
        ("sqlite:////nowhere/at/all.db", ConfigError),
    ],
)
def test_storages_that_are_none(url, error):
    with pytest.raises(error) as caught:
        load_study(url)
    assert len(str(caught.value).splitlines()) == 1


def test_a_url_holds_a_study_as_a_folder_does(study, rows, tmp_path):
    """SQLite by its URL: the same trials again when it is continued, another study refused."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study(url, num_trials=20)
    more = study(url, num_trials=70)
    assert len(more.trials) == 70
    assert len({json.dumps(t.params, sort_keys=True) for t in more.trials}) == 70
    assert len(load_study(url).trials) == 70
    with pytest.raises(ConfigError, match="seed: 3 there, 4 now"):
        study(url, num_trials=71, seed=4)
