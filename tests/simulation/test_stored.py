"""Compressed, pruned and offloaded experts, from the candidate to the result."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from moesim import Workload, load_cluster, load_preset, simulate
from moesim.design.offload import Offload
from moesim.engines import ENGINES
from moesim.errors import ConfigError
from moesim.lowering.fetches import Fetches
from moesim.lowering.host_links import EFFICIENCY
from moesim.measured.check import check_candidate
from moesim.model.compression import Compression, low_rank
from moesim.simulation.kernels import engines_of
from moesim.simulation.memory import memory_of
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower

WORK = Workload(num_tokens_per_device=64, routing="zipf:0.8")
DENSE = load_preset("qwen3-30b-a3b").dense_part
HALF = Offload(resident_fraction=0.5)
T34 = ([7.0], [3.0, 4.0])
COLD = Compression(cold_fraction=0.5, cold_format="int4")


@pytest.fixture(scope="module")
def plain(make_candidate):
    sizes = {"hidden_size": 2048, "num_experts": 64, "top_k": 4, "expert_intermediate_size": 768}
    return replace(make_candidate(dense_part=DENSE, **sizes), kernels="sglang-triton")


def time_s(candidate, cluster, **options):
    return simulate(candidate, cluster, WORK, must_fit=False, **options).layer_time_s


def test_nothing_compressed_is_the_plain_design(hgx, plain):
    """All experts cold in the layer's own shape at full rank cost what they do hot, or more; all
    cold in int4 are a layer of int4."""
    int4 = replace(plain.layer.precision, weights="int4")
    whole = replace(plain, layer=replace(plain.layer, precision=int4), kernels="auto")
    cold = replace(plain, compression=Compression(cold_fraction=1.0, cold_format="int4"))
    ours, theirs = (prepare(c, hgx, WORK) for c in (cold, whole))
    assert time_s(cold, hgx) == pytest.approx(time_s(whole, hgx), rel=1e-9)
    assert memory_of(ours).total_bytes == pytest.approx(memory_of(theirs).total_bytes, rel=1e-9)


@pytest.mark.parametrize("tp", [1, 2])
def test_groups_share_the_experts_without_loss(hgx, plain, tp):
    """Every slot is in one group, and bytes and rows are those of the parts."""
    spread = replace(plain.parallelism, ep=8 // tp, tp=tp)
    form = Compression(cold_fraction=0.4, cold_format="int4", cold_rank_fraction=0.25)
    prepared = prepare(
        replace(plain, parallelism=spread, compression=form, offload=HALF), hgx, WORK
    )
    stored = prepared.stored
    hot, cold = stored.groups
    assert stored.cold_kernels
    assert (hot.members_DL ^ cold.members_DL).all()
    assert cold.members_DL.sum() == round(0.4 * 64) * tp
    # the least loaded ones are cold, by the load that the routing model expects
    rank, width = low_rank(0.25, 2048, 768), 768 // tp
    each_hot = 3 * 2048 * width * 2.0
    each_cold = 3 * rank * (2048 + width) * cold.layer.precision.weight_bytes
    assert set(np.unique(stored.bytes_DL)) == {each_hot, each_cold}
    assert stored.resident_DL.sum(axis=1).tolist() == [64 // (8 // tp) // 2] * 8
    counts = prepared.traffic.counts_DL
    loads = [counts[g.members_DL].mean() for g in (hot, cold)]
    assert loads[0] > loads[1]


def test_low_rank_halves_the_weights_where_the_rank_says_so(hgx, plain):
    ranks = [None, 0.36, 0.18]
    forms = [
        Compression(cold_fraction=1.0, cold_rank_fraction=r) if r else Compression() for r in ranks
    ]
    designs = [replace(plain, compression=form) for form in forms]
    held = [memory_of(prepare(c, hgx, WORK)).need.experts_bytes for c in designs]
    # r (H + I) over H I of each matrix
    assert held[1] / held[0] == pytest.approx(round(0.36 * 768) * (2048 + 768) / (2048 * 768))
    assert held[2] == pytest.approx(held[1] / 2, rel=0.01)


def test_pruned_experts_leave_their_tokens_to_others(hgx, plain):
    design = replace(plain, compression=Compression(pruned_fraction=0.25))
    prepared = prepare(design, hgx, WORK)
    assert prepared.built.layer.num_left == 48
    assert prepared.candidate is design
    whole = prepare(plain, hgx, WORK)
    assert prepared.traffic.counts_DL.sum() == whole.traffic.counts_DL.sum()
    assert np.count_nonzero(prepared.traffic.counts_DL) <= 48
    # they are the least loaded of the routing model
    kept = prepared.built.layer.width_E() > 0
    load_E = whole.choices.num_tokens_E()
    assert load_E[kept].mean() > 2 * load_E[~kept].mean()
    held = [memory_of(p).need.experts_bytes for p in (prepared, whole)]
    assert held[0] <= held[1]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("recall", [0.0, 0.75, 1.0])
def test_every_missing_byte_crosses_the_link_once(hgx, plain, recall, parts):
    offload = Offload(resident_fraction=0.5, prefetch_recall=recall)
    schedule = replace(plain.schedule, num_micro_batches=parts)
    prepared = prepare(replace(plain, offload=offload, schedule=schedule), hgx, WORK)
    # 512 tokens use nearly all experts
    missing_D = (~prepared.stored.resident_DL).sum(axis=1) * 3 * 2048 * 768 * 2.0
    program = lower(prepared)
    first = dict(program.resources.kinds())
    host = list(first).index("host")
    at = sum(list(first.values())[:host])
    crossed_D = np.zeros(8)
    for op in range(len(program.phase_N)):
        entries = slice(program.demand_ptr[op], program.demand_ptr[op + 1])
        for r, amount in zip(
            program.demand_resource[entries], program.demand_amount[entries], strict=True
        ):
            if at <= r < at + 8:
                crossed_D[r - at] += amount * EFFICIENCY
    # guessed ones all cross ahead, those that were guessed wrong cross again
    times = 1.0 - recall + (recall > 0)
    assert crossed_D == pytest.approx(times * missing_D, rel=0.05)
    assert crossed_D == pytest.approx(times * prepared.stored.fetches.missing_bytes_D)
    result = simulate(prepared.candidate, hgx, WORK)
    assert result.storage.hit_fraction == pytest.approx(1 - (1 - recall) * 0.5, abs=0.02)


def test_engines_agree_and_prefetching_hides_the_link(hgx, plain):
    ahead = Offload(resident_fraction=0.5, prefetch_recall=1.0)
    times = {
        name: [time_s(replace(plain, offload=o), hgx, engine=name) for o in (HALF, ahead)]
        for name in ENGINES
    }
    for name in ENGINES:
        assert times[name] == pytest.approx(times["flow"], rel=0.02)
        assert times[name][0] >= times[name][1]
    assert time_s(plain, hgx) < times["flow"][1]


def test_one_token_pays_for_the_experts_it_lacks(plain):
    """A device that holds nothing is as fast as its link: bytes over rate, once per layer."""
    alone = replace(
        plain,
        parallelism=replace(plain.parallelism, ep=1),
        offload=Offload(resident_fraction=0.0),
        kernels="auto",
    )
    device = load_cluster("h100-sxm")
    result = simulate(alone, device, Workload(num_tokens_per_device=1), must_fit=False)
    least_s = 4 * 3 * 2048 * 768 * 2.0 / (64e9 * EFFICIENCY)
    assert result.phase_time_s["fetch"] == pytest.approx(least_s, rel=0.05)
    assert result.storage.hit_fraction == 0.0
    assert result.layer_time_s > least_s
    # a link twice as fast halves it
    fast = simulate(
        alone,
        device.with_(host_link_gb_per_s="2x"),
        Workload(num_tokens_per_device=1),
        must_fit=False,
    )
    assert fast.phase_time_s["fetch"] == pytest.approx(least_s / 2, rel=0.1)


@pytest.mark.parametrize(("routing", "hit"), [("uniform", 0.5), ("zipf:0.8", 0.78)])
def test_the_cache_hits_as_often_as_loads_say(plain, routing, hit):
    """Of even loads half of the experts hit half of the time; of skewed ones the share of the
    choices that they get, by Zipf's law: the sum of r^-0.8 over the first 32 of 64 ranks."""
    alone = replace(
        plain, parallelism=replace(plain.parallelism, ep=1), offload=HALF, kernels="auto"
    )
    work = Workload(num_tokens_per_device=1, routing=routing)
    found = simulate(alone, load_cluster("h100-sxm"), work, must_fit=False)
    assert found.storage.hit_fraction == pytest.approx(hit, abs=0.06)
    missed = (1 - found.storage.hit_fraction) * 4 * 3 * 2048 * 768 * 2.0
    assert found.storage.copied_bytes == pytest.approx(missed, rel=1e-3)


def test_chances_add_up_over_micro_batches():
    chosen = np.array([[0.5, 0.25, 0.0], [0.1, 1.0, 0.2]])
    away, size = np.zeros((2, 3), dtype=bool), np.full((2, 3), 10.0)
    once, parts = (Fetches.of(Offload(resident_fraction=0.0), t, chosen, away, size) for t in T34)
    assert sum(parts.now_bytes) == pytest.approx(once.now_bytes[0])
    assert once.now_bytes[0] == pytest.approx((10 * (1 - (1 - chosen) ** 7)).sum(axis=1))
    assert once.hit_fraction == 0.0


def test_what_does_not_fit_fits_with_experts_in_the_host(hgx, plain):
    held = [
        memory_of(prepare(replace(plain, offload=o), hgx, WORK)).need.experts_bytes
        for o in (Offload(), HALF)
    ]
    # half of the weights, and buffers for one layer
    assert held[1] == pytest.approx(held[0] * (0.5 + 0.5 / DENSE.num_moe_layers), rel=0.02)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Compression(cold_fraction=0.5), "compression.cold_fraction"),
        (lambda: Compression(cold_format="int4"), "compression.cold_fraction"),
        (lambda: Compression(cold_fraction=0.5, cold_format="int3"), "compression.cold_format"),
        (lambda: Compression(pruned_fraction=1.0), "compression.pruned_fraction"),
        (
            lambda: Compression(cold_fraction=1.0, cold_rank_fraction=0.0),
            "compression.cold_rank_fraction",
        ),
        (lambda: Offload(resident_fraction=-0.1), "offload.resident_fraction"),
        (lambda: Offload(prefetch_recall=0.5), "offload.prefetch_recall"),
    ],
)
def test_bad_shares_are_one_line(build, text):
    with pytest.raises(ConfigError, match=text) as error:
        build()
    assert "\n" not in str(error.value)


def test_what_cannot_be_simulated_is_one_line(hgx, plain):
    wide = Compression(cold_fraction=0.5, cold_format="bfloat16")
    with pytest.raises(ConfigError, match="cold_format: expected a format narrower"):
        simulate(replace(plain, compression=wide), hgx, WORK)
    with pytest.raises(ConfigError, match=r"layer\.top_k: expected at most the 2 experts"):
        simulate(replace(plain, compression=Compression(pruned_fraction=0.97)), hgx, WORK)
    tpu = load_cluster("tpu-v5e-4x4").with_(axes=[2, 4])
    with pytest.raises(ConfigError, match="tpu-v5e: expected a device whose profile states"):
        simulate(replace(plain, offload=HALF, kernels="auto"), tpu, WORK, must_fit=False)


def test_nobody_is_told_to_launch_or_measure_what_no_engine_stores(hgx, plain):
    source = SimpleNamespace(name="gpu", unavailable_because=lambda: None)
    for changes in ({"offload": HALF}, {"compression": COLD}):
        design = replace(plain, **changes)
        assert not design.is_plain
        assert engines_of(simulate(design, hgx, WORK), hgx) == ()
        row = check_candidate(source, design, hgx, WORK)[0]
        assert (row.status, row.engine) == ("not_measured", "gpu")
        assert "host" in row.detail
    assert plain.is_plain
