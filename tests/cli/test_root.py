"""The command line as a user meets it: what it prints, and one clear line for bad input."""

import csv
import sys
from dataclasses import fields

import pytest

from moesim.cli import main
from moesim.cli.simulate import SimulateOptions
from moesim.hardware.exchanges import EXCHANGES


def run(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of one command."""
    monkeypatch.setattr(sys, "argv", ["moesim", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return stopped.value.code or 0, captured.out, captured.err


@pytest.fixture
def moesim(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


def test_help_names_every_exchange():
    """The text is written out, since help loads nothing that knows exchanges."""
    options = {field.name: field.type for field in fields(SimulateOptions)}
    [described] = options["exchange"].__metadata__
    assert described.help == f"{', '.join(EXCHANGES)}; default: the cluster's."


def test_profiles_lists_what_can_be_named(moesim):
    code, out, _ = moesim("profiles")
    assert code == 0
    for name in ("h100-sxm", "a100-sxm", "hgx-h100-8", "hgx-a100-8", "mixtral-8x7b"):
        assert name in out


def test_profile_shows_every_number_with_kind_and_source(moesim):
    code, out, _ = moesim("profiles", "h100_sxm")
    assert code == 0
    line = next(line for line in out.splitlines() if "hbm.bandwidth_gb_per_s" in line)
    assert line.split()[1:] == ["3,350", "datasheet", "datasheet"]


def test_cluster_shows_its_links(moesim):
    code, out, _ = moesim("profiles", "hgx-a100-8")
    assert code == 0
    assert "scale_up.link_gb_per_s" in out
    assert "300" in out


def test_simulate_writes_its_row(moesim, tmp_path):
    path = tmp_path / "row.csv"
    code, out, _ = moesim(
        "simulate", "--preset", "mixtral-8x7b", "--engine", "event", "--out", str(path)
    )
    assert code == 0
    assert "layer tokens/s per device" in out
    [row] = list(csv.DictReader(path.open()))
    assert row["engine"] == "event"
    assert (
        float(row["layer_time_low_us"])
        < float(row["layer_time_us"])
        < float(row["layer_time_high_us"])
    )


def test_replicas_lower_the_imbalance(moesim, tmp_path):
    rows = []
    for place in (["--placement", "contiguous"], ["--placement", "eplb", "--replicas", "8"]):
        path = tmp_path / "row.csv"
        assert moesim("simulate", "--routing", "power_law:1.2", *place, "--out", str(path))[0] == 0
        rows += list(csv.DictReader(path.open()))
    assert float(rows[1]["load_imbalance"]) < float(rows[0]["load_imbalance"])
    assert float(rows[1]["layer_time_us"]) < float(rows[0]["layer_time_us"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["simulate", "--preset", "mixtral"],
            "unknown preset 'mixtral': did you mean mixtral-8x7b or mixtral-8x22b?",
        ),
        (
            ["simulate", "--cluster", "hgx-h300-8"],
            "unknown cluster 'hgx-h300-8': did you mean hgx-",
        ),
        (
            ["simulate", "--top-k", "300"],
            "layer.top_k: expected at most num_experts = 128, got 300",
        ),
        (
            ["simulate", "--gate", "group_limited:7:4"],
            "layer.gate.num_expert_groups: expected a divisor of num_experts = 128, got 7",
        ),
        (
            ["simulate", "--gate", "product_key"],
            "layer.num_experts: expected a perfect square for a product_key gate, got 128",
        ),
        (
            ["simulate", "--expert-intermediate-size", "64x256"],
            (
                "layer.expert_intermediate_size: expected one width, or one for each of 128 "
                "experts, got 64"
            ),
        ),
        (
            ["simulate", "--expert-intermediate-size", "128x0"],
            (
                "layer.expert_intermediate_size: expected an expert that is not pruned, got "
                "'width 0 for all'"
            ),
        ),
        (
            ["simulate", "--expert-intermediate-size", "1k"],
            "expert_intermediate_size: expected a width or 'EXPERTSx",
        ),
        (
            ["simulate", "--ep", "3"],
            "parallelism: ep x tp: expected the 8 devices of hgx-h100-8, got 3",
        ),
        (
            ["simulate", "--precision", "int3"],
            (
                "precision: expected one of bf16, fp16, fp8, fp8_tensor, int8, int4, mxfp4, "
                "mxfp4_a8, nvfp4, nvfp4_a16, got 'int3'"
            ),
        ),
        (
            ["simulate", "--routing", "zipf"],
            "routing: expected 'uniform', 'zipf:ALPHA', 'power_law:ALPHA'",
        ),
        (["simulate", "--engine", "fluid"], "unknown engine 'fluid'"),
        (["simulate", "--placement", "sorted"], "unknown placement 'sorted'"),
        (
            ["simulate", "--preset", "deepseek-v3"],
            "model does not fit: a device needs on average",
        ),
        (
            ["simulate", "--tokens", "0"],
            "workload.num_tokens_per_device: expected an integer >= 1, got 0",
        ),
        (
            ["simulate", "--layer-only", "--tokens", "999999", "--routing", "domains:4:0.5"],
            "workload: expected 1 to 4194304 tokens over all devices, got 7999992",
        ),
        (["profiles", "h900"], "unknown profile 'h900'"),
        (
            ["study", "run", "/nowhere/x.toml"],
            "/nowhere/x.toml: cannot read this file: No such file or directory",
        ),
        (
            ["validate", "kernels", "--system", "b900_sxm"],
            "measured rows: expected one of a100_sxm",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(moesim, arguments, line):
    code, out, err = moesim(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_simulate_takes_product_keys_and_widths(moesim, tmp_path):
    path = tmp_path / "row.csv"
    layer = (
        "--gate",
        "product_key",
        "--num-experts",
        "1024",
        "--expert-intermediate-size",
        "1000x64+16x512+8x0",
    )
    code, out, _ = moesim("simulate", *layer, "--layer-only", "--out", str(path))
    assert code == 0
    assert "E1024 k8 I1000x64+16x512+8x0 bf16 product_key:8:256 ep8tp1" in " ".join(out.split())
    (row,) = csv.DictReader(path.open())
    assert (row["gate"], row["expert_intermediate_size"]) == (
        "product_key:8:256",
        "1000x64+16x512+8x0",
    )


def test_model_that_does_not_fit_says_how_many_gib_over(moesim):
    _, _, err = moesim("simulate", "--preset", "deepseek-v3")
    assert "GiB over (experts" in err


def test_study_file_with_a_wrong_key_names_file_and_key(moesim, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('cluster = "hgx-h100-8"\n[workload]\nnum_tokens_per_devise = 3\n[space]\n')
    code, _, err = moesim("study", "run", str(path))
    assert code == 2
    assert err.startswith(
        "error: study.toml: workload.num_tokens_per_device: expected a value, got nothing"
    )


def test_output_folder_that_cannot_be_written(moesim, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = moesim(
        "study",
        "run",
        "studies/small_study.toml",
        "--trials",
        "2",
        "--out",
        str(tmp_path / "file" / "out"),
    )
    assert code == 2
    assert "cannot write to this output folder: Not a directory" in err


def test_a_calibration_that_cannot_be_written_is_refused_before_the_fit(moesim, tmp_path):
    code, out, err = moesim("calibrate", "kernels", "--out", str(tmp_path / "none" / "x.toml"))
    assert (code, out) == (2, "")
    assert err.endswith("x.toml: cannot write this file: No such file or directory\n")
    code, out, err = moesim("calibrate", "comm", "--out", str(tmp_path / "none"))
    assert (code, out) == (2, "")
    assert err.endswith("none: expected a folder for the calibration files\n")
    assert list(tmp_path.iterdir()) == []


def test_commands_are_frozen(moesim):
    _, out, _ = moesim("--help")
    commands = ("profiles", "simulate", "validate", "calibrate", "study", "quality", "recommend")
    for name in (*commands, "models"):
        assert name in out
