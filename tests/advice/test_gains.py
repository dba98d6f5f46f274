"""Gains, elasticities and steps of loss with their intervals, against what they must be by
construction.
"""

from dataclasses import replace

import pytest

from moesim import Candidate, Parallelism, Precision, Workload, load_cluster, load_preset
from moesim.advice.gains import elasticity, gain, loss_step, narrowed, outcome
from moesim.errors import CapacityError, ConfigError
from moesim.simulation.memory import decode_workload, memory_of
from moesim.simulation.prepare import prepare

PRESET = load_preset("qwen3-30b-a3b")
CLUSTER = load_cluster("hgx-h100-8")
CANDIDATE = Candidate(
    layer=PRESET.layer, parallelism=Parallelism(ep=8), dense_part=PRESET.dense_part
)
WORK = Workload(num_tokens_per_device=512)
BASE = outcome(CANDIDATE, CLUSTER, WORK)


def test_no_change_is_worth_nothing_for_sure():
    found = gain(BASE, BASE)
    assert (found.mid, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_a_gain_and_its_inverse_are_each_other_s():
    more = outcome(CANDIDATE, CLUSTER.with_(nvlink_gb_per_s="2x"), WORK)
    there, back = gain(BASE, more), gain(more, BASE)
    assert there.low < there.mid < there.high
    assert (there.mid, there.low, there.high) == pytest.approx(
        (1 / back.mid, 1 / back.high, 1 / back.low)
    )
    # surer than the times themselves
    result = more.result
    assert there.high / there.low < (result.layer_time_high_s / result.layer_time_low_s) ** 2


def test_other_kernels_are_wrong_by_themselves():
    fp8 = outcome(
        replace(CANDIDATE, layer=replace(PRESET.layer, precision=Precision.named("fp8"))),
        CLUSTER,
        WORK,
    )
    found, same = (
        gain(BASE, fp8),
        gain(BASE, outcome(CANDIDATE, CLUSTER.with_(nvlink_gb_per_s="2x"), WORK)),
    )
    assert found.high / found.low > same.high / same.low


def test_more_tokens_count():
    found = gain(BASE, outcome(CANDIDATE, CLUSTER, Workload(num_tokens_per_device=1024)))
    assert 1 < found.mid < 2


def test_elasticities_of_all_that_is_used_sum_to_about_one_where_latency_does_not_count():
    work = Workload(num_tokens_per_device=8192)
    total = 0.0
    for key in ("hbm_gb_per_s", "bf16_tflops", "nvlink_gb_per_s"):
        below, above = (
            outcome(CANDIDATE, CLUSTER.with_(**{key: f}), work) for f in ("0.95x", "1.05x")
        )
        total += elasticity(below, above, 1.05 / 0.95).mid
    assert 0.8 < total < 1.05


def test_elasticity_needs_two_numbers():
    with pytest.raises(ConfigError, match="expected a ratio of numbers > 1, got 1"):
        elasticity(BASE, BASE, 1)


def test_loss_steps():
    layer, dense = PRESET.layer, PRESET.dense_part
    none = loss_step(layer, layer, dense, 1e12)
    assert (none.mid, none.low, none.high) == (0, 0, 0)
    more = replace(layer, num_experts=256)
    there, back = loss_step(layer, more, dense, 1e12), loss_step(more, layer, dense, 1e12)
    assert there.low <= there.mid <= there.high
    assert there.mid < 0
    assert there.mid == pytest.approx(-back.mid)
    fp8 = loss_step(layer, replace(layer, precision=Precision.named("fp8")), dense, 1e12)
    assert (fp8.mid, fp8.low, fp8.high) == pytest.approx((0.0015, 0.0, 0.005))


def test_narrowed_keeps_the_loss():
    layer, dense = PRESET.layer, PRESET.dense_part
    found = narrowed(layer, replace(layer, num_experts=160), dense, 1e12, step=16)
    assert loss_step(layer, found["mid"], dense, 1e12).mid <= 0
    width = found["mid"].expert_intermediate_size
    assert width < layer.expert_intermediate_size
    narrower = replace(found["mid"], expert_intermediate_size=width - 16)
    assert loss_step(layer, narrower, dense, 1e12).mid > 0
    assert found["low"].expert_intermediate_size <= width


def test_narrowed_stays_where_granularity_was_measured():
    found = narrowed(
        PRESET.layer, replace(PRESET.layer, num_experts=512), PRESET.dense_part, 1e12, step=64
    )
    assert found["mid"].expert_intermediate_size == PRESET.dense_part.dense_intermediate_size // 16


def test_decode_fills_the_memory():
    work = decode_workload(CANDIDATE, CLUSTER, 4096, routing="uniform", seed=3)
    assert (work.phase, work.seed, work.kv_tokens) == (
        "decode",
        3,
        work.num_tokens_per_device * 4096,
    )
    usable = CLUSTER.usable_bytes_D()[0]
    assert memory_of(prepare(CANDIDATE, CLUSTER, work)).total_bytes <= usable
    more = replace(
        work,
        num_tokens_per_device=work.num_tokens_per_device + 2,
        kv_tokens_per_device=work.kv_tokens + 2 * 4096,
    )
    assert memory_of(prepare(CANDIDATE, CLUSTER, more)).total_bytes > usable
    twice = decode_workload(CANDIDATE, CLUSTER.with_(hbm_gib="2x"), 4096, routing="uniform")
    assert twice.num_tokens_per_device > 2 * work.num_tokens_per_device  # weights are there already


def test_decode_without_room_or_cache_says_so():
    big = load_preset("deepseek-v3")
    with pytest.raises(
        CapacityError,
        match=r"expected room for one sequence of 4096 tokens, got [\d.]+ GiB too few",
    ):
        decode_workload(
            Candidate(layer=big.layer, parallelism=Parallelism(ep=8), dense_part=big.dense_part),
            CLUSTER,
            4096,
            routing="uniform",
        )
    with pytest.raises(ConfigError, match="expected a model with a KV cache"):
        decode_workload(replace(CANDIDATE, dense_part=None), CLUSTER, 4096, routing="uniform")
