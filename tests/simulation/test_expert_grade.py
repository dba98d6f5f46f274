"""The grade of a simulated design's experts."""

import pytest

from moesim import load_profile
from moesim.costs.libraries import running
from moesim.hardware import single_device
from moesim.model import Precision
from moesim.simulation.trust import expert_grade, intervals_of


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
    grade = expert_grade(candidate, cluster)
    assert grade.letter == letter
    intervals, _ = intervals_of(candidate, cluster)
    assert intervals["experts"] == (grade.low, grade.high)


def test_own_kernels_have_their_own_grade(make_candidate):
    cluster = running(single_device(load_profile("h100")))
    grade = expert_grade(make_candidate(ep=1), cluster)
    assert (grade.letter, "1,383 rows of h100-sxm bfloat16" in grade.rests_on) == ("A", True)


def test_a_device_with_other_figures_is_another_device(make_candidate):
    faster = single_device(load_profile("h100")).with_(hbm_gb_per_s="1.2x")
    assert expert_grade(make_candidate(ep=1), faster).letter == "B"
