"""The grade of a simulated design's experts."""

import pytest

from moesim import load_cluster, load_profile
from moesim.costs.libraries import running
from moesim.hardware import single_device
from moesim.model import Precision
from moesim.simulation.trust import trust_of


@pytest.mark.parametrize(
    ("device", "sizes", "letter"),
    [
        ("h100", {"ep": 1}, "A"),
        ("h100", {"ep": 1, "precision": Precision.named("fp8")}, "A"),
        ("h100", {"ep": 1, "precision": Precision.named("int4")}, "C"),
        ("h200", {"ep": 1}, "B"),
        ("gb200", {"ep": 1}, "C"),
        ("h100", {"ep": 1, "expert_intermediate_size": (512,) * 8 + (256,) * 8}, "D"),
        ("tpu-v5p", {"ep": 1}, "D"),
    ],
)
def test_grade_of_a_design(make_candidate, device, sizes, letter):
    cluster = single_device(load_profile(device))
    candidate = make_candidate(**sizes)
    grade = trust_of(candidate, cluster)[0]["experts"]
    assert grade.letter == letter
    assert grade.low < 1 < grade.high


def test_own_kernels_have_their_own_grade(make_candidate):
    cluster = running(single_device(load_profile("h100")))
    grade = trust_of(make_candidate(ep=1), cluster, "moesim-triton")[0]["experts"]
    assert (grade.letter, "1,383 rows of h100-sxm bfloat16" in grade.rests_on) == ("A", True)


def test_a_device_with_other_figures_is_another_device(make_candidate):
    faster = single_device(load_profile("h100")).with_(hbm_gb_per_s="1.2x")
    assert trust_of(make_candidate(ep=1), faster)[0]["experts"].letter == "B"


def test_several_kinds_of_device_have_the_worst_grade_and_all_intervals(make_candidate):
    mixed = load_cluster("mixed-h100-b200")
    candidate = make_candidate(ep=mixed.num_devices, num_experts=mixed.num_devices)
    both = trust_of(candidate, mixed)[0]["experts"]
    each = [
        trust_of(candidate, single_device(profile))[0]["experts"] for profile, _ in mixed.groups
    ]
    assert both.letter == max(grade.letter for grade in each)
    assert both.low == min(grade.low for grade in each)
    assert both.high == max(grade.high for grade in each)
