"""Timelines of models that serve: two steady layers of each step, and steps of the request loop."""

import pytest

from moesim import load_cluster
from moesim.design.schedule import Schedule
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.model.hf_config import load_model
from moesim.report.chrome_trace import write_trace
from moesim.serving.loop import RequestTraffic
from moesim.serving.loop.watching import FirstSteps
from moesim.serving.whole import serve_model
from moesim.simulation.steps.chain import stretches
from moesim.simulation.steps.simulate import UNEVEN, run_step
from moesim.testing.traces import CheckedTrace
from moesim.timeline.serving import serving_sheet


@pytest.fixture(scope="module", params=[1, 2])
def served(request):
    spec = load_model("qwen3-30b-a3b").spec
    schedule = Schedule(num_micro_batches=request.param)
    design = ServedModel(name="qwen3", spec=spec, layout=Layout.parse("dp4 ep4"), schedule=schedule)
    traffic = RequestTraffic(concurrency=16, isl=256, osl=16, num_requests=64)
    cluster = load_cluster("hgx-h100-8").with_(devices_per_node=4)
    result = serve_model(design, cluster, traffic)
    seen = FirstSteps(after_s=result.loop.window.open_s, most=20)
    again = serve_model(design, cluster, traffic, watch=seen)
    assert again.loop.row() == result.loop.row()  # watching changes nothing
    return result, seen.steps


@pytest.fixture(scope="module")
def trace(served, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "t.json"
    return CheckedTrace(write_trace(path, serving_sheet(served[0], UNEVEN, served[1])))


@pytest.mark.parametrize("name", ["decode", "prompt"])
def test_the_steady_layers_are_those_that_stand_for_the_others(served, trace, name):
    result, _ = served
    pool = result.pools[0]
    step = result.decode if name == "decode" else result.prefill
    ran = run_step(pool.served, pool.cluster, step.step)
    spans = stretches(ran.runs, ran.seconds_at(ran.lowered.marks), ran.timeline.makespan_s)
    steady = spans[2]
    assert steady.weight > 1.0
    path = (f"{name}: critical path", "phases")
    assert trace.span_s(*path) == pytest.approx(steady.end_s - steady.begin_s, rel=1e-3)
    assert sum(trace.seconds(*path).values()) == pytest.approx(trace.span_s(*path), rel=1e-3)
    assert trace.facts[f"{name}_layer_us"] * 2e-6 == pytest.approx(trace.span_s(*path), rel=1e-3)
    # all layers but the first, and what is around them, make the step
    whole = sum((span.end_s - span.begin_s) * span.weight for span in spans)
    assert whole == pytest.approx(step.time_s)
    assert trace.facts[f"{name}_step_us"] * 1e-6 == pytest.approx(step.time_s)


def test_every_rank_computes_and_exchanges(trace):
    for rank in range(4):
        compute = trace.slices[f"decode: rank {rank}", "compute"]
        assert {"attention", "experts", "gate"} <= {one["cat"] for one in compute}
        assert {one["cat"] for one in trace.slices[f"decode: rank {rank}", "receive"]} == {
            "dispatch",
            "combine",
        }
    assert trace.flows


def test_steps_of_the_loop_are_those_that_ran(served, trace):
    _, steps = served
    assert len(steps) == 20
    name = f"requests: {steps[0].server}"
    devices, host = (trace.slices[name, track] for track in ("devices", "host"))
    assert len(devices) == len(host) == 20
    lasted = sum(one["dur"] for one in (*devices, *host)) * 1e-6
    assert lasted == pytest.approx(sum(one.end_s - one.begin_s for one in steps), rel=1e-3)
    running = [value for _, value in trace.counters[name, "running"]]
    assert running[:-1] == [one.running for one in steps]
    assert max(running) <= 16


def test_parts_of_the_file_follow_one_another(trace):
    ends = {}
    for (process, _), track in trace.slices.items():
        part = process.partition(":")[0]
        begin, end = track[0]["ts"], track[-1]["ts"] + track[-1]["dur"]
        low, high = ends.get(part, (begin, end))
        ends[part] = min(low, begin), max(high, end)
    assert ends["decode"][1] < ends["prompt"][0] < ends["prompt"][1] < ends["requests"][0]
