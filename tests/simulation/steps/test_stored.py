"""Whole models whose experts are compressed or lie in the memory of the host."""

from dataclasses import replace

import numpy as np
import pytest

from moesim import load_profile
from moesim.costs.steps.memory import memory_on
from moesim.design.offload import Offload
from moesim.design.schedule import Schedule
from moesim.design.step import ExpertLoad, Step
from moesim.errors import CapacityError, ConfigError
from moesim.lowering.fetches import popular_recall
from moesim.lowering.host_links import EFFICIENCY
from moesim.model import Precision
from moesim.model.compression import Compression
from moesim.serving.estimate import estimate_model
from moesim.serving.loop import RequestTraffic
from moesim.simulation.steps.experts import present, sent
from moesim.simulation.steps.simulate import simulate_step, stage_of
from moesim.testing.models import DENSE, MOE, SPARSE
from moesim.units import GIB

STEP = Step(sequences=8, context=512)
PROMPT = Step(prefills=1, new_tokens=2048)
HALF = Offload(resident_fraction=0.5)
AHEAD = replace(HALF, prefetch_recall=0.8)
INT4 = Compression(cold_fraction=0.5, cold_format="int4")
#: layouts that send tokens, and layouts whose devices all have them
LAYOUTS = ["dp8 ep8", "tp4 ep4", "tp2 moe_tp2"]


@pytest.fixture(scope="module")
def form(small, hgx):
    """Simulate a step of a small model whose experts are stored in some way."""

    def run(layout, step=STEP, order="", parts=1, **forms):
        schedule = Schedule(num_micro_batches=parts)
        served = small(DENSE, *[SPARSE] * 4, layout=layout, order=order, schedule=schedule, **forms)
        return simulate_step(served, hgx, step)

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_experts_cost_time_and_guesses_save_some(form, layout):
    whole, half, ahead = (form(layout, offload=o) for o in (Offload(), HALF, AHEAD))
    assert whole.time_s < half.time_s
    assert "fetch" not in whole.phase_time_s
    assert half.phase_time_s["fetch"] > 0
    assert half.grades["fetch"].letter == "D"
    assert ahead.phase_time_s["fetch"] < half.phase_time_s["fetch"]
    assert ahead.phase_time_s.get("prefetch", 0) > 0


def test_a_prompt_waits_for_the_link(form, hgx):
    """Where every expert is chosen, half of the weights of each layer cross the link."""
    result = form("dp8 ep8", PROMPT, offload=HALF)
    layer_bytes = 3 * 2048 * 1024 * 2 * 64 / 8
    copy_s = layer_bytes / 2 / (hgx.profile.host_link_bytes_per_s * EFFICIENCY)
    assert result.phase_time_s["fetch"] >= 0.9 * 4 * copy_s
    assert result.time_s >= 4 * copy_s


@pytest.mark.parametrize(
    ("order", "parts"), [("serial", 1), ("two_batch", 2), ("chunked", 2)], ids=str
)
def test_every_order_fetches(form, order, parts):
    whole, half = (form("dp8 ep8", PROMPT, order, parts, offload=o) for o in (Offload(), HALF))
    assert whole.time_s < half.time_s


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cold_and_pruned_experts_are_those_of_the_layer_alone(form, layout):
    """A prompt with all experts in int4 takes what a layer of int4 takes, launched alike."""
    every = Compression(cold_fraction=1.0, cold_format="int4")
    narrow = replace(Precision(), weights="int4")
    cold = form(layout, PROMPT, compression=every, kernels="sglang-triton")
    plain = form(layout, PROMPT, precision=narrow)
    assert cold.time_s == pytest.approx(plain.time_s, rel=0.02)
    assert form(layout, PROMPT, compression=INT4).grades["experts"].letter == "D"
    pruned = Compression(pruned_fraction=0.5)
    assert form(layout, compression=pruned).time_s < 1.02 * form(layout).time_s


def test_present_experts_are_ranked_as_sent_ones(small, hgx):
    served = small(layout="tp4 ep4", compression=INT4, offload=HALF)
    load = ExpertLoad()
    candidate = served.candidate(MOE)
    stage = stage_of(hgx, 4)
    found = present(candidate, stage, 32, load)
    hot, cold = found.stored.groups
    counts = found.traffic.counts_DL
    assert counts[hot.members_DL].mean() > counts[cold.members_DL].mean()
    assert found.stored.resident_DL.sum() == 32
    gone = present(
        replace(candidate, compression=Compression(pruned_fraction=0.25)), stage, 32, load
    )
    assert gone.layer.num_left == 48
    assert (gone.traffic.counts_DL > 0).sum() <= 48


def test_memory_is_that_of_the_parts(small):
    h100, served = load_profile("h100-sxm"), small(layout="dp8 ep8")
    whole = memory_on(served, h100, step_tokens=0)
    assert whole.host_bytes == 0
    half = memory_on(replace(served, offload=HALF), h100, step_tokens=0)
    assert half.experts_bytes == half.host_bytes == whole.experts_bytes / 2
    # the hot half is resident, the cold half is in the memory of the host
    both = memory_on(replace(served, offload=HALF, compression=INT4), h100, step_tokens=0)
    assert both.experts_bytes == half.experts_bytes
    assert 0.25 < both.host_bytes / half.host_bytes < 0.3
    pruned = Compression(pruned_fraction=0.25)
    fewer = memory_on(replace(served, compression=pruned), h100, step_tokens=0)
    assert fewer.experts_bytes == 0.75 * whole.experts_bytes
    # buffers hold one layer's missing experts, and the next one's
    now, ahead = (
        memory_on(replace(served, offload=o), h100, step_tokens=4096) for o in (HALF, AHEAD)
    )
    staged = ahead.buffer_bytes - now.buffer_bytes
    assert staged == pytest.approx(half.host_bytes / 12, rel=1e-6)


def test_memory_agrees_with_the_slots_of_a_layer(small, hgx):
    """The closed form against every device of a layer whose experts are placed."""
    served = small(layout="dp8 ep8", compression=INT4, offload=HALF)
    stored = sent(served.candidate(MOE), hgx, 32, ExpertLoad(routing="uniform")).stored
    memory = memory_on(served, hgx.profile, step_tokens=0)
    assert stored.held_bytes_D.mean() * 12 <= memory.experts_bytes * 1.001
    total = stored.bytes_DL.sum() / 8 * 12
    assert total == pytest.approx(memory.experts_bytes + memory.host_bytes, rel=1e-6)


def test_a_model_that_fits_nowhere_fits_with_its_experts_in_host_memory(deepseek, hgx):
    plain = replace(deepseek(), layout=replace(deepseek().layout, dp=8, ep=8), num_replicas=0)
    plain = replace(plain, schedule=Schedule(), placement="contiguous")
    traffic = RequestTraffic(concurrency=8, num_requests=16, isl=128, osl=32)
    with pytest.raises(CapacityError, match=r"GiB over"):
        estimate_model(plain, hgx, traffic)
    away = replace(plain, offload=Offload(resident_fraction=0.5))
    row = estimate_model(away, hgx, traffic).row()
    assert row["host_gib"] == pytest.approx(656e9 / 16 / GIB, rel=0.01)
    assert row["resident_fraction"] == 0.5
    assert row["output_tokens_per_s"] > 0
    assert row["limited_by"] == "fetch"
    assert row["compression_loss_delta"] == 0.0


def test_recall_by_popularity():
    """As many as will be missing are guessed: the share of the likeliest, all if all are needed."""
    uniform = np.full((2, 8), 0.25)
    assert popular_recall(uniform) == pytest.approx(2 / 8)
    assert popular_recall(np.ones((2, 8))) == 1.0
    assert popular_recall(np.zeros((2, 8))) == 1.0
    # 1.5 are missing: the first, and half of the second
    skewed = np.array([[0.75, 0.5, 0.25, 0.0]])
    assert popular_recall(skewed) == pytest.approx((0.75 + 0.5 * 0.5) / 1.5)
    assert popular_recall(skewed, 0.4) == pytest.approx(0.4 + 0.6 / 1.5)
    assert popular_recall(skewed, 1.0) == 1.0


def test_the_routing_model_predicts_the_recall(small, hgx):
    """More tokens need more experts, which makes them known, as correlation does; a skewed load
    finds more of its experts resident, and those that are missing are rare and hard to guess.
    """
    asked = replace(HALF, prefetch_recall=None)
    candidate = small(layout="dp8 ep8", offload=asked).candidate(MOE)

    def fetches(tokens, routing="zipf:0.8", correlation=0.0):
        load = ExpertLoad(routing=routing, correlation=correlation)
        return sent(candidate, hgx, tokens, load).stored.fetches

    def recall(*args, **options):
        return fetches(*args, **options).recall

    assert recall(1) < recall(8) < recall(512) <= 1.0
    assert recall(512) == pytest.approx(1.0, abs=1e-3)
    skewed, even = fetches(1, "zipf:1.5"), fetches(1, "uniform")
    assert skewed.recall < even.recall
    assert skewed.hit_fraction > even.hit_fraction
    assert recall(1, correlation=0.5) == pytest.approx(0.5 + 0.5 * recall(1))


def test_what_no_model_can_have(small):
    with pytest.raises(ConfigError, match="offload: expected a model with routed experts"):
        small(DENSE, offload=HALF)
    with pytest.raises(ConfigError, match="narrower than the layer's"):
        small(precision=replace(Precision(), weights="int4"), compression=INT4)
    with pytest.raises(ConfigError, match="all experts are resident, got 'routing'"):
        Offload(prefetch_recall=None)
    assert small(offload=replace(HALF, prefetch_recall=None)).label.endswith(
        "resident_fraction=0.5 prefetch_recall=routing"
    )
