"""``moesim placement``: maps out and in, pay-back, and one-line errors."""

import json
import sys

import pytest

from moesim.cli import main

SMALL = ["--preset", "olmoe-1b-7b", "--cluster", "hgx-h100-8", "--tokens", "64"]


@pytest.fixture
def moesim(monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("layout", ["sglang", "vllm", "vllm_ascend"])
def test_export_and_show(moesim, tmp_path, layout):
    path = tmp_path / "map.json"
    code, out, err = moesim(
        "placement",
        "export",
        path,
        *SMALL,
        "--placement",
        "eplb",
        "--replicas",
        8,
        "--format",
        layout,
        "--routing",
        "olmoe-c4",
    )
    assert code == 0, err
    assert "16 MoE layers, 64 experts in 72 slots on 8 ranks" in out
    data = json.loads(path.read_text())
    if layout == "sglang":
        assert list(data) == ["physical_to_logical_map"]
    code, out, err = moesim("placement", "show", path, *SMALL, "--routing", "olmoe-c4")
    assert code == 0, err
    assert "72" in out


def test_a_map_is_shown_under_the_loads_it_was_planned_on(moesim, tmp_path):
    path = tmp_path / "map.json"
    code, _, err = moesim(
        "placement",
        "export",
        path,
        *SMALL,
        "--placement",
        "eplb",
        "--replicas",
        8,
        "--routing",
        "zipf:0.8",
    )
    assert code == 0, err
    for layer in (0, 5, -1):
        code, out, err = moesim(
            "placement", "show", path, *SMALL, "--routing", "zipf:0.8", "--layer", layer
        )
        assert code == 0, err
        shown = [line.split() for line in out.splitlines() if " 72 " in line]
        assert len(shown) == 1
        assert float(shown[0][-2]) < 1.05


def test_rebalance(moesim):
    code, out, err = moesim(
        "placement",
        "rebalance",
        *SMALL,
        "--replicas",
        8,
        "--before",
        "zipf:0.8+drift:0.1",
        "--now",
        "zipf:0.8+drift:0.1@9",
    )
    assert code == 0, err
    assert "payback_passes" in out
    assert "moved_gib" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["export", "{out}", *SMALL, "--format", "deepspeed"],
            "unknown placement format 'deepspeed'",
        ),
        (
            ["export", "{out}", *SMALL, "--placement", "eplb", "--replicas", "3"],
            (
                "placement: expected experts + replicas divisible by the 8 expert-parallel "
                "ranks, got 64 + 3"
            ),
        ),
        (
            ["export", "{out}", *SMALL, "--trace", "no/such.csv"],
            "no/such.csv: cannot read this file",
        ),
        (["show", "no/such.json", *SMALL], "no/such.json: cannot read this file"),
    ],
)
def test_errors_are_one_line(moesim, tmp_path, arguments, line):
    code, _, err = moesim("placement", *(a.format(out=tmp_path / "map.json") for a in arguments))
    assert code == 2
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_replicas_make_slots_divide_where_experts_do_not(moesim, tmp_path):
    path = tmp_path / "map.json"
    there = ["--preset", "olmoe-1b-7b", "--cluster", "gb200-nvl72", "--tokens", "64"]
    code, out, err = moesim(
        "placement", "export", path, *there, "--placement", "eplb", "--replicas", 8
    )
    assert code == 0, err
    assert "none in expert order, which does not divide over 72 ranks" in out
    code, out, err = moesim("placement", "show", path, *there)
    assert code == 0, err
    assert "expert order" not in out
