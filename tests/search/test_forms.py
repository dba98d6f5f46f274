"""Spaces whose experts may be compressed, pruned or offloaded."""

import numpy as np
import pytest

from moesim import Workload, load_preset, simulate
from moesim.errors import ConfigError
from moesim.model.compression import Compression
from moesim.quality import estimate_loss
from moesim.search import Space
from moesim.search.evaluate import Problem
from moesim.search.points import distinct_points, num_designs
from moesim.search.screen import screen_chunk
from moesim.simulation.screening import bounds_of

SIZES = {
    "dense_part": "qwen3-30b-a3b",
    "hidden_size": 2048,
    "train_tokens": 1e12,
    "num_experts": [64],
    "top_k": [4],
    "expert_intermediate_size": [768],
}
FORMS = {
    "pruned_fraction": [0.0, 0.25],
    "cold_fraction": [0.0, 0.5, 1.0],
    "cold_format": ["int4", "float8_e4m3"],
    "cold_rank_fraction": [0.0, 0.25],
    "resident_fraction": [1.0, 0.5],
    "prefetch_recall": [0.0, 0.9],
}
WORK = Workload(num_tokens_per_device=32, routing="zipf:0.8")


@pytest.fixture(scope="module")
def problem(hgx):
    return Problem(
        space=Space(**SIZES, **FORMS),
        cluster=hgx,
        workload=WORK,
        objectives=["loss", "layer_time_us", "peak_memory_gib"],
    )


def test_what_does_not_apply_is_no_design_of_its_own(problem):
    space = problem.space
    points = [point for _, point in distinct_points(space)]
    # pruned x (hot | two shares x two formats x two ranks) x (resident | two recalls)
    assert len(points) == num_designs(space) == 2 * (1 + 2 * 2 * 2) * 3
    designs = {space.decode(point, problem.cluster)[0].key for point in points}
    assert len(designs) == len(points)


def test_every_form_moves_its_objectives(problem):
    def row(**choices):
        found = problem.evaluate({"cold_format": "int4"} | choices)
        assert not found.reason
        return found.row

    plain = row()
    cold, rank = row(cold_fraction=1.0), row(cold_fraction=0.5, cold_rank_fraction=0.25)
    pruned, offloaded = row(pruned_fraction=0.25), row(resident_fraction=0.5)
    for one in (cold, rank, pruned, offloaded):
        assert one["peak_memory_gib"] < plain["peak_memory_gib"]
    for one in (cold, rank, pruned):
        assert one["loss"] > plain["loss"]
        assert one["loss_high"] > one["loss"] > one["loss_low"]
    assert offloaded["loss"] == plain["loss"]
    assert offloaded["layer_time_us"] > plain["layer_time_us"]
    ahead = row(resident_fraction=0.5, prefetch_recall=0.9)
    assert ahead["fetch_us"] < offloaded["fetch_us"]
    assert ahead["expert_hit_fraction"] > offloaded["expert_hit_fraction"]
    assert "low-rank experts" in rank["loss_outside"]
    assert offloaded["resident_fraction"] == 0.5


def test_screening_bounds_what_simulations_take(problem):
    points = [point for _, point in distinct_points(problem.space)][::7]
    designs = [problem.space.decode(point, problem.cluster)[0] for point in points]
    bounds = bounds_of(designs, problem.cluster, WORK)
    assert bounds.reasons == {}
    for i, design in enumerate(designs):
        alone = simulate(design, problem.cluster, WORK, engine="bound", must_fit=False)
        assert bounds.layer_time_s_N[i] == pytest.approx(alone.layer_time_s, rel=1e-12)
        assert bounds.memory_bytes_N[i] == pytest.approx(alone.peak_memory_bytes, rel=1e-12)
    numbers = [number for number, _ in distinct_points(problem.space)][::7]
    losses = screen_chunk(problem, np.array(numbers))[1][:, 0]
    assert losses == pytest.approx([problem.evaluate(p).row["loss"] for p in points])


def test_a_trained_format_and_a_cold_one_of_all_experts_cost_the_same_loss():
    preset = load_preset("qwen3-30b-a3b")
    layer, budget = preset.layer, {"train_tokens": 1e12}
    whole = Compression(cold_fraction=1.0, cold_format="int4")
    halves = Compression(cold_fraction=0.5, cold_format="int4")
    found = [
        estimate_loss(layer, preset.dense_part, compression=form, **budget)
        for form in (None, halves, whole)
    ]
    assert found[0].loss < found[1].loss < found[2].loss
    assert found[2].loss - found[0].loss == pytest.approx(0.04)
    assert any("cold experts" in text for text in found[1].outside)


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"cold_format": ["int3"], "cold_fraction": [0.5]}, "compression.cold_format"),
        ({"resident_fraction": [2.0]}, "offload.resident_fraction"),
        ({"pruned_fraction": [1.0]}, "compression.pruned_fraction"),
        ({"prefetch_recall": []}, "prefetch_recall"),
        ({"cold_fraction": [0.5, 0.5]}, "cold_fraction"),
    ],
)
def test_bad_choices_are_one_line(choices, text):
    with pytest.raises(ConfigError, match=text) as error:
        Space(**SIZES, **choices)
    assert "\n" not in str(error.value)
