"""Maps for serving engines: what they look like, that they come back, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ConfigError
from moesim.placement import Placement, place
from moesim.placement.files import FORMATS, map_text, read_map, write_map


def layers_of(seed, ranks, per_rank, extra, count=3):
    rng = np.random.default_rng(seed)
    return [
        place("eplb", rng.integers(1, 100, ranks * per_rank), ranks, ranks * extra)
        for _ in range(count)
    ]


@pytest.mark.parametrize("layout", FORMATS)
@given(
    seed=st.integers(0, 2**16),
    ranks=st.integers(1, 8),
    per_rank=st.integers(1, 5),
    extra=st.integers(0, 2),
)
def test_round_trip(tmp_path_factory, layout, seed, ranks, per_rank, extra):
    layers = layers_of(seed, ranks, per_rank, extra)
    path = write_map(tmp_path_factory.mktemp("map") / "map.json", layers, layout)
    back = read_map(path, ranks, ranks * per_rank)
    assert [p.expert_of_slot_P.tolist() for p in back] == [
        p.expert_of_slot_P.tolist() for p in layers
    ]
    assert [p.rank_of_slot_P.tolist() for p in back] == [p.rank_of_slot_P.tolist() for p in layers]


def test_layouts_by_hand():
    placement = Placement(
        rank_of_slot_P=np.array([0, 0, 1, 1]),
        expert_of_slot_P=np.array([2, 0, 1, 2]),
        num_ranks=2,
        num_experts=3,
    )
    # SGLang unpacks the object into keyword arguments: another key would be an error
    assert json.loads(map_text([placement], "sglang", num_dense_layers=1)) == {
        "physical_to_logical_map": [[0, 1, 2, 0], [2, 0, 1, 2]]
    }
    assert json.loads(map_text([placement] * 2, "vllm")) == [[2, 0, 1, 2]] * 2
    assert json.loads(map_text([placement], "vllm_ascend")) == {
        "moe_layer_count": 1,
        "layer_list": [
            {
                "layer_id": 0,
                "device_count": 2,
                "device_list": [
                    {"device_id": 0, "device_expert": [2, 0]},
                    {"device_id": 1, "device_expert": [1, 2]},
                ],
            }
        ],
    }


def test_one_map_for_all_layers(tmp_path):
    (tmp_path / "map.json").write_text("[0, 1, 2, 3, 0, 1]")
    found = read_map(tmp_path / "map.json", 2)
    assert [p.expert_of_slot_P.tolist() for p in found] == [[0, 1, 2, 3, 0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        (
            "{}",
            "expected physical_to_logical_map, a list of lists of expert numbers, or layer_list",
        ),
        ("[[0, 1.5]]", "expected physical_to_logical_map"),
        ("[[0, 1, 2]]", "layer 0: expected slots divisible by 2 ranks, got 3"),
        (
            "[[0, 1], [0, 0]]",
            "layer 1: placement: expected every expert in a slot, expert 1 has none",
        ),
        (
            "[[0, 1], [0, -1]]",
            "layer 1: placement: expected experts below 2, got -1",
        ),
        ("[[0, 1, 2, -1]]", "layer 0: placement: expected experts below 3, got -1"),
        (
            '{"layer_list": [{"device_list": [{"device_expert": [0]}]}]}',
            "layer 0: expected 2 devices, got 1",
        ),
        (
            '{"layer_list": [{}]}',
            "expected layer_list\\[\\].device_list\\[\\].device_expert, missing 'device_list'",
        ),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_map(path, 2)


def test_unequal_ranks_and_layers_that_differ():
    uneven = Placement(
        rank_of_slot_P=np.array([0, 1, 1]),
        expert_of_slot_P=np.arange(3),
        num_ranks=2,
        num_experts=3,
    )
    with pytest.raises(
        ConfigError, match="engines load equally many slots on every rank, got 1 to 2"
    ):
        map_text([uneven], "vllm")
    with pytest.raises(
        ConfigError, match="expected layers of the same ranks, slots and experts, got 2 kinds"
    ):
        map_text([*layers_of(0, 2, 2, 0, 1), *layers_of(0, 2, 2, 1, 1)], "vllm")
    with pytest.raises(ConfigError, match="cannot read this file"):
        read_map(Path("no/such/file.json"), 2)
