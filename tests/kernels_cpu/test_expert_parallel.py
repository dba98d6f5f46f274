"""The expert-parallel layer is the layer: between real processes over gloo, with uneven, empty and
missing tokens.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from moesim_kernels.ops.fp8 import quantise_blocks_reference
from moesim_kernels.ops.weights import LayerWeights
from moesim_kernels.ranks.expert_parallel import contiguous_placement, local_weights
from moesim_kernels.ranks.group import run_ranks

from moesim.errors import ConfigError
from moesim.model import MoELayer

pytestmark = pytest.mark.full

RANK = [sys.executable, str(Path(__file__).with_name("expert_parallel_rank.py"))]
CASES = {
    "two ranks": {"tokens": [17, 29], "experts": 8, "top_k": 2},
    "no tokens on one": {"tokens": [0, 9], "experts": 6, "top_k": 3},
    "no tokens anywhere": {"tokens": [0, 0], "experts": 4, "top_k": 2},
    "all experts": {"tokens": [5, 3], "experts": 5, "top_k": 5},
    "one hot expert": {"tokens": [12, 7], "experts": 6, "top_k": 1, "hot": 5},
    "shared experts": {"tokens": [4, 11], "experts": 8, "top_k": 2, "shared": 1},
    "group limited": {
        "tokens": [10, 6],
        "experts": 12,
        "top_k": 3,
        "gate": "group_limited:4:2+sigmoid",
    },
    "two level": {"tokens": [10, 6], "experts": 12, "top_k": 3, "gate": "two_level:4:2"},
    "product key": {"tokens": [10, 6], "experts": 16, "top_k": 4, "gate": "product_key:2:8"},
    "replicas": {"tokens": [23, 14], "experts": 5, "top_k": 2, "slots": [[4, 0, 2], [1, 3, 0, 2]]},
    "bfloat16": {"tokens": [17, 29], "experts": 8, "top_k": 2, "dtype": "bfloat16"},
    "bfloat16, odd hidden size": {
        "tokens": [7, 2],
        "experts": 4,
        "top_k": 1,
        "dtype": "bfloat16",
        "hidden": 33,
    },
    "fast path": {"tokens": [17, 29], "experts": 8, "top_k": 2, "backend": "grouped_mm"},
    "fast path, two level": {
        "tokens": [9, 8],
        "experts": 12,
        "top_k": 3,
        "gate": "two_level:4:2",
        "backend": "grouped_mm",
    },
    "fast path, none": {
        "tokens": [9, 0],
        "experts": 6,
        "top_k": 1,
        "hot": 0,
        "backend": "grouped_mm",
    },
    "fast path, training": {
        "tokens": [17, 29],
        "experts": 8,
        "top_k": 2,
        "train": True,
        "backend": "grouped_mm",
    },
    "training": {"tokens": [17, 29], "experts": 8, "top_k": 2, "train": True},
    "training, no tokens on one": {
        "tokens": [0, 9],
        "experts": 6,
        "top_k": 3,
        "shared": 1,
        "train": True,
    },
    "training, one hot expert": {
        "tokens": [8, 5],
        "experts": 6,
        "top_k": 1,
        "hot": 5,
        "train": True,
    },
    "training, product key": {
        "tokens": [6, 5],
        "experts": 16,
        "top_k": 4,
        "gate": "product_key:2:8",
        "train": True,
    },
    "training, own slots": {
        "tokens": [6, 5],
        "experts": 5,
        "top_k": 2,
        "slots": [[4, 0], [1, 3, 2]],
        "train": True,
    },
}
THREE = {
    "three ranks": {"tokens": [1, 30, 14], "experts": 9, "top_k": 4},
    "experts that do not divide": {"tokens": [8, 0, 21], "experts": 7, "top_k": 2},
    "all on one rank": {"tokens": [8, 3, 5], "experts": 6, "top_k": 1, "hot": 3},
    "training of three": {"tokens": [8, 0, 21], "experts": 7, "top_k": 2, "train": True},
}
INTERPRETED = {
    "kernels": {"tokens": [5, 9], "experts": 6, "top_k": 2, "backend": "triton"},
    "kernels, no tokens on one": {
        "tokens": [0, 9],
        "experts": 6,
        "top_k": 2,
        "shared": 1,
        "backend": "triton",
    },
    "kernels, training": {
        "tokens": [0, 9],
        "experts": 6,
        "top_k": 2,
        "backend": "triton",
        "train": True,
    },
}


def ran(cases, ranks, command=RANK, refuse=False):
    return run_ranks(
        command,
        ranks,
        {"cases": list(cases.values()), "refuse": refuse},
        backend="gloo",
        timeout_s=180.0,
    )


@pytest.fixture(scope="module")
def two():
    return ran(CASES, 2)


@pytest.fixture(scope="module")
def three():
    return ran(THREE, 3, refuse=True)


@pytest.mark.skipif(
    "__import__('importlib.util').util.find_spec('triton') is None",
    reason="Triton exists for Linux only",
)
def test_two_processes_through_the_interpreter():
    answers = ran(INTERPRETED, 2, ["env", "TRITON_INTERPRET=1", *RANK])
    for name in INTERPRETED:
        check(answers, INTERPRETED, name)


def check(answers, cases, name):
    case, number = cases[name], list(cases).index(name)
    limit = 2e-2 if case.get("dtype") == "bfloat16" else 1e-5
    for rank, answer in enumerate(answers):
        found = answer["cases"][number]
        if case.get("train"):
            assert {key: value for key, value in found["errors"].items() if value > 1e-4} == {}
            continue
        assert found["error"] <= limit
        assert found["shape"] == [case["tokens"][rank], case.get("hidden", 32)]
        assert found["dtype"] == f"torch.{case.get('dtype', 'float32')}"
        assert found["phases"]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_the_layer(two, name):
    check(two, CASES, name)


@pytest.mark.parametrize("name", THREE)
def test_three_processes_compute_the_layer(three, name):
    check(three, THREE, name)


def test_what_does_not_fit_is_refused_on_every_rank(three):
    for rank, answer in enumerate(three):
        told = answer["refused"]
        other = 0 if rank % 2 else 1
        assert told["layer"] == (
            "ValueError: expert_parallel_layer: expected the same layer, format and placement on "
            f"all ranks, got others on rank {other}"
        )
        assert told["width"] == "ValueError: x_TH: expected shape (T, 32), got (3, 16)"
        assert told["nan"].startswith("ValueError: x_TH: expected finite numbers")
        assert told["whole"].startswith("ValueError: weights.w_gate_up: expected shape (2, 32, 32)")
        assert (
            told["backend"]
            == "ValueError: backend: expected 'triton', 'torch' or 'grouped_mm', got 'cuda'"
        )
        assert told["scaled"] == (
            "ConfigError: weights: expected bfloat16, float16 or float32 for a layer over ranks, "
            "got block-scaled 8-bit floats"
        )
        assert (
            told["near"]
            == "ConfigError: placement: expected replicas that take turns, got nearest replicas"
        )
        assert told["ranks"] == "ConfigError: placement: expected 6 experts on 3 ranks, got 6 on 4"
        assert (
            told["empty"]
            == "ConfigError: placement: expected an expert on each of 3 ranks, got [6, 0, 0]"
        )


@pytest.mark.parametrize(
    "names", [("w_gate_up", "w_down"), ("w_gate_up",), ("w_down",), ("shared_down",)]
)
def test_block_scaled_weights_are_refused_before_they_are_shared_out(names):
    layer = MoELayer(
        hidden_size=32, expert_intermediate_size=16, num_experts=6, top_k=2, num_shared_experts=1
    )
    weights = LayerWeights.random(layer, 0)
    scaled = replace(
        weights,
        **{
            name: quantise_blocks_reference(
                getattr(weights, name).reshape(-1, *getattr(weights, name).shape[-2:])
            )
            for name in names
        },
    )
    with pytest.raises(ConfigError) as refused:
        local_weights(scaled, contiguous_placement(6, 2), 0)
    assert str(refused.value) == (
        "weights: expected bfloat16, float16 or float32 for a layer over ranks, got "
        "block-scaled 8-bit floats"
    )


def test_contiguous_placement_is_as_even_as_can_be():
    placement = contiguous_placement(7, 3)
    assert placement.slots_of_rank().tolist() == [3, 2, 2]
    assert placement.expert_of_slot_P.tolist() == list(range(7))
    assert np.all(np.diff(placement.rank_of_slot_P) >= 0)
