"""Estimates of whole models against request loops over steps of the flow engine."""

from dataclasses import replace

import pytest

from moesim import load_cluster
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import ConfigError
from moesim.hardware.economics import load_economics
from moesim.serving.estimate import estimate_model, estimate_split, quick_table
from moesim.serving.loop import RequestTraffic
from moesim.serving.pools import ServingKnobs
from moesim.serving.result import WHOLE_COLUMNS
from moesim.serving.split import copies_of_ratio
from moesim.serving.text import lines_of
from moesim.serving.whole import serve_model, serve_split
from moesim.testing.models import DENSE, SPARSE, spec_of


@pytest.fixture(scope="module")
def served():
    return ServedModel(name="small", spec=spec_of(DENSE, *[SPARSE] * 6), layout=Layout(dp=8, ep=8))


@pytest.fixture(scope="module")
def node():
    return load_cluster("hgx-h100-8")


TRAFFIC = RequestTraffic(concurrency=96, num_requests=8 * 96, isl=600, osl=200)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"engine": "vllm"},
        {"layout": Layout(tp=2, dp=4, ep=8), "engine": "trtllm"},
        {"layout": Layout(tp=4, moe_tp=4)},
        {"kv_format": "fp8"},
    ],
    ids=str,
)
def test_an_estimate_is_near_the_loop(served, node, changes):
    served = replace(served, **changes)
    mine = estimate_model(served, node, TRAFFIC)
    loop = serve_model(served, node, TRAFFIC)
    rows = [result.row(load_economics("default")) for result in (mine, loop)]
    # TensorRT-LLM's front end takes in one request after another, which is only known on average
    one_by_one = served.engine == "trtllm"
    for name, rel in (
        ("output_tokens_per_s", 0.03),
        ("tpot_mean_ms", 0.15 if one_by_one else 0.05),
        ("ttft_mean_ms", 0.15),
        ("mean_batch", 0.15 if one_by_one else 0.05),
        ("decode_step_ms", 0.1),
        ("usd_per_million_tokens", 0.15),
    ):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=rel), name
    assert [row["requests_by"] for row in rows] == ["steady state", "request loop"]
    assert rows[0]["limited_by"] == rows[1]["limited_by"]
    assert tuple(rows[0]) == tuple(rows[1]) == WHOLE_COLUMNS


def test_intervals_hold_their_number(served, node):
    row = estimate_model(served, node, TRAFFIC).row(load_economics("default"))
    for name in (
        "output_tokens_per_s_per_device",
        "output_tokens_per_s_per_user",
        "joules_per_million_tokens",
        "usd_per_million_tokens",
    ):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]


def test_it_is_told_like_a_loop(served, node):
    """Requests of any length have no percentiles in a steady state."""
    traffic = replace(TRAFFIC, osl="uniform:100-300")
    text = list(lines_of(estimate_model(served, node, traffic), load_economics("default")))
    assert any(line.startswith("TPOT          on average ") for line in text)
    assert any(line.endswith("tokens, the steady state") for line in text)


def test_formats_of_a_cache_share_steps(served, node):
    """Attention is priced for each; two short attentions more or less are all that differs."""
    usual = quick_table(served, node)
    estimate_model(served, node, TRAFFIC, table=usual)
    simulated, other = usual.simulated, replace(served, kv_format="fp8")
    like = estimate_model(other, node, TRAFFIC, table=usual.with_cache("fp8"))
    assert usual.simulated == simulated
    alone = estimate_model(other, node, TRAFFIC)
    assert like.loop.tpot_s == pytest.approx(alone.loop.tpot_s, rel=0.01)


def test_drafts_gain_tokens(served, node):
    plain, drafted = (
        estimate_model(served, node, TRAFFIC, knobs=ServingKnobs(acceptance=acceptance)).loop
        for acceptance in ((), (0.9,))
    )
    assert 1.4 < plain.tpot_s / drafted.tpot_s < 1.9


@pytest.mark.parametrize("clients", [1, 16, 128])
def test_divided_pools_are_as_a_loop_leaves_them(served, node, clients):
    """The loop begins with all clients at once, of which a tenth of the throughput is left."""
    design = replace(served, layout=Layout.parse("tp2"))
    tables = quick_table(design, node), quick_table(design, node)
    traffic = replace(TRAFFIC, concurrency=clients, num_requests=None, osl="uniform:100-156")
    found = estimate_split(design, design, node, traffic, tables=tables).row()
    loop = serve_split(
        design, design, node, replace(traffic, num_requests=6 * clients + 20), tables=tables
    ).row()
    assert found["output_tokens_per_s"] == pytest.approx(loop["output_tokens_per_s"], rel=0.1)
    assert found["tpot_mean_ms"] == pytest.approx(loop["tpot_mean_ms"], rel=0.06)
    assert found["prefill_copies"] == loop["prefill_copies"] == 1


def test_divided_pools_need_room_and_answers(served, node):
    with pytest.raises(ConfigError, match="osl: expected answers of several tokens"):
        estimate_split(
            replace(served, layout=Layout.parse("tp2")),
            replace(served, layout=Layout.parse("tp2")),
            node,
            replace(TRAFFIC, osl=1),
        )
    with pytest.raises(ConfigError, match=r"pools: expected devices for .* beside"):
        copies_of_ratio("1:1", served, replace(served, layout=Layout.parse("tp4 moe_tp4")), node)
