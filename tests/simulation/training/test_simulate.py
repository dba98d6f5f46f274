"""A training step of a small model on a node or two, and of DeepSeek-V3 on 256 devices."""

from dataclasses import replace

import pytest

from moesim import load_cluster
from moesim.costs.training.passes import mixing_flops
from moesim.design.step import ExpertLoad
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import TrainingPlan
from moesim.errors import CapacityError, ConfigError
from moesim.hardware.economics import load_economics
from moesim.hardware.sizing import sized
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.simulation.training.kinds import PassTimer
from moesim.simulation.training.simulate import simulate_training
from moesim.testing.models import DENSE, FULL, SPARSE, spec_of

SPEC = spec_of(DENSE, *[SPARSE] * 7)
NODE = load_cluster("hgx-h100-8")


def trained(layout="ep8", devices=8, plan=None, **options):
    return TrainedModel(
        name="small",
        spec=SPEC,
        layout=TrainLayout.parse(layout, devices),
        plan=TrainingPlan(**{"global_batch": 64, "sequence": 2048} | (plan or {})),
        **options,
    )


def simulated(layout="ep8", plan=None, cluster=NODE, **options):
    return simulate_training(trained(layout, cluster.num_devices, plan, **options), cluster)


@pytest.fixture(scope="module")
def plain():
    return simulated()


def products_per_token():
    """FLOPs of the forward's matrix products of a token, attention's own left out."""
    embedding = SPEC.vocab_size * SPEC.hidden_size
    return 2.0 * (SPEC.active_params - embedding)


def attention_per_token(length=2048):
    return 8 * mixing_flops(FULL, 1, length) / length


@pytest.mark.parametrize("layout", ["ep8", "tp2 ep4", "tp2 pp2 ep2", "cp2 ep4", "ep4 etp2"])
def test_flops_are_three_times_the_forward(layout):
    """Products forward, backward through activations and through weights; the backward of attention
    has 2.5 times its FLOPs. No layout makes more or less of them.
    """
    result = simulated(layout, {"sequence": 2048})
    tokens = result.trained.plan.tokens / 8
    useful = 3 * (products_per_token() + attention_per_token()) * tokens
    assert result.useful_flops_per_device == pytest.approx(useful, rel=0.01)
    done = (3 * products_per_token() + 3.5 * attention_per_token()) * tokens
    assert result.done_flops_per_device == pytest.approx(done, rel=0.01)


def test_full_recomputation_does_the_layers_again(plain):
    full = simulated(plan={"recompute": "full"})
    head = 2.0 * SPEC.vocab_size * SPEC.hidden_size
    again = (products_per_token() - head + attention_per_token()) * plain.trained.plan.tokens / 8
    assert full.done_flops_per_device - plain.done_flops_per_device == pytest.approx(again, 0.01)
    assert full.time_s > plain.time_s
    assert full.memory.activations_bytes < 0.2 * plain.memory.activations_bytes
    some = simulated(plan={"recompute": "selective"})
    assert plain.time_s < some.time_s < full.time_s
    assert some.done_flops_per_device == plain.done_flops_per_device


@pytest.mark.parametrize(
    ("layout", "plan"),
    [
        ("ep8", {}),
        ("pp2 ep4", {"zero": 0}),
        ("pp2 ep4 vp2", {"pipeline": "interleaved"}),
        ("pp2 ep4 vp2", {"pipeline": "interleaved", "overlap_exchange": True}),
        ("pp4 ep2", {"pipeline": "zero_bubble"}),
        ("pp4 ep2", {"pipeline": "dualpipe"}),
        ("ep8", {"zero": 2}),
        ("ep8", {"zero": 3, "shard_group": 4, "optimizer": "muon"}),
        ("cp2 ep4", {"overlap_reduce": False}),
    ],
)
def test_phases_make_up_the_step(layout, plan):
    result = simulated(layout, plan)
    assert sum(result.phase_time_s.values()) == pytest.approx(result.time_s)
    assert min(result.phase_time_s.values()) >= 0
    assert 0 <= result.bubble_fraction < 0.5
    assert 0 < result.mfu <= result.hfu < 1
    assert result.low_s < result.time_s < result.high_s


@pytest.mark.parametrize(
    ("layout", "pipeline", "want"), [("pp4 ep2", "1f1b", 3), ("pp4 ep2 vp2", "interleaved", 1.5)]
)
def test_a_bubble_of_even_stages_is_near_the_closed_form(layout, pipeline, want):
    even = TrainedModel(
        name="even",
        # no head to speak of
        spec=replace(spec_of(*[SPARSE] * 8), vocab_size=8),
        layout=TrainLayout.parse(layout, 8),
        plan=TrainingPlan(global_batch=128, sequence=4096, pipeline=pipeline),
    )
    result = simulate_training(even, NODE)
    # hops between stages, which 1F1B waits for in every turn, add a little
    assert want / (64 + want) <= result.bubble_fraction < 1.25 * want / (64 + want)


def test_overlap_hides_exchanges():
    plan = {"pipeline": "interleaved", "global_batch": 128}
    two = sized(load_cluster("h100-rail-8x8"), 16)
    layout = "pp2 ep8 vp2"
    apart = simulated(layout, plan, two, every_choice=True)
    beside = simulated(layout, plan | {"overlap_exchange": True}, two, every_choice=True)
    assert beside.time_s <= apart.time_s
    assert beside.exposed_s < apart.exposed_s
    assert beside.memory.activations_bytes > apart.memory.activations_bytes


def test_reduction_hides_under_the_last_pass():
    wide = sized(load_cluster("h100-rail-8x8"), 16)
    hidden = simulated("ep8", {}, wide)
    shown = simulated("ep8", {"overlap_reduce": False}, wide)
    assert shown.phase_time_s["reduce_gradients"] > 2 * hidden.phase_time_s["reduce_gradients"]
    assert shown.time_s > hidden.time_s


def test_zero_divides_memory_and_later_stages_cost_time(plain):
    third = simulated(plan={"zero": 3})
    none = simulated(plan={"zero": 0})
    assert third.memory.weights_bytes < plain.memory.weights_bytes
    assert plain.memory.optimizer_bytes < none.memory.optimizer_bytes
    assert third.time_s >= plain.time_s


def test_capacity_drops_what_hot_experts_cannot_take():
    load = ExpertLoad(routing="power_law:1.2")
    every = simulate_training(trained(), NODE, load=load)
    capped = simulate_training(trained(capacity_factor=1.0), NODE, load=load)
    assert capped.time_s < every.time_s
    assert every.dropped_fraction == 0 < capped.dropped_fraction < 0.7
    assert capped.useful_flops_per_device < every.useful_flops_per_device


def test_dualpipe_keeps_two_copies():
    one = simulated("pp4 ep2", {"pipeline": "1f1b"})
    two = simulated("pp4 ep2", {"pipeline": "dualpipe"})
    ends = trained("pp4 ep2")
    assert len(ends.stages) == 4
    assert 1.5 < two.memory.weights_bytes / one.memory.weights_bytes < 2.5
    assert two.memory.optimizer_bytes < 1.2 * one.memory.optimizer_bytes


def test_bytes_of_zero_are_told(plain):
    """Gradients out and parameters back, dense ones among eight devices, experts on one."""
    held = SPEC.total_params - 7 * 64 * 3 * 2048 * 1024
    assert plain.sent.total == pytest.approx(7 / 8 * held * (4.0 + 2.0))
    assert simulated(plan={"zero": 3}).sent.all_gather > 10 * plain.sent.all_gather


def test_muon_multiplies(plain):
    muon = simulated(plan={"optimizer": "muon"})
    assert muon.phase_time_s["optimizer"] > plain.phase_time_s["optimizer"]
    assert muon.memory.optimizer_bytes < plain.memory.optimizer_bytes


def test_offload_shows_beyond_what_passes_hide(plain):
    hosted = simulated(plan={"offload": 0.9})
    assert hosted.memory.activations_bytes < 0.2 * plain.memory.activations_bytes
    assert hosted.time_s >= plain.time_s


@pytest.mark.parametrize(("engine", "least"), [("bound", 0.97), ("event_compiled", 0.99)])
def test_engines_agree(plain, engine, least):
    other = simulate_training(trained(), NODE, engine=engine)
    assert least * plain.time_s <= other.time_s <= 1.01 * plain.time_s


def test_a_row_has_units_and_provenance(plain):
    row = plain.row(tokens=1e12, economics=load_economics("default"))
    assert row["days"] == pytest.approx(1e12 / plain.tokens_per_s / 86400)
    assert row["usd"] > 0
    assert (row["evidence"], row["framework"]) == ("simulated", "megatron")
    parts = ("weights", "gradients", "optimizer", "activations", "buffers")
    assert sum(row[f"{part}_gib"] for part in parts) == pytest.approx(row["memory_gib"])
    assert plain.row()["days"] is None
    with pytest.raises(ConfigError, match="tokens"):
        plain.days(0)


def test_what_cannot_run_is_refused():
    with pytest.raises(CapacityError, match="small does not fit on h100-sxm in training"):
        simulated("ep8", {"micro_batch": 8, "sequence": 65536})
    with pytest.raises(ConfigError, match="the 8 devices of hgx-h100-8, got 16"):
        simulate_training(trained("ep8", 16), NODE)
    torus = load_cluster("tpu-v5p-4x4x4")
    with pytest.raises(ConfigError, match="collectives of a torus are not modelled"):
        simulate_training(trained("ep8", 64), torus)
    with pytest.raises(ConfigError, match="unknown training framework"):
        simulate_training(trained(), NODE, framework_name="megatorn")


@pytest.fixture(scope="module")
def deepseek():
    model = load_model("deepseek-v3")
    cluster = sized(load_cluster("h100-rail-8x8"), 256)

    def make(pipeline):
        return TrainedModel(
            name=model.name,
            spec=model.spec,
            layout=TrainLayout.parse("pp16 ep16", 256),
            plan=TrainingPlan(
                global_batch=1024,
                pipeline=pipeline,
                recompute="full",
                gradient_format="bfloat16",
            ),
            precision=Precision.named("fp8"),
            dense_format="fp8_block",
            uneven_stages=True,
        )

    return cluster, make


@pytest.mark.parametrize("pipeline", ["1f1b", "zero_bubble", "dualpipe"])
def test_61_layers_on_256_devices(deepseek, pipeline):
    cluster, make = deepseek
    assert simulate_training(make(pipeline), cluster).trained.num_micro_batches == 64


def test_pipelines_rank_as_their_bubbles(deepseek):
    cluster, make = deepseek
    bubbles = [
        simulate_training(make(pipeline), cluster).bubble_fraction
        for pipeline in ("1f1b", "zero_bubble", "dualpipe")
    ]
    assert bubbles == sorted(bubbles, reverse=True)


def test_kinds_are_timed_once():
    setting = PassTimer(
        trained=trained("pp2 ep4", plan={"pipeline": "zero_bubble"}),
        cluster=NODE,
        load=ExpertLoad(routing="uniform"),
        engine="flow",
    )
    kinds = setting.kinds()
    assert set(kinds) == {DENSE, SPARSE}
    sparse = kinds[SPARSE]
    # in a whole backward pass, weights of shared experts are done while tokens travel
    whole = sparse.dgrad.time_s + sparse.wgrad.time_s
    assert sparse.dgrad.time_s < sparse.backward.time_s < whole
    assert not kinds[DENSE].kernels
    assert sparse.kernels
