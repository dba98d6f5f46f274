"""``moesim recommend`` as a user meets it."""

import csv
import json
import sys

import pytest

from moesim.cli import main

SMALL = ["recommend", "--cluster", "hgx-h100-8", "--tokens", "64"]


@pytest.fixture
def moesim(monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *map(str, arguments)])
        monkeypatch.delenv("COLUMNS", raising=False)
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


def test_it_says_what_to_run_and_how_far_to_trust_it(moesim, tmp_path):
    path = tmp_path / "new" / "rows.csv"
    code, out, err = moesim(*SMALL, "--model", "olmoe-1b-7b", "--out", path)
    assert code == 0
    assert err == f"wrote {path}\n"
    lines = out.splitlines()
    rows = list(csv.DictReader(path.open()))
    assert lines[0] == f"olmoe-1b-7b on hgx-h100-8, 8 devices: {rows[0]['candidate']}"
    subjects = [
        line[:15].strip() for line in lines if line[:15].strip() and not line.startswith(" ")
    ]
    assert subjects[1:17] == [
        "workload",
        "parallelism",
        "placement",
        "redundancy",
        "precision",
        "exchange",
        "kernels",
        "layer",
        "grade",
        "throughput",
        "memory",
        "limited by",
        "would help",
        "power, price",
        "ties",
        "looked at",
    ]
    assert "attention, embeddings and dense layers are not simulated" in out
    assert f"{float(rows[0]['moe_layers_tokens_per_s_per_device']):,.0f} tokens/s per device" in out
    assert "simulated, calibrated" in out
    assert rows[0]["recommended"] == "True"
    assert {row["recommended"] for row in rows[1:]} == {"False"}
    assert f"{len(rows)} simulated" in out


def test_decode_says_how_long_its_sequences_may_be(moesim):
    code, out, _ = moesim(*SMALL, "--model", "olmoe-1b-7b", "--phase", "decode", "--show", "0")
    assert code == 0
    assert "sequences, in addition to 4,096)" in out
    assert "a context of 4,096 tokens a sequence in the KV cache" in out
    assert "Alternatives" not in out


def test_a_config_json_with_its_notes(moesim, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "model_type": "newmoe",
                "hidden_size": 2048,
                "moe_intermediate_size": 768,
                "intermediate_size": 6144,
                "num_experts": 64,
                "num_experts_per_tok": 6,
                "num_hidden_layers": 12,
                "num_attention_heads": 16,
                "num_key_value_heads": 4,
                "vocab_size": 32000,
                "tie_word_embeddings": True,
                "scoring_func": "softmax",
            }
        )
    )
    code, out, _ = moesim(*SMALL, "--model", path, "--show", "0")
    assert code == 0
    assert out.startswith(f"{tmp_path.name} on hgx-h100-8, 8 devices: E64 k6 I768")
    assert any(
        line.strip().startswith("model_type newmoe is not known") for line in out.splitlines()
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--model", "olmoe"],
            "unknown preset 'olmoe': did you mean olmoe-1b-7b? (or give the path of a config.json)",
        ),
        (
            ["--model", "nowhere/config.json"],
            "nowhere/config.json: cannot read this file: No such file or directory",
        ),
        (
            ["--model", "deepseek-v3"],
            "deepseek-v3 does not fit on hgx-h100-8: the fullest device needs at least 9",
        ),
        (
            ["--model", "olmoe-1b-7b", "--gpus", "16"],
            "gpus: expected at most 8, since hgx-h100-8 is one node without a",
        ),
        (
            ["--model", "olmoe-1b-7b", "--precision", "fp5"],
            "unknown precision 'fp5': did you mean fp",
        ),
        (
            ["--model", "olmoe-1b-7b", "--layers-latency-ms", "0.001"],
            "layers_latency_ms: expected at least ",
        ),
        (
            ["--model", "olmoe-1b-7b", "--layers-latency-ms", "-3"],
            "layers_latency_ms: expected a number > 0, got -3.0",
        ),
        (
            ["--model", "olmoe-1b-7b", "--routing", "trace:nofile"],
            "olmoe-1b-7b on hgx-h100-8: nofile: cannot read",
        ),
        (
            ["--model", "olmoe-1b-7b", "--objective", "speed"],
            "objective: expected throughput, cost or energy, got 'speed'",
        ),
        (["--model", "olmoe-1b-7b", "--economics", "nofile"], "unknown economics 'nofile': "),
        (
            ["--model", "olmoe-1b-7b", "--out", "/proc/nowhere/x.csv"],
            "/proc/nowhere/x.csv: cannot write this file",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(moesim, arguments, line):
    code, out, err = moesim(*SMALL, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_options_are_frozen(moesim):
    code, out, _ = moesim("recommend", "--help")
    assert code == 0
    for option in (
        "--model",
        "--cluster",
        "--gpus",
        "--phase",
        "--tokens",
        "--kv-tokens",
        "--routing",
        "--layers-latency-ms",
        "--precision",
        "--objective",
        "--lenient",
        "--economics",
        "--show",
        "--seed",
        "--out",
    ):
        assert option in out
