"""The steady state in closed form against the request loop."""

import pytest

from moesim.errors import ConfigError
from moesim.serving.loop import RequestTraffic, ServerConfig, Speculation, serve
from moesim.serving.steady import steady_state
from moesim.testing.steps import Line

UNIFORM = ("uniform:512-1024", "uniform:256-1024")
#: what a percentile over a few requests for each client may be off
NEAR = {"tpot_mean_ms": 0.04, "ttft_mean_ms": 0.1, "latency_mean_ms": 0.04, "mean_batch": 0.04}


def both(lengths=(1024, 256), clients=64, requests=12, **server):
    config = ServerConfig(**{"kv_blocks": 400_000, "receive_s": 0.03, "tolerance": 5e-3} | server)
    traffic = RequestTraffic(
        concurrency=clients, num_requests=requests * clients, isl=lengths[0], osl=lengths[1]
    )
    return steady_state(Line(), config, traffic), serve(Line(), config, traffic)


def check(steady, loop, near=NEAR):
    mine, row = steady.row(), loop.row()
    for name, rel in near.items():
        assert mine[name] == pytest.approx(row[name], rel=rel), name


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize(
    ("lengths", "server"),
    [
        ((1024, 256), {}),
        ((1024, 256), {"dp": 8}),
        ((100, 64), {"receive_s": 0.0}),
        ((8192, 128), {"dp": 4}),
        ((20_000, 64), {"dp": 4, "kv_blocks": 4_000_000}),
        ((1024, 256), {"replicas": 4, "speculation": Speculation(acceptance=(0.8, 0.4))}),
        (UNIFORM, {}),
        (UNIFORM, {"dp": 8}),
    ],
    ids=["chunks", "ranks", "one step", "prompts of a chunk", "longer", "drafts", "any", "any, dp"],
)
def test_it_is_where_the_loop_goes(lengths, server, mixed):
    check(*both(lengths, mixed=mixed, **server))


def test_a_burst_has_percentiles():
    steady, loop = both(mixed=False)
    check(steady, loop, {"ttft_p50_ms": 0.1, "ttft_p90_ms": 0.1, "tpot_p90_ms": 0.05})
    assert both(UNIFORM)[0].row()["ttft_p90_ms"] is None


def test_who_finds_no_room_waits():
    """Little's law: clients = throughput x latency, whatever limits the batch."""
    steady, loop = both(clients=128, max_seqs=32, mixed=False)
    check(steady, loop, {"tpot_mean_ms": 0.02, "mean_batch": 0.05})
    row = steady.row()
    assert row["requests_per_s"] * row["latency_mean_ms"] / 1e3 == pytest.approx(128)
    assert row["queue_mean_ms"] > row["ttft_mean_ms"] / 2


def test_a_cache_that_is_short_lets_fewer_in():
    """The loop preempts and computes again, which the closed form leaves out."""
    steady, loop = both(UNIFORM, kv_blocks=40_000 // 16, requests=8)
    assert loop.row()["preemptions"] > 0
    check(steady, loop, {"tpot_mean_ms": 0.15, "mean_batch": 0.1})
    assert steady.batch < 64
    rate = loop.row()["output_tokens_per_s"]
    assert 0.95 * rate < steady.row()["output_tokens_per_s"] < 1.2 * rate


def test_columns_are_those_of_the_loop():
    steady, loop = both(clients=4, requests=3)
    assert list(steady.row()) == list(loop.row())


@pytest.mark.parametrize(
    ("traffic", "message"),
    [
        ({"rate_per_s": 3.0}, "traffic: expected a closed loop .* got open arrivals"),
        (
            {"concurrency": 1, "isl": 999_999},
            "server.kv_blocks: expected at least 62564 .* 61 too few",
        ),
    ],
)
def test_what_has_no_steady_state(traffic, message):
    config = ServerConfig(kv_blocks=62_503)
    with pytest.raises(ConfigError, match=message):
        steady_state(Line(), config, RequestTraffic(**traffic))
