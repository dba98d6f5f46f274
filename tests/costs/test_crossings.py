"""What a price crosses, what that adds to its interval, and its grade."""

from math import exp, hypot, log

import pytest

from moesim import load_profile
from moesim.costs.calibration import load_calibration
from moesim.costs.cells import Cell, Costs, CrossingFile, crossings
from moesim.costs.crossings import Target, basis_of, crossed_between, same_generation
from moesim.costs.grades import Grade, grade_of, worst

COSTS = {
    "device": 0.1,
    "generation": 0.2,
    "few_shot": 0.05,
    "format": 0.4,
    "ep1": 0.06,
    "epn": 0.15,
    "version": 0.17,
    "shape": 0.18,
}
KNOWN = CrossingFile(
    title="t",
    command="c",
    fitted_on="f",
    generation_known_in=["bfloat16-ep1"],
    costs=Costs(**COSTS),
    groups={},
)


def cell(**changes):
    return Cell(
        **{
            "device": "h100-sxm",
            "generation": 90,
            "version": "sglang/0.5.14",
            "format": "bfloat16",
            "ep": "ep1",
            "low": 0.9,
            "high": 1.2,
            "kind": "cross-validated by shape",
            "rows": 100,
        }
        | changes
    )


def target(**changes):
    return Target(
        **{"device": "h100-sxm", "generation": 90, "format": "bfloat16", "ep": "ep1"} | changes
    )


@pytest.mark.parametrize(
    ("changes", "crossed"),
    [
        ({}, ()),
        ({"version": "sglang/0.5.14"}, ()),
        ({"version": "sglang/0.5.10"}, ("version",)),
        ({"device": "h200-sxm"}, ("device",)),
        ({"changed": True}, ("device",)),
        ({"ep": "epn"}, ("epn",)),
        ({"format": "fp8_block"}, ("format",)),
        ({"device": "b200-sxm", "generation": 100}, ("generation",)),
        ({"device": "l40s", "generation": 89, "few_shot": 0.0}, ("few_shot",)),
        ({"device": "l40s", "generation": 89, "few_shot": 0.0, "ep": "epn"}, ("few_shot", "epn")),
        ({"format": "fp8_block", "ep": "epn", "device": "h200-sxm"}, ("device", "format", "epn")),
    ],
)
def test_what_is_crossed(changes, crossed):
    assert crossed_between(cell(), target(**changes), KNOWN.generation_known_in) == crossed


def test_beyond_a_generation_what_no_generation_saw_is_crossed_as_well():
    away = {"device": "b200-sxm", "generation": 100}
    own = cell(format="fp8_block", ep="epn")
    there = target(format="fp8_block", ep="epn", **away)
    found = crossed_between(own, there, KNOWN.generation_known_in)
    assert found == ("generation", "format", "epn")
    # within a generation a format is what it was
    near = target(format="fp8_block", ep="epn", device="h200-sxm")
    assert crossed_between(own, near, KNOWN.generation_known_in) == ("device",)


def test_crossings_add_in_quadrature_around_the_middle():
    found = basis_of([cell()], target(device="h200-sxm", ep="epn"), KNOWN)
    half, middle = log(1.2 / 0.9) / 2, log(1.2 * 0.9) / 2
    wide = hypot(half, 0.1, 0.15)
    assert (found.low, found.high) == pytest.approx((exp(middle - wide), exp(middle + wide)))
    same = basis_of([cell()], target(), KNOWN)
    assert (same.low, same.high) == pytest.approx((0.9, 1.2))


def test_the_cell_that_is_crossed_least_counts():
    cells = [cell(), cell(ep="epn", rows=50), cell(device="a100-sxm", generation=80)]
    assert basis_of(cells, target(ep="epn"), KNOWN).cell is cells[1]
    assert basis_of(cells, target(device="a100-sxm", generation=80), KNOWN).cell is cells[2]
    # EP > 1 of the A100: its own EP = 1 is nearer than another generation's EP > 1
    found = basis_of(cells, target(device="a100-sxm", generation=80, ep="epn"), KNOWN)
    assert (found.cell, found.crossed) == (cells[2], ("epn",))
    assert basis_of([cell(rows=5), cell(rows=7)], target(), KNOWN).cell.rows == 7


def test_ten_rows_that_disagree_widen():
    def half(spread, device="h200-sxm", generation=90):
        asked = target(device=device, generation=generation, few_shot=spread)
        found = basis_of([cell()], asked, KNOWN)
        return log(found.high / found.low) / 2

    assert half(0.0) == pytest.approx(hypot(log(1.2 / 0.9) / 2, 0.05))
    assert half(0.3) == pytest.approx(hypot(log(1.2 / 0.9) / 2, 0.3))
    # of another generation they correct the mean error, and the interval stays as wide
    without = basis_of([cell()], target(device="l40s", generation=89), KNOWN)
    assert half(0.0, "l40s", 89) == pytest.approx(log(without.high / without.low) / 2)
    assert half(0.9, "l40s", 89) == pytest.approx(hypot(log(1.2 / 0.9) / 2, 0.9))


def test_one_shape_is_crossed_by_every_other():
    assert crossed_between(cell(kind="one shape"), target(), ()) == ("shape",)


def test_generations_are_families_of_compute_capabilities():
    assert same_generation(100, 103)
    assert not same_generation(80, 89)
    assert not same_generation(100, 120)
    assert same_generation(90, 90)


@pytest.mark.parametrize("name", ["triton-moe", "triton-moe-vllm"])
def test_every_crossing_widens_a_shipped_interval(name):
    def width(device, fmt, ep, version=""):
        low, high = load_calibration(name, load_profile(device)).interval(f"{fmt}-{ep}", version)
        return high / low

    fitted = width("h100", "bfloat16", "ep1")
    assert width("h100", "bfloat16", "ep1", "sglang/0.1") > fitted
    assert width("h200", "bfloat16", "ep1") > fitted
    assert width("b300", "bfloat16", "ep1") > width("h200", "bfloat16", "ep1")
    assert width("b300", "fp8_block", "epn") > width("b300", "bfloat16", "epn")
    assert width("b300", "bfloat16", "epn") > width("b300", "bfloat16", "ep1")
    # never scored anywhere, and no wider than a factor of three either way
    assert fitted < width("h100", "int4", "ep1") < 9
    assert width("b300", "int4", "epn") >= width("h100", "int4", "epn")


@pytest.mark.parametrize(
    ("device", "fmt", "ep", "letter", "words"),
    [
        ("h100", "bfloat16", 1, "A", "rows of h100-sxm bfloat16"),
        ("h100", "fp8_block", 8, "A", "rows of h100-sxm fp8_block"),
        ("a100", "bfloat16", 1, "A", "rows of a100-sxm bfloat16"),
        ("a100", "bfloat16", 8, "C", "rows of a100-sxm bfloat16, EP crossed"),
        ("h200", "bfloat16", 8, "B", "h100-sxm bfloat16, another device of the generation"),
        ("b200", "bfloat16", 1, "B", "ten rows of this device"),
        ("b200", "fp8_block", 8, "C", "ten rows of this device, format crossed, EP crossed"),
        ("gb200", "bfloat16", 1, "C", "generation crossed"),
        ("h100", "int4", 1, "C", "format crossed"),
        ("tpu-v5p", "bfloat16", 1, "D", "assumed: no measured rows"),
    ],
)
def test_grades(device, fmt, ep, letter, words):
    profile = load_profile(device)
    name = "triton-moe" if profile.execution == "waves" else profile.calibration
    found = grade_of(load_calibration(name, profile), fmt, ep)
    assert found.letter == letter
    assert found.rests_on.endswith(words)
    assert found.low < 1 < found.high


def test_the_worst_grade_counts():
    grades = [
        Grade(letter=letter, rests_on=letter, low=0.9, high=high)
        for letter, high in (("A", 1.1), ("C", 1.2), ("C", 1.4), ("B", 1.5))
    ]
    assert worst(grades) is grades[2]


def test_shipped_costs_are_plausible():
    costs = crossings().costs
    assert 0 < costs.device < costs.generation
    assert costs.few_shot < costs.generation
    assert max(costs.model_dump().values()) < 0.7
