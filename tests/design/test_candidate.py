"""Candidates and workloads: labels people read, and one line for what is wrong."""

import pytest

from moesim import Candidate, Gate, MoELayer, Parallelism, Precision, Workload
from moesim.errors import ConfigError
from moesim.routing.distributions import _FORM


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Parallelism(ep=0), "parallelism.ep: expected an integer >= 1, got 0"),
        (lambda: Parallelism(tp=-2), "parallelism.tp: expected an integer >= 1, got -2"),
        (lambda: Parallelism(ep=1.5), "parallelism.ep: expected an integer >= 1, got 1.5"),
        (
            lambda: Workload(num_tokens_per_device=0),
            "workload.num_tokens_per_device: expected an integer >= 1, got 0",
        ),
        (
            lambda: Workload(num_tokens_per_device=1.5),
            "workload.num_tokens_per_device: expected an integer >= 1, got 1.5",
        ),
        (
            lambda: Workload(num_tokens_per_device=1, phase="train"),
            "workload.phase: expected prefill or decode, got 'train'",
        ),
        (
            lambda: Workload(num_tokens_per_device=1, kv_tokens_per_device=-1),
            "workload.kv_tokens_per_device: expected an integer >= 0, got -1",
        ),
        (
            lambda: Workload(num_tokens_per_device=1, seed=-1),
            "workload.seed: expected an integer >= 0, got -1",
        ),
        (
            lambda: Workload(num_tokens_per_device=1, routing="zipf"),
            f"routing: expected {_FORM}, got 'zipf'",
        ),
    ],
)
def test_wrong_ones(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


def test_kv_tokens_are_those_of_the_batch_unless_said():
    assert Workload(num_tokens_per_device=7).kv_tokens == 7
    assert Workload(num_tokens_per_device=7, kv_tokens_per_device=0).kv_tokens == 0
    assert Workload(num_tokens_per_device=7, kv_tokens_per_device=900).kv_tokens == 900


def test_label_tells_candidates_apart():
    layer = {"hidden_size": 64, "expert_intermediate_size": 32, "num_experts": 8, "top_k": 2}
    candidates = [
        Candidate(layer=MoELayer(**layer)),
        Candidate(layer=MoELayer(**layer | {"num_experts": 16})),
        Candidate(layer=MoELayer(**layer | {"top_k": 1})),
        Candidate(layer=MoELayer(**layer | {"expert_intermediate_size": 48})),
        Candidate(layer=MoELayer(**layer, gate=Gate.parse("two_level:4:2"))),
        Candidate(layer=MoELayer(**layer, precision=Precision.named("fp8"))),
        Candidate(layer=MoELayer(**layer), parallelism=Parallelism(ep=2)),
        Candidate(layer=MoELayer(**layer), parallelism=Parallelism(tp=2)),
        Candidate(layer=MoELayer(**layer), placement="eplb"),
        Candidate(layer=MoELayer(**layer), placement="eplb", num_replicas=8),
    ]
    assert candidates[0].label == "E8 k2 I32 bf16 flat ep1tp1 contiguous H64"
    assert candidates[-1].label == "E8 k2 I32 bf16 flat ep1tp1 eplb+8 H64"
    assert len({c.label for c in candidates}) == len(candidates)
