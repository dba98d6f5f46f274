"""What a recommendation exports: a command, a map that the engine loads, options, and a README."""

import json
import os
import shlex

import pytest

from moesim import load_cluster
from moesim.advice.recommend import recommend
from moesim.errors import UnknownNameError
from moesim.placement.files import read_map
from moesim.serving.bundle import write_bundle
from moesim.serving.launch import Deployment
from moesim.simulation.prepare import prepare


def deployment(engine, cluster="hgx-h100-8", model="qwen3-30b-a3b", **asked):
    found = recommend(model, cluster, tokens=256, kernels=f"auto:{engine}", **asked)
    assert engine in found.engines
    best = found.best
    return Deployment(
        candidate=best.candidate,
        cluster=found.cluster,
        placement=prepare(best.candidate, found.cluster, found.workload).placement,
        row=best.row(),
        num_layers=found.model.dense_part.num_moe_layers,
    )


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_the_folder_starts_the_engine(tmp_path, engine):
    deployed = deployment(engine, precision="fp8")
    paths = write_bundle(tmp_path / "new", deployed, engine, model="org/model", about=["a line"])
    assert [p.name for p in paths] == ["launch.sh", "expert_map.json", "README.md"]
    assert os.access(paths[0], os.X_OK)
    script = paths[0].read_text()
    assert script.startswith("#!/bin/sh\n# ")
    words = shlex.split(script.split("\n", 1)[1].replace("\\\n", " "), comments=True)
    assert "org/model" in words
    flag = {"sglang": "--moe-runner-backend", "vllm": "--moe-backend"}[engine]
    assert flag in words
    ranks = deployed.candidate.parallelism.ep
    layers = read_map(paths[1], ranks, deployed.candidate.layer.num_experts)
    assert len(layers) == 48
    assert (layers[0].expert_of_slot_P == deployed.placement.expert_of_slot_P).all()
    readme = paths[2].read_text()
    assert deployed.row["kernels"] in readme
    assert "Nothing here was run" in readme
    assert "a line" in readme


def test_tensorrt_llm_reads_options_and_a_map(tmp_path):
    deployed = deployment("trtllm", cluster="h100-sxm", model="olmoe-1b-7b")
    paths = write_bundle(tmp_path, deployed, "trtllm", dense_layers=2)
    names = [p.name for p in paths]
    assert names == ["launch.sh", "expert_map.yaml", "config.yaml", "README.md"]
    assert "trtllm-serve $MODEL" in paths[0].read_text()
    assert "--config config.yaml" in paths[0].read_text()
    assert "moe_config:\n  backend: CUTLASS" in paths[2].read_text()
    lines = paths[1].read_text().splitlines()
    assert lines[0] == "num_slots: 64"
    assert lines[2].startswith("  2: [")
    assert json.loads(lines[2].split(": ", 1)[1]) == list(range(64))
    assert len(lines) == 2 + 16 + 1


def test_sglang_has_rows_for_dense_layers(tmp_path):
    deployed = deployment("sglang")
    _, path, _ = write_bundle(tmp_path, deployed, "sglang", dense_layers=3)
    assert len(json.loads(path.read_text())["physical_to_logical_map"]) == 3 + 48


def test_an_unknown_engine(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown serving engine 'vlm': did you mean vllm"):
        write_bundle(tmp_path, deployment("vllm"), "vlm")


def test_what_is_recommended_is_launched():
    for name in ("hgx-h100-8", "hgx-b200-8"):
        found = recommend("qwen3-30b-a3b", load_cluster(name), tokens=256)
        assert found.engines
