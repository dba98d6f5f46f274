"""Recommendations: ties, what fits, latency, what helps; test_designs.py has the designs tried."""

from dataclasses import replace

import pytest

from moesim import Workload, simulate
from moesim.advice.recommend import recommend
from moesim.advice.ties import FLOOR, PricedDesign, groups, told_apart
from moesim.costs.grades import Grade
from moesim.errors import CapacityError, ConfigError
from moesim.files import toml

QWEN = "qwen3-30b-a3b"


@pytest.fixture(scope="module")
def found(hgx):
    return recommend(QWEN, hgx, tokens=512)


@pytest.fixture
def priced(hgx, found):
    """The recommended design with other phase times, exchange, or price of a second."""

    def make(exchange="nccl", per_second=1.0, **seconds):
        result = found.best.result
        c = result.candidate
        result = replace(
            result,
            candidate=replace(c, schedule=replace(c.schedule, exchange=exchange)),
            phase_time_s=dict.fromkeys(result.phase_time_s, 0.0) | seconds,
            layer_time_s=sum(seconds.values()),
            tokens_per_s=4096 / sum(seconds.values()),
            grades=dict.fromkeys(
                result.phase_time_s, Grade(letter="A", rests_on="", low=0.85, high=1.2)
            ),
        )
        return PricedDesign.of(result, hgx, per_second)

    return make


def test_the_best_is_the_simplest_that_no_other_beats(hgx, found):
    best = found.best
    assert best in found.tied
    assert not any(
        told_apart(PricedDesign.of(best.result, hgx), PricedDesign.of(c.result, hgx))
        for c in found.choices
    )
    for other in found.tied:
        if (
            other.loss_delta == best.loss_delta
            and other.candidate.parallelism == best.candidate.parallelism
        ):
            assert best.candidate.num_replicas <= other.candidate.num_replicas


def test_what_it_says_is_what_a_simulation_says(hgx, found):
    best = found.best
    again = simulate(best.candidate, hgx, found.workload)
    assert again.layer_time_s == best.result.layer_time_s
    assert best.pass_time_s == 48 * again.layer_time_s
    assert best.tokens_per_s_per_device == pytest.approx(512 / (48 * again.layer_time_s))
    assert (
        best.event_layer_time_s
        == simulate(best.candidate, hgx, found.workload, engine="event").layer_time_s
    )
    times = [c.result.layer_time_s for c in found.choices]
    assert times == sorted(times)
    assert len({c.candidate for c in found.choices}) == len(times)
    assert found.best.result.memory_over_bytes + found.kv_tokens_left * 48 * 2 * 4 * 128 * 2 <= 0


def test_rows_begin_with_the_recommended(found):
    rows = found.rows()
    assert [row["rank"] for row in rows] == list(range(len(found.choices)))
    assert [row["recommended"] for row in rows] == [True] + [False] * (len(rows) - 1)
    assert rows[0]["candidate"] == found.best.candidate.label
    assert {"evidence", "calibration", "seed", "engine", "version", "profile_hash"} <= rows[
        0
    ].keys()
    assert rows[0]["moe_layers_ms"] == pytest.approx(48e-3 * rows[0]["layer_time_us"])
    assert rows[0]["usable_memory_gib"] == pytest.approx(76.1)
    seconds_per_million = 48 * found.best.result.layer_time_s * 1e6 / (8 * 512)
    assert rows[0]["moe_layers_usd_per_million_tokens"] == pytest.approx(
        rows[0]["usd_per_hour"] / 3600 * seconds_per_million
    )
    assert rows[0]["moe_layers_joules_per_token"] * 1e6 == pytest.approx(
        8 * rows[0]["wall_watts_per_device"] * seconds_per_million
    )


def test_the_same_seed_says_the_same(hgx, found):
    assert recommend(QWEN, hgx, tokens=512).rows() == found.rows()


def test_helps_are_sorted_and_matter(found):
    factors = [h.factor.mid for h in found.helps]
    assert factors == sorted(factors, reverse=True)
    assert all(f > 1.01 for f in factors)
    assert all(h.factor.low <= h.factor.mid <= h.factor.high for h in found.helps)
    assert "memory of twice the bandwidth" in {h.change for h in found.helps}


@pytest.mark.parametrize(
    ("slow", "fast", "apart"),
    [
        # a shared kernel cannot turn around what it does less of
        ({"experts": 12e-6, "dispatch": 5e-6}, {"experts": 10e-6, "dispatch": 5e-6}, True),
        ({"experts": (1 + 0.9 * FLOOR) * 1e-5}, {"experts": 1e-5}, False),
        # more experts against less travel: each may be off its own way
        ({"experts": 14e-6, "dispatch": 5e-6}, {"experts": 10e-6, "dispatch": 8e-6}, False),
        # another exchange: independent of the first
        (
            {"experts": 2e-6, "dispatch": 10.9e-6},
            {"experts": 2e-6, "dispatch": 10e-6, "exchange": "deepep_normal"},
            False,
        ),
        (
            {"experts": 10e-6, "dispatch": 40e-6},
            {"experts": 10e-6, "dispatch": 10e-6, "exchange": "deepep_normal"},
            True,
        ),
        # twice the price of a second is twice the cost
        ({"experts": 10e-6, "per_second": 2.0}, {"experts": 10e-6}, True),
    ],
)
def test_told_apart(priced, slow, fast, apart):
    one, other = priced(**slow), priced(**fast)
    assert told_apart(one, other) is apart
    assert not told_apart(other, one)


def test_groups_are_those_that_nothing_beats(priced):
    """The third has an exchange of its own and equals the first, but its like with less to compute
    beats it.
    """
    designs = [
        priced(experts=10e-6, dispatch=10e-6),
        priced(experts=10e-6, dispatch=11.5e-6, exchange="deepep_normal"),
        priced(experts=12e-6, dispatch=11.5e-6, exchange="deepep_normal"),
        priced(experts=40e-6, dispatch=10e-6),
    ]
    assert not told_apart(designs[2], designs[0]) or told_apart(designs[2], designs[1])
    assert groups(designs) == [0, 0, 1, 2]


def test_one_device_has_one_layout():
    found = recommend("olmoe-1b-7b", "h100-sxm", tokens=256)
    assert {
        (c.candidate.parallelism.num_devices, c.candidate.placement) for c in found.choices
    } == {(1, "contiguous")}
    assert found.exchange == []


def test_a_model_that_does_not_fit_says_what_would_hold_it():
    with pytest.raises(CapacityError) as caught:
        recommend("deepseek-v3", "hgx-h100-8", tokens=256)
    line = str(caught.value)
    assert line.startswith(
        "deepseek-v3 does not fit on hgx-h100-8: the fullest device needs at least 9"
    )
    assert line.endswith(" GiB of 76.1 usable (fp8, ep8tp1); 16 of h100-sxm would hold it in fp8")
    sixteen = recommend("deepseek-v3", "h100-rail-8x8", gpus=16, tokens=256)
    assert sixteen.best.result.memory_over_bytes <= 0
    assert sixteen.best.candidate.layer.precision.name == "fp8"


def test_a_cache_too_large_for_any_number_of_devices():
    with pytest.raises(
        CapacityError, match="no number of h100-sxm up to 4,096 would: every device holds"
    ):
        recommend(QWEN, "hgx-h100-8", tokens=64, kv_tokens=2_000_000)


def test_a_latency_finds_the_largest_batch(hgx):
    """Each pass keeps it, and the next eighth of a power of two would not."""
    found = recommend(QWEN, hgx, layers_latency_ms=20, precision="fp8")
    tokens = found.workload.num_tokens_per_device
    assert all(c.pass_time_s <= 0.020 for c in found.choices)
    # what would help stays within the latency, too
    assert not any(h.change.startswith("batches of") for h in found.helps)
    eighth = 2 ** (tokens.bit_length() - 1) // 8
    assert tokens % eighth == 0
    more = tokens + eighth
    with pytest.raises(ConfigError) as caught:
        recommend(QWEN, hgx, layers_latency_ms=20, precision="fp8", tokens=more)
    assert str(caught.value).startswith("layers_latency_ms: expected at least 2")
    assert f"the 48 MoE layers of {QWEN} take at {more:,} tokens per device" in str(caught.value)


def test_a_latency_that_nothing_keeps(hgx):
    with pytest.raises(
        ConfigError,
        match=r"layers_latency_ms: expected at least .* ms, which the 48 MoE layers .*at 1 tok",
    ):
        recommend(QWEN, hgx, layers_latency_ms=0.01, precision="fp8")


def test_cost_ranks_as_throughput_does_and_energy_by_joules(hgx, found):
    assert recommend(QWEN, hgx, tokens=512, objective="cost").best.candidate == found.best.candidate
    joules = [
        c.row()["moe_layers_joules_per_token"]
        for c in recommend(QWEN, hgx, tokens=512, objective="energy").choices
    ]
    assert joules == sorted(joules)


def test_narrower_than_published_is_a_penalty_and_wider_is_none(hgx):
    of = {
        c.candidate.layer.precision.name: c.loss_delta[0]
        for c in recommend(QWEN, hgx, tokens=64, precision="bf16,fp8,int4").choices
    }
    assert of == pytest.approx({"bf16": 0.0, "fp8": 0.0015, "int4": 0.04})
    own = recommend("gpt-oss-120b", hgx, tokens=64)
    assert {c.loss_delta for c in own.choices} == {(0.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("cluster", "phase"),
    [
        ("mi300x-8", "decode"),
        ("tpu-v5e-4x4", "prefill"),
        ("l40s-pcie-8", "prefill"),
        ("mixed-h100-b200", "decode"),
    ],
)
def test_other_machines(cluster, phase):
    found = recommend("olmoe-1b-7b", cluster, phase=phase, tokens=64)
    assert (
        found.best.result.layer_time_low_s
        <= found.best.result.layer_time_s
        <= found.best.result.layer_time_high_s
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"objective": "speed"}, "objective: expected throughput, cost or energy, got 'speed'"),
        ({"phase": "train"}, "phase: expected prefill or decode, got 'train'"),
        ({"layers_latency_ms": -1.0}, "layers_latency_ms: expected a number > 0, got -1.0"),
        ({"tokens": 0}, "tokens: expected an integer >= 1, got 0"),
        ({"routing": "zipf"}, "routing: expected 'uniform'"),
        ({"kv_tokens": -1}, "workload.kv_tokens_per_device: expected an integer >= 0, got -1"),
        (
            {"tokens": 10_000_000, "routing": "domains:4:0.5"},
            "qwen3-30b-a3b on hgx-h100-8: workload: expected 1 to 4194304 tokens over all devices",
        ),
    ],
)
def test_bad_requests(hgx, options, line):
    with pytest.raises(ConfigError) as caught:
        recommend(QWEN, hgx, **options)
    assert str(caught.value).startswith(line)


def test_a_cost_without_a_price(hgx, tmp_path):
    """Asked for, it is said before the work; else its columns are empty."""
    path = tmp_path / "mine.toml"
    lines = toml.find("economics", "default").read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("h100-sxm")))
    with pytest.raises(
        ConfigError,
        match=r"economics mine: price\.usd_per_device_hour: expected a price of h100-sxm",
    ):
        recommend(QWEN, hgx, objective="cost", economics=str(path))
    row = recommend("olmoe-1b-7b", hgx, tokens=64, economics=str(path)).rows()[0]
    assert (row["usd_per_hour"], row["moe_layers_usd_per_million_tokens"]) == (None, None)
    assert row["watts_per_device"] > 0


def test_workload_is_what_was_asked(hgx):
    found = recommend("olmoe-1b-7b", hgx, phase="decode", routing="uniform", kv_tokens=1000, seed=3)
    assert found.workload == Workload(
        num_tokens_per_device=128,
        phase="decode",
        routing="uniform",
        seed=3,
        kv_tokens_per_device=1000,
    )
