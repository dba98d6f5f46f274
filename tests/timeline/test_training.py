"""Timelines of training steps: what the stages do sums up to what the result says."""

import numpy as np
import pytest

from moesim import load_cluster
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import TrainingPlan
from moesim.hardware.sizing import sized
from moesim.model.hf_config import load_model
from moesim.report.chrome_trace import write_trace
from moesim.simulation.training.simulate import run_pipeline, simulate_training
from moesim.testing.traces import CheckedTrace
from moesim.timeline.training import stage_name, training_sheet

PIPELINES = {
    "1f1b": ("pp2 ep8", {}),
    "interleaved": ("pp2 ep8 vp2", {}),
    "zero_bubble": ("pp2 ep8", {}),
    "dualpipe": ("pp2 ep8", {"recompute": "full"}),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_stages_sum_up_to_the_result(pipeline, tmp_path):
    layout, more = PIPELINES[pipeline]
    cluster = sized(load_cluster("h100-rail-8x8"), 16)
    trained = TrainedModel(
        name="qwen3",
        spec=load_model("qwen3-30b-a3b").spec,
        layout=TrainLayout.parse(layout, 16),
        plan=TrainingPlan(global_batch=64, pipeline=pipeline, **more),
    )
    result = simulate_training(trained, cluster)
    found = CheckedTrace(write_trace(tmp_path / "t.json", training_sheet(result)))
    stages = [found.seconds(stage_name(stage), "phases") for stage in range(2)]
    # one stage is the busiest, whose phases the result gives
    busiest = min(stages, key=lambda one: one["bubble"])
    assert busiest == pytest.approx(result.phase_time_s, rel=1e-3, abs=1e-7)
    assert sum(busiest.values()) == pytest.approx(result.time_s, rel=1e-3)
    track = min(
        (found.slices[stage_name(s), "phases"] for s in range(2)),
        key=lambda one: sum(x["dur"] for x in one if x["cat"] == "bubble"),
    )
    exposed = sum(one["dur"] for one in track if one["args"]["exposed_communication"])
    assert exposed * 1e-6 == pytest.approx(result.exposed_s, rel=1e-3)
    assert found.facts["step_us"] * 1e-6 == pytest.approx(result.time_s)
    # the bubble of the pipeline alone, without what follows the last pass
    ran = run_pipeline(trained, cluster)
    span_s = max(float(ran.timeline.end_s_N[op]) for op in ran.wiring.last)
    slower = found.facts["framework_slowdown"]
    tails = ("reduce_gradients", "optimizer", "gather_parameters")
    passes = [found.seconds(stage_name(stage), "passes") for stage in range(2)]
    busy = [sum(s for name, s in one.items() if name not in tails) for one in passes]
    assert 1.0 - np.mean(busy) / (span_s * slower) == pytest.approx(
        result.bubble_fraction, abs=1e-3
    )
    # every micro-batch goes forward once through every part
    forward = [
        one
        for stage in range(2)
        for one in found.slices[stage_name(stage), "passes"]
        if "forward" in one["cat"]
    ]
    parts = trained.layout.pp * trained.layout.vp
    assert len(forward) == trained.num_micro_batches * parts
    # and the passes of a layer are there on the ranks of its exchange
    assert found.span_s("layer forward: critical path", "phases") == pytest.approx(
        found.facts["layer_forward_us"] * 1e-6, rel=1e-3
    )
    assert ("layer backward: rank 7", "receive") in found.slices
