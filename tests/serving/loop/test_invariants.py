"""What holds for every server and every traffic."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.serving.loop import RequestTraffic, ServerConfig, Speculation, serve
from moesim.serving.loop.rank import Rank
from moesim.serving.loop.result import DEFINITIONS

BLOCK = 4
servers = st.builds(
    ServerConfig,
    kv_blocks=st.integers(13, 60),  # the longest request takes 13
    block_size=st.just(BLOCK),
    replicas=st.integers(1, 2),
    dp=st.integers(1, 3),
    chunk=st.integers(1, 40),
    max_seqs=st.integers(1, 9),
    prefill_interval=st.integers(0, 4),
    mixed=st.booleans(),
    speculation=st.none() | st.just(Speculation(acceptance=(0.7, 0.4))),
    tolerance=st.sampled_from([0.0, 1e-3]),
)
traffics = st.builds(
    lambda arrivals, seed: RequestTraffic(
        isl="uniform:1-25", osl="uniform:1-25", num_requests=40, seed=seed, **arrivals
    ),
    st.builds(lambda n: {"concurrency": n}, st.integers(1, 20))
    | st.builds(lambda rate: {"rate_per_s": rate}, st.floats(1.0, 200.0)),
    st.integers(0, 99),
)


class Watched(Rank):
    """A rank that is checked after every step."""

    def __init__(self, config, gaps, *, prefill_only):
        super().__init__(config, gaps, prefill_only=prefill_only)
        self.config = config

    def complete(self, stretch, steps, begin_s):
        left = super().complete(stretch, steps, begin_s)
        waiting = {job.id for job in self.waiting}
        assert not waiting & self._admitted.keys()
        assert len(self._admitted) <= self.config.max_seqs
        assert len(self._admitted) == len(self.decoding) + len(self._prefilling)
        assert self._reserved == sum(job.blocks for job in self._prefilling.values())
        assert self.peak_blocks <= self.config.kv_blocks
        assert sum(count for _, count in self._since) == len(self.decoding) or not self.decodes
        assert sum(count for _, count in self.chunks) <= self.config.chunk
        return left


@given(server=servers, traffic=traffics)
@settings(max_examples=150, deadline=None)
def test_every_run_keeps_its_books(server, traffic, affine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moesim.serving.loop.replica.Rank", Watched)
        found = serve(affine(), server, traffic)
    # every request ends once, in order of its events, with the lengths that were drawn
    requests = traffic.requests()
    assert [r.id for r in found.requests] == list(range(40))
    assert [r.isl for r in found.requests] == requests.isl_N.tolist()
    assert [r.osl for r in found.requests] == requests.osl_N.tolist()
    for r in found.requests:
        assert r.sent_s <= r.start_s < r.first_s <= r.end_s
        assert (r.first_s < r.end_s) == (r.osl > 1)
        assert (r.recomputed_tokens > 0) <= (r.preemptions > 0)
    # tokens in are tokens out: each token but the first has a gap of its own
    if server.speculation is None:
        assert found.gaps.count() == requests.osl_N.sum() - 40
    if traffic.concurrency is not None:
        check_closed(found.requests, traffic.concurrency)


def check_closed(requests, concurrency):
    """Exactly the clients' number is in flight until the last request has been sent."""
    clients = min(concurrency, len(requests))
    assert all(r.sent_s == 0 for r in requests[:clients])
    ends = Counter(r.end_s for r in requests)
    sent = Counter(r.sent_s for r in requests[clients:])
    last = requests[-1].sent_s
    assert {time: n for time, n in ends.items() if time < last and sent[time] != n} == {}


def test_the_same_seed_gives_the_same_run(affine):
    config = ServerConfig(kv_blocks=100, dp=2, replicas=2, chunk=100)
    traffic = RequestTraffic(rate_per_s=50.0, isl="uniform:1-400", osl="uniform:1-99", seed=5)
    one, two = serve(affine(), config, traffic), serve(affine(), config, traffic)
    assert one.row() == two.row()
    assert one.requests == two.requests


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("concurrency", [1, 64])
def test_a_jump_asks_for_few_steps(concurrency, mixed, affine):
    """1,000 answers of 1,024 tokens, whose steps would be 10^6 without jumps and batches."""
    traffic = RequestTraffic(concurrency=concurrency, osl="uniform:512-1024", num_requests=1000)
    config = ServerConfig(kv_blocks=10**5, mixed=mixed)
    jumped, stepped = affine(), affine()
    row = serve(jumped, config, traffic).row()
    assert jumped.calls <= 4 * 1000
    if concurrency > 1:
        exact = serve(
            stepped, ServerConfig(kv_blocks=10**5, mixed=mixed, tolerance=0.0), traffic
        ).row()
        assert stepped.calls == exact["steps"] > 3 * jumped.calls
        for column, value in exact.items():
            off = 0.01 if column.startswith("itl") else 1e-9
            assert row[column] == (value if value is None else pytest.approx(value, rel=off)), (
                column
            )


def test_a_jump_is_within_its_tolerance(bent):
    """Steps that bend, with answers long enough that they bend within a jump."""
    traffic = RequestTraffic(concurrency=4, isl=100, osl="uniform:2000-9000", num_requests=40)
    exact, coarse = (
        serve(bent(), ServerConfig(kv_blocks=10**5, tolerance=tolerance), traffic)
        for tolerance in (0.0, 1e-2)
    )
    for r, s in zip(exact.requests, coarse.requests, strict=True):
        assert s.end_s == pytest.approx(r.end_s, rel=1e-2)
        assert s.tpot_s == pytest.approx(r.tpot_s, rel=1e-2)


def test_every_latency_is_defined(affine):
    row = serve(affine(), ServerConfig(kv_blocks=1000), RequestTraffic(concurrency=2)).row()
    latencies = {name.removesuffix("_mean_ms") for name in row if name.endswith("_mean_ms")}
    assert latencies == set(DEFINITIONS)


def test_rows_and_files(affine, tmp_path):
    found = serve(affine(), ServerConfig(kv_blocks=1000), RequestTraffic(concurrency=2, osl=1))
    assert all(isinstance(value, int | float | bool | None) for value in found.row().values())
    lines = found.write_requests(tmp_path / "out" / "requests.csv").read_text().splitlines()
    header = lines[0].split(",")
    assert header[:3] == ["request", "isl", "osl"]
    assert len(lines) == 21
    frame = found.frame()
    assert frame.columns.tolist() == header
    assert frame["counted"].sum() == len(found.counted()) == found.row()["num_counted"]
    assert frame["tpot_ms"].isna().all()
    assert math.isclose(frame["ttft_ms"].mean(), frame["latency_ms"].mean())
