"""The table of differences: intervals, sources, and what happens between its figures."""

import math
from dataclasses import replace

import pytest

from moesim.model import Gate, MoELayer, Precision
from moesim.quality import layer_delta
from moesim.quality.deltas import DELTAS, ROUNDED_BITS, capacity_delta, weight_bits_delta
from moesim.quality.layers import layer_deltas

LAYER = MoELayer(hidden_size=1024, expert_intermediate_size=512, num_experts=64, top_k=4)


@pytest.mark.parametrize("name", sorted(DELTAS))
def test_a_delta_has_an_interval_and_either_a_source_or_says_it_is_unknown(name):
    delta = DELTAS[name]
    assert delta.low <= delta.nats <= delta.high
    assert delta.low < delta.high
    assert delta.unknown or delta.source != "assumed"


@pytest.mark.parametrize(("bits", "nats"), ROUNDED_BITS)
def test_rounding_reproduces_its_points(bits, nats):
    delta = weight_bits_delta(bits)
    assert delta.nats == pytest.approx(nats)
    assert delta.unknown == ""


def test_rounding_between_points_and_at_the_ends():
    nats = [weight_bits_delta(b).nats for b in (3, 3.5, 4, 4.5, 5, 6, 7, 8)]
    assert nats == sorted(nats, reverse=True)
    assert weight_bits_delta(16).nats == 0
    assert weight_bits_delta(4, calibrated=True).low == pytest.approx(0.024)
    assert weight_bits_delta(4, calibrated=True).nats == pytest.approx(0.0395)
    assert weight_bits_delta(4, calibrated=True).unknown == ""
    assert weight_bits_delta(3, calibrated=True).unknown == "calibrated 3-bit weights"
    with pytest.raises(ValueError, match="bits: expected at least 3, got 2"):
        weight_bits_delta(2)


@pytest.mark.parametrize(
    ("change", "nats", "unknown"),
    [
        ({}, 0.0, ""),
        ({"gate": Gate.parse("group_limited:8:4")}, 0.0028, ""),
        ({"gate": Gate.parse("group_limited:16:4")}, 0.0028, ""),
        ({"gate": Gate.parse("group_limited:8:2")}, 0.008, "fewer than 3 groups a token"),
        ({"gate": Gate.parse("group_limited:8:8")}, 0.0, ""),
        ({"gate": Gate.parse("flat+bias")}, -0.006, ""),
        ({"gate": Gate.parse("flat+sigmoid+bias")}, -0.006, "sigmoid score"),
        ({"gate": Gate.parse("flat+aux_loss")}, 0.0, ""),
        ({"gate": Gate.parse("flat+hash")}, 0.025, "hash routing against top-k"),
        ({"gate": Gate.parse("flat+share_tokens:4")}, 0.01875, "shared gate decisions"),
        ({"gate": replace(Gate(), precision="float8_e4m3")}, 0.0, "8-bit gate"),
        ({"num_shared_experts": 1}, 0.0, "shared experts"),
        ({"precision": Precision.named("int8")}, 0.0015, ""),
        ({"precision": Precision.named("int4")}, 0.040, ""),
        ({"precision": Precision.named("nvfp4")}, 0.024, "block-scaled 4-bit floats"),
        ({"precision": Precision(dispatch="float8_e4m3")}, 0.0015, ""),
        ({"capacity_factor": 1.25}, 0.012, ""),
        ({"capacity_factor": 0.5}, 0.025, "capacity factor below 1"),
        ({"capacity_factor": 1.0, "overflow": "reroute"}, 0.0125, "re-routed tokens"),
        (
            {"gate": Gate.parse("two_level:8:4+local"), "capacity_factor": 2.0},
            0.0114,
            "local routers",
        ),
    ],
)
def test_choices(change, nats, unknown):
    delta = layer_delta(replace(LAYER, **change))
    assert delta.nats == pytest.approx(nats)
    assert delta.unknown == unknown
    assert delta.low <= delta.nats <= delta.high


def test_unknown_choices_add_up_and_are_all_named():
    layer = replace(
        LAYER,
        gate=Gate.parse("flat+sigmoid+noisy_top_k:1+temperature:2"),
        num_shared_experts=2,
        precision=Precision.named("mxfp4"),
    )
    delta = layer_delta(layer)
    assert delta.unknown.split("; ") == [
        "sigmoid score",
        "gating temperature",
        "noisy top-k",
        "block-scaled 4-bit floats",
        "shared experts",
    ]
    assert delta.high == pytest.approx(sum(d.high for d in layer_deltas(layer)))


def test_a_pruned_model_is_between_nothing_and_the_one_figure_there_is():
    delta = layer_delta(replace(LAYER, expert_intermediate_size=(512,) * 56 + (0,) * 8))
    assert (delta.low, delta.high) == (0.0, pytest.approx(math.log(13)))


def test_below_a_capacity_of_one_it_is_no_better_than_at_one():
    assert capacity_delta(0.5, 2).high > capacity_delta(1.0, 2).high
    assert capacity_delta(0.5, 2).nats == capacity_delta(1.0, 2).nats
