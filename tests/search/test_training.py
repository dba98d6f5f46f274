"""Searches over training runs: plans and architectures, days and dollars at the estimated loss."""

import csv
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from moesim import Workload
from moesim.cli import main
from moesim.errors import ConfigError
from moesim.hardware.economics import load_economics
from moesim.quality import estimate_loss
from moesim.search import TrainingSpace, TrainingWorkload, run_study
from moesim.search.points import distinct_points, num_designs
from moesim.search.session.export_whole import training_options
from moesim.search.session.findings import show_findings
from moesim.search.session.join import load_study, status_rows
from moesim.search.session.known import known_points
from moesim.search.session.studyfile import load_study_file
from moesim.simulation.training.result import TRAIN_COLUMNS
from moesim.simulation.training.simulate import simulate_training

STUDIES = Path(__file__).parent.parent.parent / "studies"
SPACE = {
    "model": "olmoe-1b-7b",
    "ep": [1, 8],
    "pp": [1, 2],
    "pipeline": ["1f1b", "interleaved", "dualpipe"],
    "overlap_exchange": [False, True],
    "zero": [0, 1],
    "optimizer": ["adamw", "muon"],
    "formats": ["bf16", "fp8"],
}
OBJECTIVES = ["train_days", "peak_memory_gib", "loss"]
RUN = TrainingWorkload(train_tokens=1e11, global_batch=64)


@pytest.fixture(scope="module")
def search(hgx):
    def make(storage, workload=RUN, space=None, **options):
        return run_study(
            TrainingSpace(**SPACE | (space or {})),
            hgx,
            workload,
            **{"objectives": OBJECTIVES, "num_trials": 500, "storage": storage} | options,
        )

    return make


@pytest.fixture(scope="module")
def whole(search, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return folder, search(folder)


def test_every_plan_is_tried_once(whole):
    """Without stages there is no order of them, without exchanges nothing to overlap, and DualPipe
    always overlaps.
    """
    _, study = whole
    piped = {1: 2 + 1, 8: 2 * 2 + 1}
    plans = sum(alone + piped[ep] for ep, alone in ((1, 1), (8, 2)))
    assert len(study.trials) == num_designs(study.space) == plans * 8
    assert len({t.evaluation.row["design"] for t in study.trials if not t.evaluation.reason}) == (
        sum(not t.evaluation.reason for t in study.trials)
    )
    assert len(list(distinct_points(study.space))) == len(study.trials)


def test_rows_are_those_of_a_step(whole, hgx):
    folder, study = whole
    show_findings(study, folder, limit=1, title="test")
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == study.problem.columns
    trial = study.pareto_trials()[0]
    row = trial.evaluation.row
    design = study.space.decode(trial.params, 8, RUN)
    result = simulate_training(design, hgx)
    assert row["train_days"] == pytest.approx(result.days(1e11))
    assert row["train_usd"] == pytest.approx(result.usd(1e11, load_economics("default")))
    assert row["mfu"] == pytest.approx(result.mfu)
    assert row["train_days_low"] < row["train_days"] < row["train_days_high"]
    assert tuple(result.row()) == TRAIN_COLUMNS
    with (folder / "winners.csv").open() as file:
        winner = next(csv.DictReader(file))
    assert winner["engine"] == "event_compiled"
    assert float(winner["event_over_search"]) == pytest.approx(1.0, abs=0.05)


def test_what_does_not_divide_or_fit_says_why(whole):
    _, study = whole
    reasons = {t.params["ep"]: t.evaluation.reason for t in study.trials if t.params["pp"] == 2}
    assert "ep x etp that divides dp x tp x cp = 4 devices" in reasons[8]
    unfit = [t.evaluation.reason for t in study.trials if "fit" in t.evaluation.reason]
    assert unfit
    assert all("does not fit on h100-sxm in training" in text for text in unfit)
    assert {t.state for t in study.trials} == {"fits", "infeasible"}


def test_the_front_is_not_dominated(whole):
    _, study = whole
    kept = [t for t in study.trials if t.feasible]
    values = np.array([[t.evaluation.row[name] for name in OBJECTIVES] for t in kept])
    for trial in study.pareto_trials():
        own = np.array([trial.evaluation.row[name] for name in OBJECTIVES])
        assert not ((values <= own).all(axis=1) & (values < own).any(axis=1)).any()


def test_it_continues_and_is_loaded_again(whole, search, tmp_path, rows):
    folder, study = whole
    search(tmp_path, num_trials=20, sampler="every")
    assert rows(search(tmp_path)) == rows(study) == rows(load_study(folder))
    assert {row["what"] for row in status_rows(load_study(folder))} >= {"train_days on the front"}
    assert known_points(study.space, study.problem.cluster) == []


def test_architectures_share_a_budget(search, tmp_path):
    """At equal FLOPs a smaller model sees more tokens; the loss is that of the laws there."""
    budget = TrainingWorkload(train_flops=1e21, global_batch=64)
    lists = {name: SPACE[name][:1] for name in SPACE if name not in ("model", "ep")}
    study = search(
        tmp_path,
        budget,
        lists
        | {
            "ep": [8],
            "recompute": ["full"],
            "num_layers": [4, 8],
            "num_experts": [32, 64],
            "expert_width": [512, 1024],
            "gated": [True, False],
            "num_shared_experts": [0, 1],
            "latent_size": [0, 1024],
        },
        objectives=["loss", "train_days"],
        num_trials=64,
    )
    assert len(study.trials) == 64
    for trial in study.trials:
        row, model = trial.evaluation.row, study.space.trained_as(trial.params)
        assert row["train_tokens"] == pytest.approx(1e21 / 6 / row["active_params"], rel=1e-3)
        assert row["total_params"] == model.spec.total_params
        found = estimate_loss(model.layer, model.dense_part, train_tokens=row["train_tokens"])
        assert row["loss"] == pytest.approx(found.loss)
        said = row["loss_outside"]
        assert ("not gated" in said) == (not trial.params["gated"])
        assert ("latent" in said) == (trial.params["latent_size"] > 0)
        assert ("shared" in said) == (trial.params["num_shared_experts"] > 0)
    assert study.groups(study.pareto_trials())[0] == 0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"ep": [0]}, "space: ep: expected numbers >= 1, got 0"),
        ({"pipeline": ["gpipe"]}, "space: pipeline: expected 1f1b or .* got 'gpipe'"),
        ({"zero": [4]}, "space: zero: expected 0 or 1 or 2 or 3, got 4"),
        ({"formats": ["fp6"]}, "unknown formats of training 'fp6'"),
        ({"framework": "foo"}, "unknown training framework 'foo'"),
        ({"nodes": [1]}, "space: nodes: no such key"),
        ({"top_k": [0]}, "space: top_k: expected numbers >= 1, got 0"),
    ],
)
def test_a_bad_space_is_one_line(choices, message):
    with pytest.raises(ConfigError, match=message) as caught:
        TrainingSpace(**SPACE | choices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ["ttft_ms"]}, "objectives of training runs .* got 'ttft_ms', one of whole"),
        ({"objectives": ["train_day"]}, "unknown objective 'train_day': did you mean train_days"),
        ({"constraints": ["tpot_ms <= 2"]}, "unknown constraint 'tpot_ms'"),
        ({"screen": 10}, "expected screen 0"),
        ({"workload": Workload(num_tokens_per_device=8)}, "expected a TrainingWorkload with a"),
    ],
)
def test_options_of_other_searches_are_refused(search, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        search(tmp_path, **options)


@pytest.mark.parametrize("budget", [{}, {"train_tokens": 1e9, "train_flops": 1e20}])
def test_a_run_has_one_budget(budget):
    with pytest.raises(ConfigError, match="exactly one of train_tokens and train_flops"):
        TrainingWorkload(**budget)


def test_a_study_file_of_training_runs(tmp_path):
    written = STUDIES / "small_train.toml"
    described = load_study_file(written, seed=3)
    assert described.workload == TrainingWorkload(train_tokens=1e12, seed=3)
    assert described.space.pp == [1, 2, 4]
    path = tmp_path / "bad.toml"
    for old, new, message in (
        ("sequence", "length", "bad.toml: workload.length: no such key"),
        ('"muon"', '"lion"', "bad.toml: space: optimizer: expected adamw or muon, got 'lion'"),
    ):
        path.write_text(written.read_text().replace(old, new))
        with pytest.raises(ConfigError, match=message):
            load_study_file(path, seed=0)


def test_a_winner_is_a_command_of_moesim_train(search, tmp_path, monkeypatch, capsys):
    """The command simulates the step that the study found."""
    study = search(tmp_path / "study", objectives=["train_days", "peak_memory_gib"], num_trials=12)
    out = tmp_path / "train.toml"
    monkeypatch.setattr(sys, "argv", ["moesim", "study", "export", str(tmp_path / "study")])
    sys.argv += ["--out", str(out)]
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    words = shlex.split(capsys.readouterr().out)
    assert words[:2] == ["moesim", "train"]
    options = tomllib.loads(out.read_text())
    assert f"--zero {options['zero']}" in " ".join(words)
    step = tmp_path / "step.csv"
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(step)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    (row,) = csv.DictReader(step.open())
    found = study.pareto_trials()[0].evaluation.row
    assert float(row["tokens_per_s_per_device"]) == pytest.approx(
        found["tokens_per_s_per_device"], rel=0.02
    )
    with pytest.raises(ConfigError, match="rank: expected 0 to"):
        training_options(study, 99)


def test_architectures_have_no_command(search, tmp_path):
    found = search(tmp_path, space={"num_layers": [8]}, num_trials=2)
    with pytest.raises(ConfigError, match=r"winner of the published architecture.* num_layers"):
        training_options(found)
