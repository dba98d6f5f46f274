"""Winners out of a study: maps that simulate to the study's own time, and commands that start an
engine so.
"""

import json
import shlex
import sys

import pytest

from moesim import Workload, load_cluster, simulate
from moesim.cli import main
from moesim.errors import ConfigError, UnknownNameError
from moesim.placement.files import read_map
from moesim.search.session.export import FORMATS, launch_lines, winner_of, winner_text
from moesim.search.session.join import load_study
from moesim.units import US

#: what a study of one layer and several layouts chooses among
ONE = {
    "num_experts": [64],
    "top_k": [8],
    "expert_intermediate_size": [1024],
    "gate": ["flat"],
    "precision": ["fp8"],
    "parallelism": ["ep8"],
    "placement": ["contiguous"],
    "num_replicas": [0],
}


@pytest.fixture
def one(study, make_space, tmp_path):
    """The only point of a space, as a winner, from its folder."""

    def make(cluster=None, workload=None, **choices):
        space = make_space(**ONE | {name: [value] for name, value in choices.items()})
        options = {} if cluster is None else {"cluster": cluster}
        study(
            tmp_path / "one",
            space=space,
            num_trials=1,
            workload=workload,
            sampler="random",
            fresh=True,
            **options,
        )
        return winner_of(load_study(str(tmp_path / "one")))

    return make


def command(winner, layout):
    """Flags of a launch command -> their values; and its comments."""
    *notes, line = launch_lines(winner, layout, "map.json", "org/model")
    assert all(note.startswith("# ") for note in notes)
    words = shlex.split(line.replace("\\\n", " "))
    flags, last = {}, None
    for word in words:
        if word.startswith("--"):
            last, flags[word] = word, True
        elif last:
            flags[last] = word if flags[last] is True else f"{flags[last]} {word}"
    return flags, notes


@pytest.mark.parametrize("placement", ["contiguous", "eplb", "balanced", "eplb/nearest"])
@pytest.mark.parametrize("layout", FORMATS)
def test_a_map_simulates_to_the_row_it_is_of(one, tmp_path, layout, placement):
    winner = one(placement=placement, num_replicas=8)
    path = tmp_path / "map.json"
    path.write_text(winner_text(winner, layout))
    layers = read_map(path, winner.candidate.parallelism.ep, winner.candidate.layer.num_experts)
    assert len(layers) == winner.num_layers == 24
    work = Workload(num_tokens_per_device=32, phase="decode", routing="zipf:0.8")
    if placement.endswith("nearest") and layout != "placement-json":
        assert layers[0].nearest_within == 0, (
            "engines' maps have no room for it: their flags say it"
        )
        return
    for number in (0, 23):
        again = simulate(winner.candidate, winner.cluster, work, placement=layers[number])
        assert again.layer_time_s / US == winner.row["layer_time_us"]


def test_placement_json_says_what_it_is_of(one):
    data = json.loads(winner_text(one(placement="eplb", num_replicas=8), "placement-json"))
    assert (data["num_ranks"], data["num_experts"], data["nearest_within"]) == (8, 64, 0)
    assert (data["routing"], data["evidence"], data["engine"]) == ("zipf:0.8", "simulated", "flow")


def test_sglang_with_copies_over_nodes(one):
    flags, notes = command(
        one(
            cluster=load_cluster("h100-rail-8x8"),
            parallelism="ep64",
            placement="eplb",
            num_replicas=64,
            exchange="deepep_ll",
            num_micro_batches=2,
        ),
        "sglang",
    )
    assert flags == {
        "--model-path": "org/model",
        "--tp-size": "64",
        "--dp-size": "64",
        "--enable-dp-attention": True,
        "--moe-dense-tp-size": "1",
        "--ep-size": "64",
        "--nnodes": "8",
        "--node-rank": "$NODE",
        "--dist-init-addr": "$HEAD:5000",
        "--moe-a2a-backend": "deepep",
        "--deepep-mode": "low_latency",
        "--moe-runner-backend": "deep_gemm",
        "--ep-num-redundant-experts": "64",
        "--init-expert-location": "map.json",
        "--ep-dispatch-algorithm": "dynamic",
        "--enable-two-batch-overlap": True,
    }
    assert (
        notes[-1] == "# fp8: of a checkpoint quantised so; for one in bf16 add --quantization fp8"
    )


def test_sglang_without_deepep_gathers_and_says_so(one):
    flags, notes = command(one(parallelism="ep4tp2", precision="bf16"), "sglang")
    assert "--moe-a2a-backend" not in flags
    assert "--init-expert-location" not in flags
    assert flags["--ep-size"] == "4"
    assert notes[-1].startswith(
        "# exchange nccl at tp2 has no backend here: the command gathers instead"
    )
    flags, notes = command(
        one(
            parallelism="ep8",
            exchange="all_gather",
            placement="eplb/nearest",
            num_replicas=8,
            precision="bf16",
        ),
        "sglang",
    )
    assert flags["--ep-dispatch-algorithm"] == "static"
    # the study took the fastest library, which is another engine's
    assert [note.startswith("# kernels trtllm-cutlass: not of this engine") for note in notes] == [
        False,
        False,
        True,
    ]


def test_vllm_with_copies_over_nodes(one):
    flags, notes = command(
        one(
            cluster=load_cluster("h100-rail-8x8"),
            parallelism="ep64",
            placement="eplb",
            num_replicas=64,
            exchange="deepep_normal",
            num_micro_batches=2,
        ),
        "vllm",
    )
    assert flags == {
        "--tensor-parallel-size": "1",
        "--data-parallel-size": "64",
        "--data-parallel-size-local": "8",
        "--data-parallel-start-rank": "$(($NODE * 8))",
        "--data-parallel-address": "$HEAD",
        "--data-parallel-rpc-port": "13345",
        "--enable-expert-parallel": True,
        "--all2all-backend": "deepep_high_throughput",
        "--moe-backend": "flashinfer_cutlass",
        "--enable-eplb": True,
        "--eplb-config": '{"num_redundant_experts": 64}',
        "--enable-dbo": True,
    }
    assert any("EPLB plans one like it" in note for note in notes)


def test_vllm_cuts_experts_over_all_devices_or_none(one):
    flags, _ = command(one(parallelism="ep1tp8"), "vllm")
    assert flags == {"--tensor-parallel-size": "1", "--data-parallel-size": "8"}
    with pytest.raises(ConfigError, match="what vLLM has, got ep4tp2: use --format sglang"):
        command(one(parallelism="ep4tp2"), "vllm")


def test_winners_are_those_of_pareto_csv(whole):
    front = whole.pareto_trials()
    assert [winner_of(whole, i).row["candidate"] for i in range(len(front))] == [
        t.evaluation.row["candidate"] for t in front
    ]
    for rank in (-1, len(front)):
        with pytest.raises(
            ConfigError, match=rf"rank: expected 0 to {len(front) - 1}, a row of .*, got {rank}"
        ):
            winner_of(whole, rank)


def test_a_study_without_a_winner(study, make_space, tmp_path):
    found = study(
        tmp_path / "none", space=make_space(**ONE), num_trials=1, constraints=["layer_time_us <= 1"]
    )
    with pytest.raises(
        ConfigError, match="study: expected a winner to export, got none: of 1 trials"
    ):
        winner_of(found)


def test_unknown_format(one):
    with pytest.raises(UnknownNameError, match="unknown export format 'vlm': did you mean vllm"):
        winner_text(one(), "vlm")


@pytest.fixture
def moesim(monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


def test_command_line(moesim, one, tmp_path):
    winner = one(placement="eplb", num_replicas=8, exchange="deepep_normal")
    path = tmp_path / "map.json"
    code, out, err = moesim(
        "study", "export", tmp_path / "one", "--format", "sglang", "--out", path
    )
    assert code == 0
    assert out.splitlines() == "\n".join(launch_lines(winner, "sglang", str(path))).splitlines()
    assert list(json.loads(path.read_text())) == ["physical_to_logical_map"]
    assert err.startswith(f"wrote {path}: 24 layers of 72 slots on 8 ranks, E64 k8")
    code, out, err = moesim("study", "export", tmp_path / "one", "--out", path)
    assert (code, out) == (0, "")
    code, out, _ = moesim(
        "placement",
        "show",
        path,
        "--preset",
        "olmoe-1b-7b",
        "--cluster",
        "hgx-h100-8",
        "--tokens",
        "64",
    )
    assert code == 0
    assert "72" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--format", "onnx"], "unknown export format 'onnx': known: placement-json, sglang, vllm"),
        (["--rank", "7"], "rank: expected 0 to 0, a row of pareto.csv, got 7"),
        (["--out", "/proc/nowhere/map.json"], "/proc/nowhere/map.json: cannot write this file"),
    ],
)
def test_bad_input_is_one_line(moesim, one, tmp_path, arguments, line):
    one()
    code, out, err = moesim("study", "export", tmp_path / "one", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_where_there_is_no_study(moesim, tmp_path):
    code, _, err = moesim("study", "export", tmp_path)
    assert code == 2
    assert err.startswith(
        f"error: {tmp_path}: expected the output folder of a study, got one without study.journal"
    )
