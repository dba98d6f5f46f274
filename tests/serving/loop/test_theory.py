"""The loop where the answer is known: alone, in queues, under Little's law, short of memory."""

import math
from itertools import pairwise

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.serving.loop import RequestTraffic, ServerConfig, Speculation, serve
from moesim.serving.loop.decoding import Decoding
from moesim.serving.loop.job import Job
from moesim.units import MS

pytestmark = pytest.mark.full

ROOM = 10**6


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("chunk", [8192, 300])
def test_alone_ttft_is_the_prefill_and_tpot_the_step(mixed, chunk, affine):
    isl, osl = 1000, 101
    times = affine()
    found = serve(
        times,
        ServerConfig(kv_blocks=ROOM, chunk=chunk, mixed=mixed),
        RequestTraffic(concurrency=1, isl=isl, osl=osl, num_requests=5),
    )
    chunks = math.ceil(isl / chunk)
    # attention of a prompt is the same in one piece or several: isl (isl - 1) / 2 pairs before it
    ttft_s = chunks * times.launch_s + isl * (times.token_s + times.pair_s * (isl - 1) / 2)
    steps_s = [times.launch_s + times.sequence_s + times.read_s * (isl + s) for s in range(1, osl)]
    for record in found.requests:
        assert record.queue_s == 0
        assert record.ttft_s == pytest.approx(ttft_s)
        assert record.tpot_s == pytest.approx(np.mean(steps_s))
    row = found.row()
    assert row["steady"]
    assert row["num_counted"] == 3
    assert row["itl_mean_ms"] == pytest.approx(np.mean(steps_s) / MS)
    assert row["mean_in_flight"] == pytest.approx(1)
    assert row["output_tokens_per_s"] == pytest.approx(osl / (ttft_s + sum(steps_s)))
    assert row["peak_kv_blocks"] == math.ceil((isl + osl - 1) / 16)


@pytest.mark.parametrize("load", [0.3, 0.7])
@pytest.mark.parametrize(("isl", "squared_variation"), [(100, 0.0), ("uniform:1-199", None)])
def test_the_queue_is_that_of_pollaczek_and_khinchine(load, isl, squared_variation, affine):
    """M/G/1: mean wait = load / (1 - load) * mean service * (1 + squared variation) / 2
    (Kleinrock, Queueing Systems I, equation 5.71). One request at a time, answers of one token.
    """
    times = affine(launch_s=1e-12, token_s=1e-3, pair_s=0.0)
    if squared_variation is None:
        lengths = np.arange(1, 200)
        squared_variation = lengths.var() / lengths.mean() ** 2
    service_s = 0.1
    found = serve(
        times,
        ServerConfig(kv_blocks=ROOM, max_seqs=1),
        RequestTraffic(rate_per_s=load / service_s, isl=isl, osl=1, num_requests=60_000),
    )
    wait_s = load / (1 - load) * service_s * (1 + squared_variation) / 2
    row = found.row()
    assert row["queue_mean_ms"] * MS == pytest.approx(wait_s, rel=0.05)
    assert row["requests_per_s"] == pytest.approx(load / service_s, rel=0.02)
    assert row["tpot_mean_ms"] is row["itl_p99_ms"] is None


@pytest.mark.parametrize("concurrency", [8, 60])
@pytest.mark.parametrize("server", [{}, {"dp": 4}, {"replicas": 3, "max_seqs": 7}])
def test_littles_law(concurrency, server, affine):
    row = serve(
        affine(),
        ServerConfig(kv_blocks=ROOM, **server),
        RequestTraffic(
            concurrency=concurrency,
            isl="uniform:50-150",
            osl="uniform:50-150",
            num_requests=40 * concurrency,
        ),
    ).row()
    assert row["steady"]
    assert row["mean_in_flight"] == pytest.approx(concurrency, rel=1e-9)
    in_flight = row["requests_per_s"] * row["latency_mean_ms"] * MS
    assert in_flight == pytest.approx(concurrency, rel=0.03)


@pytest.mark.parametrize("dp", [1, 4])
def test_equal_requests_come_in_equal_waves(dp, affine):
    """All clients begin, prefill and end together, so that a wave's time is known."""
    times, clients, isl, osl = affine(), 16, 64, 33
    count = clients // dp
    row = serve(
        times,
        ServerConfig(kv_blocks=ROOM, dp=dp),
        RequestTraffic(concurrency=clients, isl=isl, osl=osl, num_requests=5 * clients),
    ).row()
    prefill_s = times.launch_s + count * isl * (times.token_s + times.pair_s * (isl - 1) / 2)
    steps_s = [
        times.launch_s + count * (times.sequence_s + times.read_s * (isl + s))
        for s in range(1, osl)
    ]
    assert row["output_tokens_per_s"] == pytest.approx(clients * osl / (prefill_s + sum(steps_s)))
    assert row["mean_batch"] == pytest.approx(count * sum(steps_s) / (prefill_s + sum(steps_s)))


def test_fewer_kv_blocks_mean_longer_queues(affine):
    traffic = RequestTraffic(concurrency=64, isl=1024, osl="uniform:100-400", num_requests=640)
    rows = [serve(affine(), ServerConfig(kv_blocks=n), traffic).row() for n in (5800, 2900, 1450)]
    for more, fewer in pairwise(rows):
        assert fewer["ttft_mean_ms"] > 1.5 * more["ttft_mean_ms"]
        assert fewer["queue_mean_ms"] > 1.5 * more["queue_mean_ms"]
        assert fewer["output_tokens_per_s"] < more["output_tokens_per_s"]
        assert fewer["mean_batch"] < more["mean_batch"]
    assert rows[0]["preemptions"] == rows[0]["recomputed_tokens"] == 0
    assert rows[2]["preemptions"] > 0
    assert rows[2]["recomputed_tokens"] > 1024 * rows[2]["preemptions"] / 2


def test_mixed_steps_do_not_stall_decoding(affine):
    """Prompts that come while others decode: separate steps stretch the worst gaps."""
    traffic = RequestTraffic(concurrency=32, isl=4096, osl="uniform:100-300", num_requests=320)
    rows = {
        mixed: serve(affine(), ServerConfig(kv_blocks=ROOM, chunk=512, mixed=mixed), traffic).row()
        for mixed in (True, False)
    }
    assert rows[False]["itl_p99_ms"] > 2 * rows[True]["itl_p99_ms"]
    assert rows[False]["itl_p50_ms"] < rows[True]["itl_p50_ms"]


def test_a_prefill_interval_trades_ttft_for_tpot(affine):
    traffic = RequestTraffic(concurrency=32, isl=2048, osl="uniform:100-300", num_requests=320)
    eager, patient = (
        serve(
            affine(), ServerConfig(kv_blocks=ROOM, mixed=False, prefill_interval=n), traffic
        ).row()
        for n in (0, 20)
    )
    assert patient["ttft_mean_ms"] > eager["ttft_mean_ms"]
    assert patient["tpot_mean_ms"] < eager["tpot_mean_ms"]


def test_ranks_meet_at_the_slowest(affine):
    """Two prompts on two ranks, one ten times as long: the short one's first token waits for it."""
    times = affine(pair_s=0.0)
    traffic = RequestTraffic(concurrency=2, isl="uniform:10-1000", osl=1, num_requests=2)
    found = serve(times, ServerConfig(kv_blocks=ROOM, dp=2), traffic)
    longest = max(r.isl for r in found.requests)
    for record in found.requests:
        assert record.first_s == pytest.approx(times.launch_s + longest * times.token_s)


def test_speculation_gains_the_expected_tokens(affine):
    acceptance = (0.75, 2 / 3)  # 1 + 3/4 + 1/2 tokens a step
    speculation = Speculation(acceptance=acceptance)
    assert speculation.tokens_per_step == pytest.approx(2.25)
    times, isl, osl = affine(read_s=0.0), 160, 91
    config = ServerConfig(kv_blocks=ROOM, speculation=speculation)
    found = serve(times, config, RequestTraffic(concurrency=1, isl=isl, osl=osl, num_requests=3))
    steps = 90 / 2.25
    assert found.gaps.count() == 3 * steps
    step_s = times.launch_s + 3 * times.sequence_s
    assert found.requests[0].tpot_s == pytest.approx(step_s / 2.25)
    # the last step's context plus its draft, but no more than the answer and a draft
    assert found.peak_blocks == math.ceil((isl + 1 + 39 * 2.25 + 2) / 16)


def test_expected_tokens_begin_no_block_too_many(affine):
    """At 1.6 tokens a step the second step would reach 2.6 tokens of an answer of 3."""
    config = ServerConfig(kv_blocks=1, speculation=Speculation(acceptance=(0.6,)))
    found = serve(affine(), config, RequestTraffic(concurrency=1, isl=13, osl=3))
    assert found.row()["preemptions"] == 0
    assert found.peak_blocks == 1


@pytest.mark.parametrize("acceptance", [0.1, 0.3, 0.7])
def test_rounding_begins_no_block(acceptance):
    """A prompt of 14 tokens, its first token and a draft fill a block, whenever it begins."""
    decoding = Decoding(
        ServerConfig(kv_blocks=1, speculation=Speculation(acceptance=(acceptance,)))
    )
    for clock in range(1000):
        job = Job(clock, 14, 40, 0.0)
        job.emitted = 1
        decoding.add(job)
        assert decoding.blocks(0) == 1
        decoding.remove(job)
        decoding.advance(1)


def test_rounding_adds_no_step_and_takes_no_token():
    """In binary, 1.4 tokens a step are not quite 21 tokens in 15 steps, nor 63 in 45."""
    decoding = Decoding(ServerConfig(kv_blocks=1, speculation=Speculation(acceptance=(0.4,))))
    short, long = Job(0, 1, 22, 0.0), Job(1, 1, 200, 0.0)
    for job in (short, long):
        job.emitted = 1
        decoding.add(job)
    assert decoding.steps_within(10**6) == 15
    assert decoding.advance(15) == [short]
    decoding.advance(30)
    decoding.remove(long)
    assert (short.emitted, long.emitted) == (22, 64)


def test_what_never_fits_is_refused(affine):
    config = ServerConfig(kv_blocks=12, replicas=2)
    fits = RequestTraffic(concurrency=3, isl=101, osl=92)
    assert len(serve(affine(), config, fits).requests) == 30
    with pytest.raises(ConfigError) as caught:
        serve(affine(), config, RequestTraffic(concurrency=3, isl=101, osl=93 + 16))
    assert str(caught.value) == (
        "server.kv_blocks: expected at least 14 blocks of 16 tokens for request 0 (isl 101, osl "
        "109), got 12: 2 too few"
    )


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_step_takes_time(seconds):
    class Wrong:
        def step_s(self, **_):
            return seconds

    with pytest.raises(ConfigError, match=r"^step_s: expected seconds > 0, got "):
        serve(Wrong(), ServerConfig(kv_blocks=ROOM), RequestTraffic(concurrency=1))
