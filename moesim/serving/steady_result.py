"""What the steady state of a closed loop is: the columns of a request loop's result."""

from dataclasses import dataclass

from moesim.serving.loop.records import RequestRecord
from moesim.units import MS

#: latencies of `ServingResult.row`
_LATENCIES = ("queue", "ttft", "tpot", "latency", "itl")
_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyResult:
    """The steady state of a closed loop, with the columns of a `ServingResult`.

    Attributes:
        concurrency: Number of clients.
        isl: Mean tokens of a prompt.
        osl: Mean tokens of an answer.
        batch: Requests that a rank has admitted.
        mean_batch: Requests of a rank between their first and last token, averaged over time.
        cycle_s: Seconds from the admission of a request to that of the next in its place.
        ttft_s: Mean TTFT, of which ``queue_s`` before the first step with the prompt.
        queue_s: See there.
        tpot_s: Mean TPOT; None for answers of one token.
        spread_s: How much longer than the mean the last prompt of a burst of equal requests waits,
            and about how much shorter the first; None where requests end one by one.
        requests_per_s: Requests of all servers that end in a second.
        kv_fraction: KV blocks of a rank in use when all its requests are about to end, over those
            it has.
        kv_blocks: KV blocks of a rank.
    """

    concurrency: int
    isl: float
    osl: float
    batch: float
    mean_batch: float
    cycle_s: float
    ttft_s: float
    queue_s: float
    tpot_s: float | None
    spread_s: float | None
    requests_per_s: float
    kv_fraction: float
    kv_blocks: int

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """No request is followed by itself."""
        return ()

    def row(self) -> dict[str, object]:
        """Return one flat row with the columns of `ServingResult.row`; what only single requests
        tell is None.

        In a burst TTFT grows evenly from the first prompt to the last; the requests end together,
        so that who waits longer decodes in less time.
        """
        latency_s = self.ttft_s + (self.tpot_s or 0.0) * (self.osl - 1.0)
        means = {
            "queue": self.queue_s,
            "ttft": self.ttft_s,
            "tpot": self.tpot_s,
            "latency": latency_s,
            "itl": None,
        }
        columns: dict[str, object] = {
            "num_requests": None,
            "concurrency": self.concurrency,
            "steady": True,
            "window_s": None,
            "num_counted": None,
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s": self.requests_per_s * self.osl,
            "total_tokens_per_s": self.requests_per_s * (self.osl + self.isl),
        }
        widths = dict.fromkeys(_LATENCIES, None) | self._widths()
        for name in _LATENCIES:
            mean_s, width_s = means[name], widths[name]
            columns[f"{name}_mean_ms"] = None if mean_s is None else mean_s / MS
            for which, share in _SHARES.items():
                found = None
                if mean_s is not None and width_s is not None:
                    found = mean_s + (2.0 * share - 1.0) * width_s
                columns[f"{name}_{which}_ms"] = None if found is None else found / MS
        return columns | {
            "mean_in_flight": float(self.concurrency),
            "mean_batch": self.mean_batch,
            "peak_kv_blocks": round(self.kv_fraction * self.kv_blocks),
            "peak_kv_fraction": self.kv_fraction,
            "peak_prefill_kv_blocks": None,
            "preemptions": None,
            "recomputed_tokens": None,
            "steps": None,
            "end_s": None,
        }

    def _widths(self) -> dict[str, float | None]:
        """Return how far latencies reach to either side of their means."""
        if self.spread_s is None:
            return {}
        tpot_s = self.spread_s / (self.osl - 1.0) if self.osl > 1.0 else None
        return {"ttft": self.spread_s, "tpot": tpot_s, "latency": 0.0}
