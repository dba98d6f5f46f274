"""Whole models under requests: what the parts say must come out, and limits are kept."""

from dataclasses import replace

import pytest

from moesim import load_cluster
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import CapacityError, ConfigError
from moesim.hardware.economics import load_economics
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.serving.formats import dense_format_of, precision_on
from moesim.serving.layouts import layouts_of
from moesim.serving.limits import Limit, most_clients, parse_limits
from moesim.serving.loop import RequestTraffic
from moesim.serving.pools import ServingKnobs
from moesim.serving.text import lines_of
from moesim.serving.whole import front_of, serve_model, serve_split
from moesim.simulation.steps.times import StepTable


@pytest.fixture(scope="module")
def gpt_oss():
    model = load_model("gpt-oss-120b")
    return ServedModel(
        name=model.name,
        spec=model.spec,
        layout=Layout.parse("tp2"),
        precision=Precision.named("mxfp4"),
        engine="vllm",
    )


@pytest.fixture(scope="module")
def node():
    return load_cluster("hgx-h100-8")


@pytest.fixture(scope="module")
def table(gpt_oss, node):
    return StepTable(gpt_oss, node)


def run(gpt_oss, node, table, clients=32, **options):
    traffic = RequestTraffic(concurrency=clients, isl=512, osl=256, num_requests=4 * clients)
    return serve_model(gpt_oss, node, traffic, table=table, **options)


def test_a_row_agrees_with_itself(gpt_oss, node, table):
    result = run(gpt_oss, node, table)
    row = result.row(load_economics("default"))
    assert row["copies"] == 4
    assert row["devices"] == 8
    assert row["output_tokens_per_s"] / 8 == pytest.approx(row["output_tokens_per_s_per_device"])
    assert row["tpot_low_ms"] < row["tpot_mean_ms"] < row["tpot_high_ms"]
    assert row["output_tokens_per_s_per_user"] == pytest.approx(1e3 / row["tpot_mean_ms"])
    # Little's law: clients = throughput x latency
    assert row["requests_per_s"] * row["latency_mean_ms"] / 1e3 == pytest.approx(32, rel=0.1)
    assert row["joules_per_million_tokens"] > 0
    assert row["usd_per_million_tokens"] > 0
    text = "\n".join(lines_of(result, load_economics("default")))
    assert "4 copies of 2 devices" in text
    assert "grade" in text


def test_few_kv_blocks_let_requests_wait(gpt_oss, node, table):
    """With a quarter of the blocks that all clients need, most of them queue."""
    plenty = run(gpt_oss, node, table).row()
    need = -(-(512 + 256) // 16) * 8
    scarce = run(gpt_oss, node, table, knobs=ServingKnobs(kv_blocks=need // 4)).row()
    assert scarce["ttft_mean_ms"] > 3 * plenty["ttft_mean_ms"]
    assert scarce["tpot_mean_ms"] < plenty["tpot_mean_ms"]
    assert scarce["output_tokens_per_s"] < plenty["output_tokens_per_s"]


def test_accepted_drafts_save_steps(gpt_oss, node, table):
    plain = run(gpt_oss, node, table, clients=4).row()
    drafted = run(gpt_oss, node, table, clients=4, knobs=ServingKnobs(acceptance=(0.8, 0.6))).row()
    assert drafted["tpot_mean_ms"] < 0.8 * plain["tpot_mean_ms"]


def test_limits_are_kept_by_the_most_clients(gpt_oss, node, table):
    limits = parse_limits("tpot<=9ms, ttft_mean<=2s")
    assert limits == (Limit("tpot_p90_ms", 9.0), Limit("ttft_mean_ms", 2000.0))
    traffic = RequestTraffic(concurrency=1, isl=512, osl=256)

    def served(asked):
        return serve_model(gpt_oss, node, asked, table=table)

    best = most_clients(served, traffic, limits)
    clients = best.traffic.concurrency
    assert clients > 8
    assert all(limit.keeps(best) for limit in limits)
    more = RequestTraffic(concurrency=2 * clients, isl=512, osl=256, num_requests=6 * clients)
    assert not all(limit.keeps(served(more)) for limit in limits)
    assert most_clients(served, traffic, parse_limits("tpot<=1us")) is None


@pytest.mark.parametrize("text", ["tpot<50ms", "ttft<=2", "speed<=1s", ""])
def test_limits_that_are_none(text):
    with pytest.raises(ConfigError, match="slo"):
        parse_limits(text)


def test_layouts_divide_the_model_and_the_cluster(gpt_oss, node):
    found = layouts_of(gpt_oss, node)
    assert [str(one.layout) for one in found] == [
        "tp1",
        "tp2 moe_tp2",
        "tp2 ep2",
        "tp4 moe_tp4",
        "tp4 ep4",
        "tp8 moe_tp8",
        "tp8 ep8",
        "dp8 ep8",
    ]
    assert found[-1].placement == "eplb"


def test_a_model_that_does_not_fit_names_the_gibibytes(node):
    model = load_model("deepseek-v3")
    served = ServedModel(
        name=model.name,
        spec=model.spec,
        layout=Layout.parse("tp8"),
        precision=Precision.named("fp8"),
        dense_format="fp8_block",
    )
    with pytest.raises(CapacityError, match=r"deepseek-v3 does not fit .* GiB over"):
        serve_model(served, node, RequestTraffic(concurrency=1))


@pytest.mark.parametrize(
    ("name", "dense", "device", "recipe"),
    [
        ("deepseek-v3", "fp8_block", "hgx-h100-8", "fp8"),
        ("gpt-oss-120b", "bfloat16", "hgx-h100-8", "mxfp4"),
        ("qwen3-235b-a22b", "bfloat16", "hgx-h100-8", "bf16"),
        ("deepseek-v3", "fp8_block", "hgx-a100-8", "bf16"),
    ],
)
def test_formats_are_the_published_ones(name, dense, device, recipe):
    model = load_model(name)
    assert dense_format_of(model) == dense
    assert precision_on(model, load_cluster(device).profile) == recipe


def test_a_format_without_a_rate_is_one_line():
    with pytest.raises(ConfigError, match="a100-sxm has no rate for"):
        precision_on(load_model("deepseek-v3"), load_cluster("hgx-a100-8").profile, "fp8")


def test_the_front_is_better_for_device_or_user():
    rows = [
        {"output_tokens_per_s_per_device": d, "output_tokens_per_s_per_user": u}
        for d, u in ((10, 1), (8, 3), (9, 2), (7, 2.5), (8, 2), (1, 9))
    ]
    assert [r["output_tokens_per_s_per_user"] for r in front_of(rows)] == [1, 2, 3, 9]


def test_the_front_end_delays_the_first_token_only(gpt_oss, node, table):
    plain = run(gpt_oss, node, table, clients=4).row()
    slow = StepTable(gpt_oss, node, engine=replace(table.engine, receive_s=0.5))
    delayed = run(gpt_oss, node, slow, clients=4).row()
    more = 500.0 - 1e3 * table.engine.receive_s
    assert delayed["ttft_mean_ms"] - plain["ttft_mean_ms"] == pytest.approx(more, rel=0.05)
    assert delayed["tpot_mean_ms"] == pytest.approx(plain["tpot_mean_ms"], rel=0.02)


def test_a_front_end_takes_in_one_request_after_another(gpt_oss, node, table):
    """Of four that a copy is sent at once the last waits for all, the mean one for 2.5."""
    quick, slow = (
        StepTable(gpt_oss, node, engine=replace(table.engine, receive_s=0.0, intake_s=seconds))
        for seconds in (0.0, 0.5)
    )
    copies = node.num_devices // gpt_oss.layout.num_devices
    traffic = RequestTraffic(concurrency=4 * copies, num_requests=4 * copies, isl=128, osl=16)
    alone, queued = (
        serve_model(gpt_oss, node, traffic, table=one).loop.requests for one in (quick, slow)
    )
    waited = [b.ttft_s - a.ttft_s for a, b in zip(alone, queued, strict=True)]
    # prompts of their own steps are shorter than one of all
    each = [seconds for seconds in (0.5, 1.0, 1.5, 2.0) for _ in range(copies)]
    assert waited == pytest.approx(each, abs=0.1)


def test_a_pipeline_runs_a_batch_in_each_stage(gpt_oss, node):
    """Two stages of four devices do about as much as two copies on four, with twice the cache of
    a copy: weights are shared.
    """
    traffic = RequestTraffic(concurrency=128, isl=512, osl=128, num_requests=512)
    rows = [
        serve_model(replace(gpt_oss, layout=Layout.parse(layout)), node, traffic).row()
        for layout in ("tp4", "tp4 pp2")
    ]
    copies, stages = rows
    assert (copies["copies"], stages["copies"]) == (2, 1)
    assert stages["devices"] == copies["devices"] == 8
    rates = [row["output_tokens_per_s"] for row in rows]
    assert rates[1] == pytest.approx(rates[0], rel=0.15)
    assert stages["kv_tokens"] > copies["kv_tokens"]


def test_each_phase_has_the_grade_of_its_own_rows(gpt_oss, node, table):
    result = run(gpt_oss, node, table, clients=4)
    decode, prefill = result.decode.grades["attention"], result.prefill.grades["attention"]
    assert decode.rests_on != prefill.rests_on


def test_pools_share_the_cluster(gpt_oss, node):
    """Prompts do not stall answers any more; the cache travels before the first token."""
    traffic = RequestTraffic(concurrency=64, isl=2048, osl=128, num_requests=256)
    both = replace(gpt_oss, layout=Layout.parse("tp4"))
    together = serve_model(both, node, traffic).row()
    split = serve_split(both, both, node, traffic)
    row = split.row(load_economics("default"))
    assert row["devices"] == 8
    assert (row["prefill_layout"], row["prefill_copies"], row["copies"]) == ("tp4 moe_tp4", 1, 1)
    assert row["itl_p99_ms"] < together["itl_p99_ms"]
    assert row["joules_per_million_tokens"] > 0
    assert "prompts by" in "\n".join(lines_of(split, load_economics("default")))
    with pytest.raises(ConfigError, match="prefill_copies: expected an integer >= 1"):
        serve_split(both, both, node, traffic, prefill_copies=0)
    with pytest.raises(ConfigError, match="expected 4 devices to decode"):
        serve_split(both, both, node, traffic, prefill_copies=2)
