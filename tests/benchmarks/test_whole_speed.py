"""How long a step of a whole model and a run of requests take to simulate. Nothing is asserted of
time.

Targets on one core: a decode step of DeepSeek-V3 on 64 devices 100 ms, 1,000 requests 5 s, a
training step of 61 layers on 256 devices .5 s.
"""

import pytest

from moesim import load_cluster
from moesim.design.schedule import Schedule
from moesim.design.served import ServedModel
from moesim.design.step import Layout, Step
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import TrainingPlan
from moesim.hardware.sizing import sized
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.serving.loop import RequestTraffic
from moesim.serving.whole import serve_model
from moesim.simulation.steps.simulate import simulate_step
from moesim.simulation.training.simulate import simulate_training


def served(name, layout, **options):
    model = load_model(name)
    return ServedModel(name=name, spec=model.spec, layout=Layout.parse(layout), **options)


@pytest.mark.parametrize("parts", [1, 2])
def test_decode_step_of_61_layers_on_64_devices(benchmark, parts):
    design = served(
        "deepseek-v3",
        "dp64 ep64",
        precision=Precision.named("fp8"),
        dense_format="fp8_block",
        placement="eplb",
        num_replicas=64,
        schedule=Schedule(exchange="deepep_ll", num_micro_batches=parts),
    )
    cluster, step = load_cluster("h100-rail-8x8"), Step(sequences=128, context=4096)
    benchmark.pedantic(
        lambda: simulate_step(design, cluster, step), rounds=5, iterations=1, warmup_rounds=1
    )


@pytest.mark.parametrize(("name", "layout"), [("gpt-oss-120b", "tp2"), ("deepseek-v3", "dp8 ep8")])
def test_a_thousand_requests(benchmark, name, layout):
    """Without any table of steps before."""
    design = served(name, layout, precision=Precision.named("fp8"))
    traffic = RequestTraffic(
        concurrency=64, isl="uniform:512-1024", osl="uniform:512-1024", num_requests=1000
    )
    cluster = load_cluster("hgx-h200-8")
    benchmark.pedantic(
        lambda: serve_model(design, cluster, traffic), rounds=3, iterations=1, warmup_rounds=0
    )


@pytest.mark.parametrize("pipeline", ["1f1b", "zero_bubble", "dualpipe"])
def test_training_step_of_61_layers_on_256_devices(benchmark, pipeline):
    model, cluster = load_model("deepseek-v3"), sized(load_cluster("h100-rail-8x8"), 256)
    design = TrainedModel(
        name=model.name,
        spec=model.spec,
        layout=TrainLayout.parse("pp16 ep16", 256),
        plan=TrainingPlan(
            global_batch=1024, pipeline=pipeline, recompute="full", gradient_format="bfloat16"
        ),
        precision=Precision.named("fp8"),
        dense_format="fp8_block",
        uneven_stages=True,
    )
    benchmark.pedantic(
        lambda: simulate_training(design, cluster), rounds=5, iterations=1, warmup_rounds=1
    )
