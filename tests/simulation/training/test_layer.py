"""A training step of one layer: what must hold on any device."""

from dataclasses import replace

import pytest

from moesim import Workload, load_cluster
from moesim.design.candidate import Parallelism
from moesim.errors import ConfigError
from moesim.simulation.training.layer import simulate_training_layer

WORK = Workload(num_tokens_per_device=512, routing="zipf:0.8")


@pytest.mark.parametrize("device", ["h100-sxm", "mi300x"])
def test_backward_is_twice_the_forward_where_products_rule(make_candidate, device):
    design = make_candidate(ep=1, hidden_size=4096, expert_intermediate_size=4096)
    work = Workload(num_tokens_per_device=8192)
    step = simulate_training_layer(design, load_cluster(device), work)
    assert step.backward_s == pytest.approx(2 * step.forward_s, rel=0.35)
    assert step.step_s == step.forward_s + step.backward_s + step.optimizer_s
    # AdamW moves seven numbers of two bytes for each weight
    profile = load_cluster(device).profile
    params = design.layer.routed_params + design.layer.gate_params
    assert step.optimizer_s == pytest.approx(14 * params / profile.hbm_bandwidth_bytes_per_s)


def test_more_devices_exchange_and_hold_fewer_experts(make_candidate, hgx):
    design = make_candidate(hidden_size=2048)
    alone = replace(design, parallelism=Parallelism(ep=1))
    eight = simulate_training_layer(design, hgx, WORK)
    one = simulate_training_layer(alone, load_cluster("h100-sxm"), WORK)
    gate = design.layer.gate_params / design.layer.routed_params
    assert eight.optimizer_s == pytest.approx(one.optimizer_s * (1 / 8 + gate), rel=0.01)
    assert eight.forward_s > one.forward_s
    engines = [
        simulate_training_layer(design, hgx, WORK, engine=name).step_s
        for name in ("bound", "flow", "event_compiled")
    ]
    assert engines[0] <= engines[1] * (1 + 1e-9)
    assert engines[2] == pytest.approx(engines[1], rel=0.02)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"expert_intermediate_size": (512, 256) * 8}, "expert_intermediate_size: expected one"),
        ({"ep": 4, "tp": 2}, "parallelism.tp: expected 1"),
    ],
)
def test_what_it_cannot_train_is_one_line(make_candidate, hgx, changes, text):
    with pytest.raises(ConfigError, match=text) as error:
        simulate_training_layer(make_candidate(**changes), hgx, WORK)
    assert "\n" not in str(error.value)
