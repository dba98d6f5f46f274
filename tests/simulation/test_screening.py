"""A screening says, but for rounding, what the bound engine says of each candidate by itself."""

import itertools

import numpy as np
import pytest

from moesim import Workload, load_cluster, simulate
from moesim.search import Space
from moesim.simulation.screening import bounds_of

CHOICES = {
    "num_experts": [64, 128],
    "top_k": [2, 8],
    "expert_intermediate_size": [1000, 1536, 4096],
    "gate": ["flat", "two_level:8:4"],
    "placement": ["contiguous", "eplb"],
    "precision": ["bf16", "fp8"],
}


def candidates(cluster, **more):
    preset = {"dense_part": "qwen3-235b-a22b", "train_tokens": 1e12, "hidden_size": 4096}
    space = Space(**preset | CHOICES | more)
    names = list(space.choices())
    return [
        space.decode(dict(zip(names, point, strict=True)), cluster)[0]
        for point in itertools.product(*space.choices().values())
    ]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("hgx-h100-8", {}),
        (
            "hgx-h100-8",
            {"num_micro_batches": [1, 2], "num_shared_experts": 1, "parallelism": ["tp2"]},
        ),
        ("hgx-h100-8", {"capacity_factor": [0.0, 1.25], "num_replicas": [8]}),
        ("h100-rail-8x8", {"dispatch": ["cluster", "deepep_normal"], "gate": ["flat"]}),
        ("tpu-v5p-4x4x4", {"gate": ["flat"], "placement": ["contiguous"], "precision": ["bf16"]}),
        ("mixed-h100-b200", {"gate": ["flat"], "placement": ["eplb"]}),
        ("h100-sxm", {"gate": ["flat"], "placement": ["contiguous"]}),
    ],
)
def test_equal_to_the_bound_of_each(name, more):
    cluster = load_cluster(name)
    work = Workload(num_tokens_per_device=96, routing="power_law:1.2", kv_tokens_per_device=1000)
    every = candidates(cluster, **more)
    rng = np.random.default_rng(0)
    found = bounds_of(every, cluster, work)
    assert found.reasons == {}
    for i in rng.choice(len(every), 12, replace=False):
        alone = simulate(every[i], cluster, work, engine="bound", must_fit=False)
        assert found.layer_time_s_N[i] == pytest.approx(alone.layer_time_s, rel=1e-12)
        assert found.memory_bytes_N[i] == alone.peak_memory_bytes
        assert found.memory_over_bytes_N[i] == alone.memory_over_bytes
        for kind, value in alone.mean_utilisation.items():
            assert found.mean_utilisation[kind][i] == pytest.approx(value, rel=1e-12), kind


def test_experts_of_several_widths_are_bounded_too(hgx):
    work = Workload(num_tokens_per_device=64)
    every = candidates(
        hgx,
        num_experts=[64],
        expert_intermediate_size=[512, "32x256+32x1024", "32x0+32x512"],
        gate=["flat"],
    )
    found = bounds_of(every, hgx, work)
    for i, candidate in enumerate(every):
        alone = simulate(candidate, hgx, work, engine="bound", must_fit=False)
        assert found.layer_time_s_N[i] == pytest.approx(alone.layer_time_s, rel=1e-12)


def test_what_is_no_candidate_has_a_reason(hgx):
    every = candidates(
        hgx, num_experts=[12, 64], top_k=[2], gate=["flat"], placement=["contiguous"]
    )
    found = bounds_of(every, hgx, Workload(num_tokens_per_device=64))
    wrong = [i for i, c in enumerate(every) if c.layer.num_experts == 12]
    assert sorted(found.reasons) == wrong
    assert np.isnan(found.layer_time_s_N[wrong]).all()
    assert all(
        "divisible by the 8 expert-parallel ranks, got 12" in text
        for text in found.reasons.values()
    )
