"""Published models as points of a space."""

import csv
import sys

import pytest

from moesim import load_cluster, load_preset
from moesim.cli import main
from moesim.errors import ConfigError
from moesim.search import Space, run_study
from moesim.search.session.join import joined_options
from moesim.search.session.known import known_points

DEEPSEEK = {
    "dense_part": "deepseek-v3",
    "train_tokens": 1e12,
    "hidden_size": 7168,
    "num_experts": [128, 256],
    "top_k": [4, 8],
    "expert_intermediate_size": [2048],
    "num_shared_experts": 1,
}


def test_models_of_the_same_width_are_points(hgx, make_space):
    found = known_points(
        make_space(expert_intermediate_size=[512, 768, 1024], num_experts=[64, 128]), hgx
    )
    common = {"gate": "flat", "parallelism": "tp1"}
    assert sorted(found, key=lambda p: p["num_experts"]) == [
        {"num_experts": 64, "top_k": 8, "expert_intermediate_size": 1024, **common},
        {"num_experts": 128, "top_k": 8, "expert_intermediate_size": 768, **common},
    ]


@pytest.mark.parametrize(
    "gate",
    [
        {"gate": ["flat", "group_limited:8:4"]},
        {"gate": ["group_limited:8:4+sigmoid"]},
        {"gate": ["group_limited"], "num_expert_groups": [4, 8], "num_limited_groups": [2, 4]},
    ],
)
def test_a_known_point_decodes_to_its_model(gate):
    cluster = load_cluster("h100-rail-8x8")
    space = Space(**DEEPSEEK | gate, parallelism=["ep8", "ep32tp2", "ep64"])
    [point] = known_points(space, cluster)
    candidate, _ = space.decode(point, cluster)
    layer, known = candidate.layer, load_preset("deepseek-v3").layer
    assert (layer.num_experts, layer.top_k, layer.num_shared_experts) == (256, 8, 1)
    assert (layer.gate.kind, layer.gate.num_expert_groups, layer.gate.num_limited_groups) == (
        known.gate.kind,
        known.gate.num_expert_groups,
        known.gate.num_limited_groups,
    )
    assert point["parallelism"] == "ep32tp2", "the first that uses all 64 devices"


@pytest.mark.parametrize(
    "changed",
    [
        {"gate": ["flat"]},
        {"gate": ["group_limited:4:2"]},
        {"num_shared_experts": 0},
        {"top_k": [4]},
        {"gate": ["group_limited:8:4"], "parallelism": ["ep8"]},
        {"gate": ["group_limited:8:4"], "capacity_factor": [1.25]},
        {"gate": ["group_limited"], "num_expert_groups": [4], "num_limited_groups": [2]},
    ],
)
def test_what_is_not_exactly_a_model_is_none(changed):
    assert known_points(Space(**DEEPSEEK | changed), load_cluster("h100-rail-8x8")) == []


def test_a_study_with_known_points_is_joined(study, make_space, hgx, tmp_path):
    """Whoever joins works the same points out; those of a script are its own."""
    space = make_space(expert_intermediate_size=[768], num_experts=[64, 128])
    known = known_points(space, hgx)
    assert len(known) == 1
    url = f"sqlite:///{tmp_path}/known.db"
    study(url, space=space, num_trials=2, enqueue=known)
    args, options = joined_options(url)
    assert options["enqueue"] == known
    trials = run_study(*args, **options, num_trials=4, storage=url, member=1).trials
    assert len(trials) == 4
    url = f"sqlite:///{tmp_path}/other.db"
    study(url, space=space, num_trials=1, enqueue=[{"top_k": 2}])
    with pytest.raises(ConfigError, match="got one with points of a script's own"):
        joined_options(url)


def test_warm_start_tries_them_first(monkeypatch, tmp_path):
    file = tmp_path / "study.toml"
    file.write_text("""
        cluster = "hgx-h100-8"
        [workload]
        num_tokens_per_device = 64
        [space]
        dense_part = "qwen3-30b-a3b"
        hidden_size = 2048
        train_tokens = 1e12
        num_experts = [64, 128]
        top_k = [2, 8]
        expert_intermediate_size = [512, 768]
    """)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "moesim",
            "study",
            "run",
            str(file),
            "--trials",
            "3",
            "--confirm",
            "0",
            "--warm-start",
            "--out",
            str(tmp_path / "out"),
        ],
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    assert [rows[0][name] for name in ("num_experts", "top_k", "expert_intermediate_size")] == [
        "128",
        "8",
        "768",
    ]
