"""The estimate: one law, one step, measured deltas, and an interval that owns up to
extrapolation.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.model import DensePart, Gate, MoELayer, Precision
from moesim.quality import PUBLISHED, estimate_loss, estimate_losses, layer_delta, loss_mid
from moesim.quality.laws import fine_grained_loss, joint_loss

#: about 0.25 B active parameters, inside every range with 16 experts, top-1, and 20 B tokens
DENSE = DensePart(
    num_layers=16,
    num_moe_layers=16,
    hidden_size=1024,
    vocab_size=32000,
    attention_params_per_layer=4 * 1024**2,
    kv_bytes_per_token_per_layer=4096.0,
    dense_intermediate_size=2048,
)
LAYER = MoELayer(hidden_size=1024, expert_intermediate_size=2048, num_experts=16, top_k=1)
TOKENS = 2e10


def estimate(layer=LAYER, dense=DENSE, **budget):
    return estimate_loss(layer, dense, **budget or {"train_tokens": TOKENS})


def test_inside_all_ranges_it_is_the_joint_law():
    found = estimate()
    active = float(DENSE.active_params(LAYER))
    assert 79e6 < active < 2.7e9
    assert found.loss == pytest.approx(joint_loss(16, active, TOKENS), abs=1e-12)
    assert (found.extrapolated, found.outside) == (False, ())
    assert found.low < found.loss < found.high


def test_granularity_is_a_step_of_the_other_law():
    fine = replace(LAYER, expert_intermediate_size=512, num_experts=64, top_k=4)
    active = float(DENSE.active_params(fine))
    step = fine_grained_loss(active, TOKENS, 4.0) - fine_grained_loss(active, TOKENS, 1.0)
    assert step < 0
    assert estimate(fine).loss == pytest.approx(joint_loss(16, active, TOKENS) + step)
    assert estimate(fine).high - estimate(fine).low > estimate().high - estimate().low


def test_a_budget_in_flops_is_six_n_d():
    active = float(DENSE.active_params(LAYER))
    assert estimate(train_flops=6 * active * TOKENS).loss == pytest.approx(estimate().loss)


@pytest.mark.parametrize(
    ("change", "budget", "word"),
    [
        ({"num_experts": 128}, {}, "E_eff 128 outside 1-32"),
        ({"expert_intermediate_size": 32768, "top_k": 16}, {}, "active_params"),
        ({}, {"train_tokens": 4e11}, "train_tokens 4e+11 outside 5e+08-8e+10"),
        ({"expert_intermediate_size": 64}, {}, "granularity 32 outside 1-16"),
        ({"expert_intermediate_size": 4096}, {}, "granularity 0.5 outside 1-16"),
    ],
)
def test_outside_a_range_it_says_so_and_the_interval_widens(change, budget, word):
    outside = estimate(replace(LAYER, **change), **budget)
    assert outside.extrapolated
    assert any(text.startswith(word) for text in outside.outside), outside.outside
    assert outside.high - outside.low > estimate().high - estimate().low
    assert outside.row()["loss_outside"] == "; ".join(outside.outside)


def test_the_interval_widens_with_the_distance():
    widths = [
        (lambda e: e.high - e.low)(estimate(replace(LAYER, num_experts=e)))
        for e in (32, 64, 128, 256, 512)
    ]
    assert widths == sorted(widths)
    assert len(set(widths)) == len(widths)


@pytest.mark.parametrize(
    ("change", "delta"),
    [
        ({"gate": Gate.parse("two_level:4:2")}, 0.008),
        ({"gate": Gate.parse("group_limited:8:4")}, 0.0028),
        ({"precision": Precision.named("fp8")}, 0.0015),
        ({"capacity_factor": 1.0}, 0.007),
        ({"capacity_factor": 1.25}, -0.001),
        ({"capacity_factor": 4.0}, 0.0),
        ({"capacity_factor": 1.125}, 0.003),
    ],
)
def test_measured_deltas(change, delta):
    layer = replace(LAYER, **change)
    at = joint_loss(16, float(DENSE.active_params(layer)), TOKENS)
    found = estimate(layer)
    assert found.loss - at == pytest.approx(delta, abs=1e-9)
    assert found.low < found.loss < found.high


def test_worse_drops_never_help():
    losses = [
        estimate(replace(LAYER, capacity_factor=c, top_k=2)).loss
        for c in (0.5, 1.0, 1.1, 1.25, 1.5, 2.0, 8.0)
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"train_tokens": None, "train_flops": None},
            "loss: expected exactly one of train_tokens and train_flops",
        ),
        (
            {"train_tokens": 1e9, "train_flops": 1e20},
            "loss: expected exactly one of train_tokens and train_flops",
        ),
        ({"train_tokens": 0.0}, "loss: expected a training budget > 0, got 0.0"),
        ({"train_tokens": -1.0}, "loss: expected a training budget > 0, got -1.0"),
        ({"train_flops": 0.0}, "loss: expected a training budget > 0, got 0.0"),
        ({"train_tokens": float("nan")}, "loss: expected a training budget > 0, got nan"),
    ],
)
def test_wrong_budgets(budget, message):
    with pytest.raises(ConfigError) as caught:
        estimate_loss(LAYER, DENSE, **budget)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gate": Gate.parse("product_key")}, "product_key gate"),
        ({"gate": Gate.parse("low_rank")}, "low-rank gate"),
        ({"expert_intermediate_size": (1024,) * 8 + (3072,) * 8}, "experts of different widths"),
        ({"expert_intermediate_size": (2048,) * 12 + (0,) * 4}, "pruned experts"),
    ],
)
def test_what_nobody_measured_is_flagged_and_wide(change, word):
    plain, found = estimate(), estimate(replace(LAYER, **change))
    assert found.extrapolated
    assert f"{word}: no measured figure" in found.outside
    assert found.high - found.low > (plain.high - plain.low) + 0.04


def test_widths_given_one_by_one_are_no_difference():
    assert estimate(replace(LAYER, expert_intermediate_size=(2048,) * 16)) == estimate()


def test_pruning_is_no_free_lunch():
    """Fewer experts for the law, and between nothing and the one figure there is for pruning a
    trained model.
    """
    pruned = estimate(replace(LAYER, expert_intermediate_size=(2048,) * 15 + (0,)))
    fewer = joint_loss(15, float(DENSE.active_params(replace(LAYER, num_experts=15))), TOKENS)
    assert pruned.loss - fewer == pytest.approx(math.log(13) / 2, abs=1e-4)
    assert pruned.loss - pruned.low == pytest.approx(math.log(13) / 2 + 0.005, abs=1e-4)


def test_arrays_are_the_same_model():
    """A screening pass of any size, and one candidate at a time: the same numbers."""
    rng = np.random.default_rng(3)
    layers = [
        replace(
            LAYER,
            num_experts=int(e),
            top_k=int(k),
            expert_intermediate_size=int(w),
            gate=Gate.parse(g),
        )
        for e, k, w, g in zip(
            rng.choice([8, 64, 512, 65536], 40),
            rng.choice([1, 2, 8], 40),
            rng.choice([64, 512, 2048, 4096], 40),
            rng.choice(["flat", "two_level:2:2"], 40),
            strict=True,
        )
        if int(k) <= int(e)
    ]
    e_eff, active, fine = (
        np.array(x, dtype=float)
        for x in zip(
            *(
                (
                    x.num_experts / x.top_k,
                    DENSE.active_params(x),
                    DENSE.dense_intermediate_size / x.mean_width,
                )
                for x in layers
            ),
            strict=True,
        )
    )
    band = estimate_losses(e_eff, active, TOKENS, fine)
    alone = [estimate(x) for x in layers]
    delta = [layer_delta(x) for x in layers]
    assert loss_mid(e_eff, active, TOKENS, fine).tolist() == band.loss_N.tolist()
    for column, name in ((band.loss_N, "nats"), (band.low_N, "low"), (band.high_N, "high")):
        want = [getattr(x, {"nats": "loss"}.get(name, name)) for x in alone]
        assert column + [getattr(d, name) for d in delta] == pytest.approx(want, abs=1e-12)
    assert band.extrapolated_N.tolist() == [
        any(not t.endswith("figure") for t in x.outside) for x in alone
    ]
    assert {bool(x) for x in band.extrapolated_N} == {True, False}


def test_beyond_the_joint_law_s_experts_the_interval_reaches_the_other_laws():
    active = float(DENSE.active_params(LAYER))
    widths = []
    for experts in (32.0, 33.0, 1e3, 1e4, 1e6):
        low, mid, high = PUBLISHED.interval(experts, active, TOKENS, 1.0)
        assert low < mid < high
        widths.append(high - low)
    assert widths == sorted(widths)
    assert widths[0] == pytest.approx(2 * PUBLISHED.base_nats)
    assert widths[1] < widths[0] + 0.01
    assert widths[-1] > 0.2


def test_two_laws_of_granularity_disagree_where_it_is_fine():
    """The leverage has a best granularity near 12, the fine-grained law has none: the interval
    holds both.
    """
    active = float(DENSE.active_params(LAYER))
    ends = [PUBLISHED.interval(8.0, active, TOKENS, g) for g in (8.0, 64.0, 1024.0)]
    above = [high - mid for _, mid, high in ends]
    assert above == sorted(above)
    assert above[2] > 0.1
