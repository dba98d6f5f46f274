"""``moesim models show``, and files and folders wherever a command takes a model."""

import json
import sys
from pathlib import Path

import pytest

from moesim import load_preset
from moesim.cli import main
from moesim.errors import ConfigError
from moesim.search import Space
from moesim.search.session.studyfile import load_study_file

CONFIGS = Path(__file__).parent.parent / "model" / "configs"
QWEN, FOLDER = CONFIGS / "qwen3.5-35b-a3b.json", CONFIGS / "quant-hf-quant-config"
FACTS = (
    *("name", "source", "total_params", "active_params", "num_layers", "num_moe_layers"),
    *("hidden_size", "vocab_size", "tied_embeddings", "kv_bytes_per_token"),
    *("index_bytes_per_token", "state_bytes_per_sequence", "num_experts", "top_k"),
    *("expert_intermediate_size", "num_shared_experts", "shared_width"),
    *("dense_intermediate_size", "gated", "latent_size", "gate", "expert_format", "notes"),
    *("order", "kinds"),
)
STATE = "assumed: a sequence keeps 0.0600 GiB of state"


@pytest.fixture
def moesim(monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "150")
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def odd(tmp_path):
    """A model with a key that nobody knows."""
    path = tmp_path / "config.json"
    keys = json.loads((CONFIGS / "qwen3-next-80b-a3b.json").read_text())
    path.write_text(json.dumps(keys | {"num_memory_layers": 3}))
    return path


def test_show_says_what_a_model_consists_of(moesim):
    code, out, err = moesim("models", "show", QWEN)
    assert (code, err) == (0, "")
    lines = {
        line.split()[0]: line.split(maxsplit=1)[1:] for line in out.splitlines() if line.strip()
    }
    assert lines["order"] == ["10 x (3 A, 1 B)"]
    assert lines["total_params"] == ["34,660,433,920"]
    assert lines["latent_size"] == ["-"]
    assert lines["A"][0].startswith("30  gated delta net 16 x 128 / 32 x 128; MoE 256 x 512")


def test_show_json_is_frozen(moesim):
    code, out, _ = moesim("models", "show", QWEN, "--json")
    found = json.loads(out)
    assert code == 0
    assert tuple(found) == FACTS
    assert [kind["count"] for kind in found["kinds"]] == [30, 10]
    assert (found["kv_bytes_per_token"], found["latent_size"]) == (20480, None)
    weights = sum(kind["count"] * kind["params"] for kind in found["kinds"])
    embeddings = 2 * found["vocab_size"] * found["hidden_size"]
    assert weights + embeddings == found["total_params"]


@pytest.mark.parametrize(
    ("name", "order", "params"),
    [
        ("switch-base-128", "6 x (1 A, 1 B), 6 x (1 C, 1 D)", 7_415_169_024),
        ("deepseek-v3", "3 A, 58 B", 671_025_397_760),
        (CONFIGS / "deepseek-v4-flash.json", "3 A, 20 x (1 B, 1 C)", 284_323_807_232),
    ],
)
def test_show_presets_and_orders(moesim, name, order, params):
    found = json.loads(moesim("models", "show", name, "--json")[1])
    assert (found["order"], found["total_params"]) == (order, params)


def test_show_flags_are_frozen(moesim):
    code, out, _ = moesim("models", "show", "--help")
    assert code == 0
    assert all(flag in out for flag in ("--json", "--lenient"))


@pytest.mark.parametrize(
    "command",
    [
        ["models", "show", "MODEL"],
        ["simulate", "--preset", "MODEL", "--layer-only", "--tokens", "16"],
        ["recommend", "--model", "MODEL", "--cluster", "hgx-h100-8", "--tokens", "16"],
        ["recommend", "--model", "MODEL", "--compare", "hgx-h100-8", "--tokens", "16"],
        [
            *("placement", "rebalance", "--preset", "MODEL", "--cluster", "hgx-h100-8"),
            *("--before", "uniform", "--now", "zipf:1", "--tokens", "16"),
        ],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_an_unknown_key_is_one_line_or_a_note(moesim, odd, command):
    command = [odd if word == "MODEL" else word for word in command]
    code, out, err = moesim(*command)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {odd}: num_memory_layers: expected a key whose effect")
    assert err.count("\n") == 1
    code, out, err = moesim(*command, "--lenient")
    assert code == 0
    assert "num_memory_layers = 3 is not understood and ignored" in out + err


def test_notes_come_with_what_does_not_fit(moesim):
    command = ["simulate", "--cluster", "h100-sxm", "--ep", "1", "--preset", QWEN]
    code, out, err = moesim(*command, "--tokens", "8", "--num-experts", "1024")
    assert (code, out) == (2, "")
    assert STATE in err
    assert "does not fit" in err
    big = CONFIGS / "longcat-flash.json"
    code, out, err = moesim("recommend", "--model", big, "--cluster", "h100-sxm")
    assert (code, out) == (2, "")
    assert "assumed: 256 of 768 experts compute nothing" in err


def test_a_folder_or_file_is_a_preset(moesim, tmp_path):
    path = tmp_path / "map.json"
    code, out, err = moesim(
        *("placement", "export", path, "--preset", FOLDER, "--cluster", "hgx-h100-8"),
        *("--tokens", 16, "--replicas", 0),
    )
    assert (code, err.splitlines()[-1]) == (0, f"wrote {path} for sglang")
    assert out.startswith("32 MoE layers, 16 experts in 16 slots on 8 ranks")
    shown = ["placement", "show", path, "--preset", FOLDER, "--cluster", "hgx-h100-8"]
    assert moesim(*shown)[0] == 0


def test_the_dense_part_of_a_space_is_a_file(odd, tmp_path):
    choices = {
        "hidden_size": 2048,
        "train_tokens": 1e12,
        "num_experts": [64],
        "top_k": [8],
        "expert_intermediate_size": [512],
    }
    space = Space(dense_part=str(QWEN), **choices)
    dense = space.dense()
    assert (dense.num_layers, dense.num_moe_layers) == (40, 40)
    assert dense.vocab_size == 248320
    assert any("of state" in note for note in space.notes())
    with pytest.raises(ConfigError, match="num_memory_layers"):
        Space(dense_part=str(odd), **choices)
    assert Space(dense_part=str(odd), lenient=True, **choices).notes()[0].startswith("num_memory")
    written = tmp_path / "study.toml"
    lines = [f"{name} = {value}" for name, value in choices.items()]
    written.write_text(
        'cluster = "hgx-h100-8"\n[workload]\nnum_tokens_per_device = 16\n[space]\n'
        f'dense_part = "{odd}"\n' + "\n".join(lines)
    )
    with pytest.raises(ConfigError, match=r"study.toml: .*num_memory_layers"):
        load_study_file(written, 0)
    assert load_study_file(written, 0, lenient=True).space.lenient
    preset = load_preset("qwen3-30b-a3b").dense_part
    assert preset.all_moe(preset.num_layers) == preset
