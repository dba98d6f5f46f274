"""Kinds of gates: one record each, and a new one in one place; the same for a new
device profile.
"""

from dataclasses import replace

import numpy as np
import pytest

from moesim import Gate, Workload, simulate
from moesim.costs.devices.primitives import kernels_for
from moesim.errors import ConfigError, UnknownNameError
from moesim.files.toml import find
from moesim.model.gate_kinds import GATE_KINDS, GateKind, add_gate_kind, gate_kind

WORK = Workload(num_tokens_per_device=256)


@pytest.fixture
def toy():
    """Keys of two numbers an expert, and nothing but a launch."""
    yield add_gate_kind(
        GateKind(
            name="toy",
            about="guesses",
            price=lambda kernels, layer, tokens: kernels.launches(1.0 * (tokens > 0)),
            params=lambda gate, hidden_size, num_experts: 2 * num_experts,
        )
    )
    del GATE_KINDS["toy"]


def test_a_toy_gate_is_simulated_and_named(hgx, make_candidate, toy):
    gate = Gate.parse("toy+sigmoid")
    assert str(gate) == "toy+sigmoid"
    candidate = make_candidate(num_experts=32, top_k=2, gate=gate)
    assert candidate.layer.gate_params == 64
    found, usual = (
        simulate(c, hgx, WORK)
        for c in (candidate, replace(candidate, layer=replace(candidate.layer, gate=Gate())))
    )
    one_launch = kernels_for(hgx.profile).launches(np.ones(1)).solo_s_D()[0]
    assert found.phase_time_s["gate"] == pytest.approx(one_launch)
    assert usual.phase_time_s["gate"] > found.phase_time_s["gate"]
    assert found.row()["gate"] == "toy+sigmoid"
    assert "gate toy" in found.row()["gate_loss_unknown"]


def test_a_toy_gate_that_says_no(toy):
    def refuse(gate, num_experts):
        raise ConfigError(f"layer.num_experts: expected 7, got {num_experts}")

    GATE_KINDS["toy"] = replace(toy, check_experts=refuse)
    with pytest.raises(ConfigError, match=r"layer\.num_experts: expected 7, got 8"):
        Gate(kind="toy").check_experts(8, 2)


def test_names_are_taken_once_and_known(toy):
    with pytest.raises(
        ConfigError, match="gate kind 'toy': expected a new name, got that of 'guesses'"
    ):
        add_gate_kind(replace(toy, about="another"))
    with pytest.raises(
        UnknownNameError, match="unknown gate kind 'two_levels': did you mean two_level"
    ):
        gate_kind("two_levels")


def test_a_price_that_does_not_exist_is_named(hgx, make_candidate, toy):
    GATE_KINDS["toy"] = replace(toy, price="flatt")
    with pytest.raises(
        UnknownNameError, match="unknown price of gate toy 'flatt': did you mean flat"
    ):
        simulate(make_candidate(num_experts=32, top_k=2, gate=Gate(kind="toy")), hgx, WORK)


def test_a_toy_device_is_one_file(hgx, make_candidate, tmp_path, monkeypatch):
    """An H100 of one's own with twice the rate in bf16; what it is not, its cluster takes from the
    shipped files.
    """
    shipped = find("devices", "h100-sxm").read_text()
    text = shipped.replace("bfloat16 = {value = 989.4,", "bfloat16 = {value = 1978.8,")
    assert text != shipped
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "toy.toml").write_text(
        text.replace('aliases = ["h100_sxm"', 'aliases = ["toy_sxm"', 1)
    )
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    toy = hgx.with_(profile="toy")
    assert toy.profile.peak("bfloat16") == 2 * hgx.profile.peak("bfloat16")
    candidate, work = make_candidate(num_experts=32, top_k=2), Workload(num_tokens_per_device=4096)
    assert simulate(candidate, toy, work).layer_time_s < simulate(candidate, hgx, work).layer_time_s
