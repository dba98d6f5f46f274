"""Requests are drawn and read as written, and refused in one line."""

from pathlib import Path

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.serving.loop import RequestTraffic, ServerConfig, Speculation
from moesim.serving.loop.config import KvTransfer
from moesim.serving.loop.lengths import Lengths


def draw(text, count=20_000):
    return Lengths.parse(text, "isl").draw(count, np.random.default_rng(0))


def test_lengths_follow_their_distribution():
    assert set(draw("17").tolist()) == set(draw(17).tolist()) == {17}
    uniform = draw("uniform:5-9")
    assert np.bincount(uniform)[5:] == pytest.approx(4000, rel=0.1)
    assert (uniform.min(), uniform.max()) == (5, 9)
    drawn = draw("lognormal:1000,0.5,2000")
    assert np.median(drawn) == pytest.approx(1000, rel=0.02)
    assert drawn.max() == 2000
    assert np.log(drawn[drawn < 1000]).std() == pytest.approx(
        0.5 * (1 - 2 / np.pi) ** 0.5, rel=0.05
    )


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "",
        "-3",
        "1.5",
        "uniform:9-5",
        "uniform:0-5",
        "lognormal:100,0.5",
        "lognormal:9,1,5",
        "normal:1-2",
        "lognormal:1,-1,5",
    ],
)
def test_lengths_are_refused(text):
    with pytest.raises(ConfigError, match=r"^traffic.osl: expected .*, got "):
        RequestTraffic(concurrency=1, osl=text)


def test_streams_are_apart_and_repeatable():
    one = RequestTraffic(rate_per_s=5, isl="uniform:1-99", osl="uniform:1-99", seed=1).requests()
    two = RequestTraffic(rate_per_s=9, isl=7, osl="uniform:1-99", seed=1).requests()
    three = RequestTraffic(rate_per_s=5, isl="uniform:1-99", osl="uniform:1-99", seed=2).requests()
    assert (one.osl_N == two.osl_N).all()
    assert one.arrival_s_N * 5 == pytest.approx(two.arrival_s_N * 9)
    assert not (one.isl_N == one.osl_N).all()
    assert not (one.isl_N == three.isl_N).all()
    assert np.diff(one.arrival_s_N).mean() == pytest.approx(0.2, rel=0.1)
    assert len(RequestTraffic(concurrency=3).requests().isl_N) == 30


def test_a_file_is_read_in_order_of_arrival(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_text("isl, osl, note, arrival_s\n10,1,a,3\n20,2,b,0.5\n30,3,c,3\n")
    found = RequestTraffic(file=path).requests()
    assert found.arrival_s_N.tolist() == [0.5, 3, 3]
    assert found.isl_N.tolist() == [20, 10, 30]
    closed = RequestTraffic(file=path, concurrency=2, num_requests=2).requests()
    assert closed.arrival_s_N is None
    assert (closed.isl_N.tolist(), closed.osl_N.tolist()) == ([10, 20], [1, 2])
    assert RequestTraffic(file=path, rate_per_s=1.0).requests().isl_N.tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("isl,osl\n1,2\n", "r.csv: expected columns arrival_s, isl, osl, without arrival_s"),
        ("arrival_s,isl,osl\n", "r.csv: expected at least one request, got none"),
        ("arrival_s,isl,osl\n0,1,2\n1,x,2\n", "r.csv:3: isl: expected an integer >= 1, got 'x'"),
        ("arrival_s,isl,osl\n0,1,2.5\n", "r.csv:2: osl: expected an integer >= 1, got '2.5'"),
        ("arrival_s,isl,osl\n0,1\n", "r.csv:2: osl: expected an integer >= 1, got None"),
        ("arrival_s,isl,osl\n-1,1,1\n", "r.csv:2: arrival_s: expected a number >= 0, got '-1'"),
        ("arrival_s,isl,osl\nnan,1,1\n", "r.csv:2: arrival_s: expected a number >= 0, got 'nan'"),
        ("arrival_s,isl,osl\n0,0,1\n", "r.csv:2: isl: expected an integer >= 1, got '0'"),
        ("arrival_s,isl,osl\n0,inf,1\n", "r.csv:2: isl: expected an integer >= 1, got 'inf'"),
    ],
)
def test_a_file_is_refused_by_line_and_column(tmp_path, text, error):
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        RequestTraffic(file=path).requests()
    assert str(caught.value) == error


def test_too_few_and_missing_files(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("isl,osl\n1,2\n")
    with pytest.raises(ConfigError, match=r"r\.csv: expected at least 5 requests, got 1"):
        RequestTraffic(file=path, concurrency=1, num_requests=5).requests()
    with pytest.raises(ConfigError, match="cannot read this file"):
        RequestTraffic(file=tmp_path / "none.csv").requests()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"r\.csv: not valid CSV: it is not UTF-8 text"):
        RequestTraffic(file=path).requests()


@pytest.mark.parametrize(
    ("kind", "wrong", "key"),
    [
        (RequestTraffic, {}, "traffic"),
        (RequestTraffic, {"concurrency": 1, "rate_per_s": 1.0}, "traffic"),
        (RequestTraffic, {"concurrency": 0}, "traffic.concurrency"),
        (RequestTraffic, {"rate_per_s": -1.0}, "traffic.rate_per_s"),
        (RequestTraffic, {"file": Path("a"), "num_requests": 0}, "traffic.num_requests"),
        (RequestTraffic, {"concurrency": 1, "seed": -1}, "traffic.seed"),
        (ServerConfig, {"kv_blocks": 0}, "server.kv_blocks"),
        (ServerConfig, {"kv_blocks": 1, "chunk": 1.5}, "server.chunk"),
        (ServerConfig, {"kv_blocks": 1, "prefill_interval": -1}, "server.prefill_interval"),
        (ServerConfig, {"kv_blocks": 1, "tolerance": 1.0}, "server.tolerance"),
        (Speculation, {"acceptance": ()}, "server.speculation.acceptance"),
        (Speculation, {"acceptance": (0.5, 1.2)}, "server.speculation.acceptance"),
        (
            KvTransfer,
            {"latency_s": -1, "bytes_per_token": 1, "bytes_per_s": 1},
            "transfer.latency_s",
        ),
        (
            KvTransfer,
            {"latency_s": 0, "bytes_per_token": 1, "bytes_per_s": 0},
            "transfer.bytes_per_s",
        ),
    ],
)
def test_wrong_values_are_refused(kind, wrong, key):
    with pytest.raises(ConfigError) as caught:
        kind(**wrong)
    assert str(caught.value).startswith(f"{key}: expected ")
    assert "\n" not in str(caught.value)
