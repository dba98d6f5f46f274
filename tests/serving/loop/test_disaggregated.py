"""Two pools: a prompt is prefilled in one, transferred, and decoded in the other."""

import math

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.serving.loop import (
    DisaggregatedConfig,
    KvTransfer,
    RequestTraffic,
    ServerConfig,
    serve,
    serve_disaggregated,
)
from moesim.units import MS

ROOM = 10**6
TRANSFER = KvTransfer(latency_s=1e-3, bytes_per_token=70_000, bytes_per_s=50e9)


def pools(prefill=None, decode=None, transfer=TRANSFER):
    return DisaggregatedConfig(
        prefill=ServerConfig(**{"kv_blocks": ROOM} | (prefill or {})),
        decode=ServerConfig(**{"kv_blocks": ROOM} | (decode or {})),
        transfer_s=transfer,
    )


def test_alone_ttft_is_prefill_and_transfer(affine):
    isl, osl = 1000, 50
    times = affine()
    found = serve_disaggregated(
        times,
        affine(launch_s=1e-3),
        pools(),
        RequestTraffic(concurrency=1, isl=isl, osl=osl, num_requests=4),
    )
    prefill_s = times.launch_s + isl * (times.token_s + times.pair_s * (isl - 1) / 2)
    steps_s = [1e-3 + times.sequence_s + times.read_s * (isl + s) for s in range(1, osl)]
    assert TRANSFER(isl) == pytest.approx(1e-3 + 1000 * 70_000 / 50e9)
    for record in found.requests:
        assert record.ttft_s == pytest.approx(prefill_s + TRANSFER(isl))
        assert record.tpot_s == pytest.approx(np.mean(steps_s))
    assert found.gaps.count() == 4 * (osl - 1)


@pytest.mark.parametrize("osl", [1, "uniform:1-3", "uniform:1-200"])
@pytest.mark.parametrize("decode", [{}, {"kv_blocks": 60}, {"max_seqs": 2, "dp": 2}])
@pytest.mark.parametrize("prefill", [{}, {"kv_blocks": 20}, {"replicas": 2, "chunk": 64}])
def test_every_request_ends_once(prefill, decode, osl, affine):
    traffic = RequestTraffic(concurrency=20, isl="uniform:1-300", osl=osl)
    found = serve_disaggregated(affine(), affine(), pools(prefill, decode), traffic)
    requests = traffic.requests()
    assert [r.osl for r in found.requests] == requests.osl_N.tolist()
    assert found.gaps.count() == sum(requests.osl_N) - len(requests.osl_N)
    for r in found.requests:
        assert r.sent_s <= r.start_s < r.first_s <= r.end_s
        assert (r.first_s < r.end_s) == (r.osl > 1)
    assert found.peak_blocks <= found.kv_blocks
    assert found.prefill_peak_blocks <= prefill.get("kv_blocks", ROOM)
    if decode == {"kv_blocks": 60} and osl == "uniform:1-200":
        assert found.row()["preemptions"] > 0
    row = found.row()
    assert row["steady"]
    assert row["mean_in_flight"] == pytest.approx(20)


def test_decoding_is_never_stalled_by_prompts(affine):
    traffic = RequestTraffic(rate_per_s=6.0, isl=4096, osl="uniform:100-300", num_requests=300)
    apart = serve_disaggregated(affine(), affine(), pools(), traffic).row()
    together = serve(affine(), ServerConfig(kv_blocks=ROOM, mixed=False), traffic).row()
    assert apart["itl_p99_ms"] < together["itl_p99_ms"] / 5
    assert apart["mean_batch"] < 100


@pytest.mark.parametrize("at_once", [1, 2])
def test_prefill_blocks_are_held_until_they_are_transferred(at_once, affine):
    """With room for one prompt, the next begins when the first has left."""
    traffic = RequestTraffic(concurrency=3, isl=160, osl=2, num_requests=3)
    slow = pools({"kv_blocks": 10 * at_once, "chunk": 160}, transfer=lambda tokens: 1.0)
    found = serve_disaggregated(affine(), affine(), slow, traffic)
    prefill_s = found.requests[0].first_s - 1.0
    for number, record in enumerate(found.requests):
        waves, place = divmod(number, at_once)
        start_s = waves * (prefill_s + 1.0) + place * prefill_s
        assert record.start_s == pytest.approx(start_s)
    assert found.row()["peak_prefill_kv_blocks"] == 10 * at_once


def test_those_that_are_prefilled_together_decode_in_order(affine):
    """Four ranks end in one step; the decode server takes one request at a time."""
    found = serve_disaggregated(
        affine(),
        affine(),
        pools({"dp": 4}, {"max_seqs": 1}),
        RequestTraffic(concurrency=4, isl=100, osl=20, num_requests=4),
    )
    assert len({r.start_s for r in found.requests}) == 1
    assert [r.first_s for r in found.requests[1:]] == [r.end_s for r in found.requests[:-1]]


def test_jumps_and_steps_agree(affine):
    traffic = RequestTraffic(concurrency=30, isl="uniform:1-300", osl="uniform:1-300")
    exact, jumped = (
        serve_disaggregated(
            affine(), affine(), pools({}, {"kv_blocks": 300, "tolerance": tolerance}), traffic
        )
        for tolerance in (0.0, 1e-3)
    )
    assert exact.row()["preemptions"] > 0
    ends = [[r.end_s for r in found.requests] for found in (exact, jumped)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)
    assert math.isclose(exact.row()["end_s"], max(ends[0]))


@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_the_pool_that_is_too_small_is_named(pool, affine):
    small = pools(**{pool: {"kv_blocks": 5}})
    with pytest.raises(ConfigError, match=rf"^{pool}\.kv_blocks: expected at least .* too few$"):
        serve_disaggregated(
            affine(), affine(), small, RequestTraffic(concurrency=1, isl=100, osl=9)
        )


def test_the_first_token_waits_for_the_decode_servers_blocks(affine):
    traffic = RequestTraffic(concurrency=16, isl=320, osl=160, num_requests=160)
    wide, narrow = (
        serve_disaggregated(affine(), affine(), pools({}, {"kv_blocks": n}), traffic).row()
        for n in (1000, 60)
    )
    assert narrow["ttft_mean_ms"] > 5 * wide["ttft_mean_ms"]
    assert narrow["queue_mean_ms"] * MS < 1
