"""A trained layer on the CPU: its gradients are autograd's, its steps follow them, its times belong
together.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from moesim_kernels.cpu.train import TRAIN_PHASES, CpuTraining, time_training
from moesim_kernels.ranks.timed_layers import LayerRun
from moesim_kernels.sources.train_loop import (
    foretold,
    random_training_runs,
    training_rows,
    training_summary,
)

from moesim.errors import ConfigError
from moesim.hardware import load_profile, single_device
from moesim.hardware.profile import HostFabric
from moesim.model import Gate, MoELayer


@pytest.fixture(scope="module")
def cpu(cpu_profile_path):
    return load_profile(str(cpu_profile_path))


@pytest.fixture(scope="module")
def cpu_with_ranks(cpu):
    """All-to-alls as a machine of two cores might have them: no time is asserted."""
    fabric = HostFabric(
        backend="gloo",
        start_s=1e-4,
        port_bytes_per_s=1.5e9,
        ranks=(2,),
        bytes_per_pair=(1e6,),
        time_s=(8e-4,),
        interval=(0.7, 1.4),
    )
    return replace(cpu, host_fabric=fabric)


def layer_of(**changes):
    sizes = {"hidden_size": 64, "expert_intermediate_size": 32, "num_experts": 8, "top_k": 2}
    return MoELayer(**sizes | changes)


def ids_of(layer, tokens):
    rng = np.random.default_rng(0)
    return np.array([rng.permutation(layer.num_experts)[: layer.top_k] for _ in range(tokens)])


def plain(x_TH, gate_EH, up_ENH, down_EHI, ids_TK, gated):
    """The same layer, token by token."""
    share_TK = torch.softmax((x_TH @ gate_EH.T), dim=1).gather(1, ids_TK)
    share_TK = share_TK / share_TK.sum(dim=1, keepdim=True)
    width, rows = down_EHI.shape[2], []
    for x_H, ids_K, share_K in zip(x_TH, ids_TK, share_TK, strict=True):
        outs = []
        for expert in ids_K:
            up_N = up_ENH[expert] @ x_H
            act_I = torch.nn.functional.silu(up_N[:width])
            outs.append(down_EHI[expert] @ (act_I * up_N[width:] if gated else act_I))
        rows.append((share_K[:, None] * torch.stack(outs)).sum(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("top_k", [1, 3])
def test_gradients_are_those_of_autograd(gated, top_k):
    layer = layer_of(gated=gated, top_k=top_k)
    case = CpuTraining(layer, ids_of(layer, 23), torch.float32)
    leaves = [t.detach().clone().requires_grad_() for t in (case.x_TH, *case.weights)]
    out_TH = plain(*leaves, case.ids_TK, gated)
    out_TH.backward(case.out_grad_TH)
    case.backward_weights(case.backward_activations(case.train_forward()))
    assert torch.allclose(case.out_TH, out_TH, rtol=1e-4, atol=1e-5)
    found = [case.x_grad_TH, *(weight.grad for weight in case.weights)]
    for one, other in zip(found, leaves, strict=True):
        assert torch.allclose(one, other.grad, rtol=1e-3, atol=1e-5)


def test_steps_follow_the_gradient():
    layer = layer_of()
    case = CpuTraining(layer, ids_of(layer, 32), torch.float32)
    losses = []
    for _ in range(5):
        case.forward()
        losses.append(float((case.out_TH * case.out_grad_TH).sum()))
    assert losses == sorted(losses, reverse=True)


def test_times_of_a_step_belong_together():
    timing = time_training(layer_of(), ids_of(layer_of(), 16), torch.bfloat16, seconds=0.0)
    assert list(timing.seconds) == [*TRAIN_PHASES, "total"]
    parts = np.sum([timing.seconds[name] for name in TRAIN_PHASES], axis=0)
    assert parts == pytest.approx(timing.seconds["total"])


def test_other_gates_are_refused_in_one_line():
    layer = layer_of(gate=Gate.parse("two_level:4:2"))
    with pytest.raises(ConfigError, match=r"layer\.gate: expected flat with softmax") as error:
        CpuTraining(layer, ids_of(layer, 4), torch.float32)
    assert "\n" not in str(error.value)


def test_random_layers_are_drawn_alike_and_are_small(cpu):
    runs = random_training_runs(cpu, 6, seed=1)
    assert runs == random_training_runs(cpu, 6, seed=1) != random_training_runs(cpu, 6, seed=2)
    assert all(run.trained and LayerRun.from_json(run.as_json()) == run for run in runs)
    assert {run.layer.precision.activations for run in runs} == {"float32", "bfloat16"}


def test_a_step_takes_longer_than_its_forward(cpu):
    for run in random_training_runs(cpu, 4, seed=3):
        step = foretold(run, single_device(cpu))
        assert 0 < step.forward_s < step.backward_s
        assert step.optimizer_s > 0 == step.reduction_s
        assert step.step_s == step.forward_s + step.backward_s + step.optimizer_s


@pytest.mark.full
def test_layers_are_simulated_and_trained_on_one_core_and_two_ranks(cpu_with_ranks):
    rows = [
        row
        for ranks in (1, 2)
        for row in training_rows(cpu_with_ranks, 4, 0, ranks, seconds=0.0, fitted_on=2)
    ]
    assert len(rows) == 8
    for row in rows:
        assert min(row["simulated_us"], row["measured_us"], row["fitted_us"]) > 0
    table = training_summary(rows)
    assert [row["rows"] for row in table] == [4, 2, 2, 2]
