"""Spaces: one line for what is wrong, and what a point means."""

import pytest

from moesim import Gate, Parallelism, load_preset
from moesim.errors import ConfigError, UnknownNameError
from moesim.model.precision import RECIPES
from moesim.search.choices import parse_parallelism
from moesim.search.space import PARAMETERS, Space

POINT = {
    "num_experts": 64,
    "top_k": 4,
    "expert_intermediate_size": 512,
    "gate": "group_limited:4:2",
    "placement": "eplb",
    "num_replicas": 8,
    "parallelism": "ep4tp2",
    "precision": "fp8",
}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"topk": [2]}, "space: topk: no such key (remove it or check its spelling)"),
        ({"top_k": 2}, "space: top_k: expected a list, got 2"),
        ({"top_k": ["2"]}, "space: top_k[0]: expected an integer, got '2'"),
        (
            {"hidden_size": 4096},
            "space: hidden_size: expected 2048, that of dense_part 'qwen3-30b-a3b', got 4096",
        ),
        ({"num_layers": 0}, "space: num_layers: expected a number >= 1, got 0"),
        (
            {"train_flops": 1e20},
            "space: train_tokens: expected exactly one of train_tokens and train_flops, got both",
        ),
        (
            {"train_tokens": None},
            (
                "space: train_tokens: expected exactly one of train_tokens and train_flops, got "
                "neither"
            ),
        ),
        (
            {"gate": ["tree"]},
            (
                "gate: expected 'flat', 'product_key' or 'KIND:GROUPS:KEPT' such as "
                "'group_limited:8:4', got 'tree'"
            ),
        ),
        (
            {"parallelism": ["pp2"]},
            "parallelism: expected 'epN', 'epNtpM' or 'tpM' such as 'ep4tp2', got 'pp2'",
        ),
        ({"precision": ["int3"]}, f"precision: expected one of {', '.join(RECIPES)}, got 'int3'"),
    ],
)
def test_wrong_spaces(make_space, choices, message):
    with pytest.raises(ConfigError) as caught:
        make_space(**choices)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_list_needs_an_entry(make_space, name):
    with pytest.raises(ConfigError) as caught:
        make_space(**{name: []})
    assert str(caught.value).startswith(f"space: {name}: expected ")
    assert str(caught.value).endswith(", got []")
    assert "should" not in str(caught.value), "the validation library's own sentence"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"dense_part": "qwen3-30"},
            "unknown preset 'qwen3-30': did you mean qwen3-30b-a3b or qwen3-235b-a22b?",
        ),
        ({"placement": ["contiguous", "eplbb"]}, "unknown placement 'eplbb': did you mean eplb?"),
    ],
)
def test_unknown_names(make_space, choices, message):
    with pytest.raises(UnknownNameError) as caught:
        make_space(**choices)
    assert str(caught.value) == message


def test_decode(make_space, hgx):
    candidate, cluster = make_space(num_shared_experts=1).decode(POINT, hgx)
    assert cluster is hgx
    layer = candidate.layer
    assert (layer.num_experts, layer.top_k, layer.expert_intermediate_size, layer.hidden_size) == (
        64,
        4,
        512,
        2048,
    )
    assert (layer.gate, layer.num_shared_experts, layer.precision.name) == (
        Gate.parse("group_limited:4:2"),
        1,
        "fp8",
    )
    assert candidate.parallelism == Parallelism(ep=4, tp=2)
    assert (candidate.placement, candidate.num_replicas) == ("eplb", 8)
    assert candidate.dense_part.num_layers == candidate.dense_part.num_moe_layers == 24


def test_only_eplb_places_replicas(make_space, hgx):
    assert make_space().decode(POINT | {"placement": "contiguous"}, hgx)[0].num_replicas == 0


def test_points_that_do_not_go_together_say_why(make_space, hgx):
    with pytest.raises(
        ConfigError, match=r"^layer.top_k: expected at most num_experts = 8, got 16$"
    ):
        make_space().decode(POINT | {"num_experts": 8, "top_k": 16}, hgx)


def test_dense_part_is_the_preset_s_with_all_layers_sparse(make_space):
    preset = load_preset("qwen3-30b-a3b").dense_part
    assert make_space(num_layers=None).dense() == preset
    dense = make_space(num_layers=5).dense()
    assert (dense.num_layers, dense.num_moe_layers, dense.vocab_size) == (5, 5, preset.vocab_size)


def test_choices_come_in_a_fixed_order(make_space):
    assert tuple(make_space().choices()) == PARAMETERS
    assert make_space().choices()["top_k"] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("text", "spread"), [("ep8", (8, 1)), ("ep4tp2", (4, 2)), ("ep1tp1", (1, 1)), ("tp2", (4, 2))]
)
def test_parallelism(text, spread):
    found = parse_parallelism(text, 8)
    assert (found.ep, found.tp) == spread


@pytest.mark.parametrize("text", ["", "ep", "8", "ep8tp", "tp2ep4", "ep8 ", "ep-1", "ep0"])
def test_wrong_parallelism(text):
    with pytest.raises(ConfigError, match=r"^parallelism"):
        parse_parallelism(text)


def test_widths_of_all_experts_are_choices(make_space, hgx):
    """A storage holds numbers and text, so a list becomes text; both decode to a width for each
    expert.
    """
    space = make_space(
        expert_intermediate_size=[512, [256] * 32 + [1024] * 32, "60x512+2x0+2x0"],
        gate=["flat", "product_key"],
    )
    choices = space.choices()["expert_intermediate_size"]
    assert choices == [512, "32x256+32x1024", "60x512+4x0"]
    layers = [
        space.decode(POINT | {"gate": "product_key", "expert_intermediate_size": c}, hgx)[0].layer
        for c in choices
    ]
    assert layers[0].expert_intermediate_size == 512
    assert layers[1].expert_intermediate_size == (256,) * 32 + (1024,) * 32
    assert layers[2].num_left == 60
    with pytest.raises(
        ConfigError, match="expected one width, or one for each of 8 experts, got 64"
    ):
        space.decode(
            POINT | {"gate": "flat", "num_experts": 8, "expert_intermediate_size": choices[1]}, hgx
        )


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (1.5, "expected an integer, a list of them or text such as '64x256+64x1024', got 1.5"),
        (True, "expected an integer, a list of them or text such as '64x256+64x1024', got True"),
        ([1, -2], "layer.expert_intermediate_size[1]: expected an integer >= 0, got -2"),
        (
            "4",
            (
                "expert_intermediate_size: expected a width or 'EXPERTSxWIDTH+EXPERTSxWIDTH' "
                "such as '64x256+64x1024', got '4'"
            ),
        ),
    ],
)
def test_wrong_widths(make_space, width, message):
    with pytest.raises(ConfigError) as caught:
        make_space(expert_intermediate_size=[512, width])
    assert str(caught.value) == f"space: expert_intermediate_size[1]: {message}"


def test_exchange_micro_batches_and_capacity_vary_where_they_have_choices(hgx):
    space = Space(
        dense_part="qwen3-30b-a3b",
        train_tokens=1e12,
        hidden_size=2048,
        num_experts=[16],
        top_k=[2],
        expert_intermediate_size=[512],
        exchange=["cluster", "deepep_normal"],
        num_micro_batches=[1, 2],
        capacity_factor=[0.0, 1.25],
        overflow=["drop"],
    )
    assert list(space.choices())[-3:] == ["exchange", "num_micro_batches", "capacity_factor"]
    point = {name: choices[-1] for name, choices in space.choices().items()}
    candidate, _ = space.decode(point, hgx)
    assert (candidate.schedule.exchange, candidate.schedule.num_micro_batches) == (
        "deepep_normal",
        2,
    )
    assert candidate.layer.capacity_factor == 1.25
    plain, _ = space.decode({name: choices[0] for name, choices in space.choices().items()}, hgx)
    assert (plain.schedule.exchange, plain.layer.capacity_factor) == (None, None)


def test_an_unknown_exchange_is_refused_with_the_space():
    with pytest.raises(UnknownNameError, match="unknown exchange 'deepep'"):
        Space(
            dense_part="qwen3-30b-a3b",
            train_tokens=1e12,
            hidden_size=2048,
            num_experts=[16],
            top_k=[2],
            expert_intermediate_size=[512],
            exchange=["deepep"],
        )


@pytest.mark.parametrize(
    ("written", "numbers"),
    [
        ({"low": 8, "high": 64, "factor": 2}, [8, 16, 32, 64]),
        ({"low": 1, "high": 8, "step": 3}, [1, 4, 7]),
        ({"low": 4, "high": 4, "step": 1}, [4]),
        ({"low": 10, "high": 40, "factor": 1.5}, [10, 15, 22, 34]),
    ],
)
def test_ranges(make_space, written, numbers):
    assert make_space(num_experts=written).num_experts == numbers


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"low": 8, "high": 4, "step": 1}, "expected low <= high"),
        ({"low": 8, "high": 9, "step": 0}, "a step > 0"),
        ({"low": 8, "high": 9, "factor": 1}, "a factor > 1"),
        ({"low": 8}, "low, high and one of step and factor, got low"),
        ({"low": "8", "high": 9, "step": 1}, "expected numbers"),
        ({"low": 1, "high": 1e9, "step": 1}, "at most 4096"),
        ([8, 8], "expected each choice once, got 8 twice"),
    ],
)
def test_wrong_ranges(make_space, written, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_space(num_experts=written)
    assert str(caught.value).startswith("space: num_experts: ")


def test_groups_vary_where_the_gate_has_them(make_space, hgx):
    space = make_space(
        gate=["flat", "two_level", "group_limited:4:2"],
        num_expert_groups=[4, 8],
        num_limited_groups=[2, 4],
    )
    assert list(space.choices())[-2:] == ["num_expert_groups", "num_limited_groups"]
    point = POINT | {
        "gate": "two_level",
        "num_expert_groups": 8,
        "num_limited_groups": 2,
        "parallelism": "tp1",
    }
    assert str(space.decode(point, hgx)[0].layer.gate) == "two_level:8:2"
    assert space.applicable(point) == point
    flat = space.applicable(point | {"gate": "flat"})
    assert set(point) - set(flat) == {"num_expert_groups", "num_limited_groups"}
    assert str(space.decode(flat, hgx)[0].layer.gate) == "flat"
    with pytest.raises(
        ConfigError, match="num_expert_groups: expected choices for the gate 'two_level'"
    ):
        make_space(gate=["two_level"])


def test_tp_follows_the_devices_of_the_cluster(make_space, hgx):
    space = make_space(parallelism=["tp2"], hardware={"devices_per_node": [8, 16]})
    for devices, ranks in ((8, 4), (16, 8)):
        candidate, cluster = space.decode(
            POINT | {"parallelism": "tp2", "devices_per_node": devices}, hgx
        )
        assert (candidate.parallelism.ep, cluster.num_devices) == (ranks, devices)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"num_experts": [8], "top_k": [16]},
            "layer.top_k: expected at most num_experts = 8, got 16",
        ),
        ({"parallelism": ["ep4"]}, "expected the 8 devices of hgx-h100-8, got 4"),
        (
            {"num_experts": [12]},
            "expected experts [+] replicas divisible by the 8 expert-parallel ranks, got 12 [+] 0",
        ),
        ({"hardware": {"hbm": [1.0]}}, "cluster.with_: expected one of .*, got 'hbm'"),
    ],
)
def test_a_space_without_a_candidate_is_refused(study, make_space, tmp_path, choices, message):
    with pytest.raises(
        ConfigError, match=f"^space: expected at least one point that is a candidate .*{message}"
    ):
        study(tmp_path, space=make_space(gate=["flat"], num_replicas=[0], **choices))


def test_hardware_is_not_a_second_name_for_a_choice(make_space):
    with pytest.raises(
        ConfigError, match=r"hardware\.exchange: expected .*, exchange is a choice of its own"
    ):
        make_space(hardware={"exchange": ["nccl"]})


def test_a_law_of_ones_own(study, make_space, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        study(tmp_path, space=make_space(quality="/nowhere/points.csv"))


def test_kernels_are_a_dimension(study, make_space, tmp_path):
    """Of libraries by name; rows say which was asked for and which ran."""
    space = make_space(kernels=["auto", "sglang-triton", "auto:vllm"])
    assert space.choices()["kernels"] == ["auto", "sglang-triton", "auto:vllm"]
    found = study(tmp_path, space=space, num_trials=40)
    rows = [t.row() for t in found.trials if t.feasible]
    assert {row["kernels_asked"] for row in rows} == {"auto", "sglang-triton", "auto:vllm"}
    for row in rows:
        assert row["kernels"] == "sglang-triton" or row["kernels_asked"] != "sglang-triton"
        assert row["grade"] in "ABCD"
    with pytest.raises(ConfigError, match="unknown kernel library 'marlim': did you mean marlin"):
        make_space(kernels=["marlim"])
