"""Volumes and memory as the papers on ZeRO, activations and DualPipe count them."""

import pytest

from moesim.costs.training.memory import (
    Params,
    activation_bytes_of,
    memory_of,
    params_of,
    state_bytes_per_param,
)
from moesim.costs.training.reduction import Sharing, collective_s, volume_of
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import TrainingPlan
from moesim.errors import CapacityError
from moesim.hardware import load_cluster
from moesim.model.feedforward import DenseFeedForward
from moesim.model.mixers import GroupedAttention
from moesim.model.spec import LayerKind, ModelSpec
from moesim.testing.models import DENSE, SPARSE, spec_of
from moesim.units import GB, GIB

#: a GPT: multi-head attention, and a feed-forward of 4 h without a gate
GPT = LayerKind(
    mixer=GroupedAttention(num_heads=32, num_kv_heads=32, head_size=128),
    dense=DenseFeedForward(width=16384, gated=False),
)


def trained(*blocks, layout="", devices=64, **plan):
    spec = ModelSpec(hidden_size=4096, vocab_size=64000, tied_embeddings=False, blocks=blocks)
    return TrainedModel(
        name="small",
        spec=spec,
        layout=TrainLayout.parse(layout, devices),
        plan=TrainingPlan(**{"global_batch": 64, "sequence": 2048} | plan),
    )


@pytest.mark.parametrize(("zero", "elements"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_volumes_are_those_of_zero(zero, elements):
    """2 P elements for data parallelism and stages 1 and 2, 3 P for stage 3 (arXiv 1910.02054)."""
    sharing = Sharing(copies=1024, stride=1, group=1024, zero=zero)
    moved = volume_of(sharing, 7.5e9, gradient_bytes=2.0, weight_bytes=2.0, micro_batches=1)
    assert moved.total / 2.0 == pytest.approx(elements * 7.5e9, rel=0.01)


def test_copies_of_a_group_add_up_their_shares():
    sharing = Sharing(copies=64, stride=1, group=8, zero=3)
    moved = volume_of(sharing, 1e9, gradient_bytes=2.0, weight_bytes=2.0, micro_batches=1)
    assert moved.all_reduce == pytest.approx(2 * 7 / 8 * 2e9 / 8)
    assert moved.all_gather == pytest.approx(2 * 7 / 8 * 2e9)


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_memory_is_that_of_zero(zero, gigabytes):
    """7.5 G parameters on 64 devices, bf16 gradients, AdamW (arXiv 1910.02054, figure 1)."""
    design = trained(*[GPT] * 8, zero=zero, gradient_format="bfloat16")
    need = memory_of(design, Params(7.5e9, 0.0), (64, 64), activations_bytes=0.0, last=False)
    kept = need.weights_bytes + need.gradients_bytes + need.optimizer_bytes
    assert kept / GB == pytest.approx(gigabytes, rel=0.01)


def test_a_layer_keeps_what_the_paper_counts():
    """34 s b h less two dropout masks, and no scores (arXiv 2205.05198, with flash attention); the
    input alone with full recomputation; all divided by tensor parallelism.
    """
    tokens, hidden = 2048, 4096
    assert activation_bytes_of(trained(GPT), GPT) == 32 * tokens * hidden
    full = trained(GPT, recompute="full")
    assert activation_bytes_of(full, GPT) == 2 * tokens * hidden
    divided = trained(GPT, layout="tp8")
    assert activation_bytes_of(divided, GPT) == 32 * tokens * hidden / 8
    selective = activation_bytes_of(trained(GPT, recompute="selective"), GPT)
    assert selective == 20 * tokens * hidden
    hosted = activation_bytes_of(trained(GPT, offload=0.25), GPT)
    assert hosted == 24 * tokens * hidden


def test_experts_are_divided_over_their_own_devices():
    spec = spec_of(DENSE, SPARSE)
    design = TrainedModel(
        name="small",
        spec=spec,
        layout=TrainLayout.parse("ep8", 64),
        plan=TrainingPlan(global_batch=64),
    )
    held = params_of(design, spec.blocks, first=True, last=True)
    routed = 64 * 3 * 2048 * 1024
    assert held.experts == routed / 8
    assert held.dense + routed == spec.total_params
    assert held.tables == 2 * 64000 * 2048


def test_muon_keeps_one_moment_of_a_matrix():
    adamw, muon = trained(GPT), trained(GPT, optimizer="muon")
    assert state_bytes_per_param(adamw) == 12
    assert state_bytes_per_param(muon) == 8
    assert state_bytes_per_param(muon, table=True) == 12
    assert state_bytes_per_param(trained(GPT, state_format="bfloat16")) == 8


def test_what_does_not_fit_is_told():
    design = trained(*[GPT] * 8)
    need = memory_of(design, Params(7.5e9, 0.0), (64, 64), activations_bytes=0.0, last=False)
    with pytest.raises(CapacityError, match=r"GiB over \(weights 14.0, gradients 27.9") as error:
        need.check("small", "h100-sxm", 40 * GIB)
    assert "\n" not in str(error.value)


def test_rings_cross_nodes_over_all_nics():
    cluster = load_cluster("h100-rail-8x8")
    size = 8e9
    near = collective_s(cluster, "reduce_scatter", 8, 1, size)
    assert size * 7 / 8 / 450e9 < near < 2 * size * 7 / 8 / 450e9
    # eight devices of a node share what crosses, one device has all of it
    wide = collective_s(cluster, "reduce_scatter", 64, 1, size)
    alone = collective_s(cluster, "reduce_scatter", 8, 8, size)
    assert alone == pytest.approx(size * 7 / 8 / 50e9, rel=0.1)
    assert wide < alone / 4
    assert collective_s(cluster, "all_gather", 1, 1, size) == 0.0
