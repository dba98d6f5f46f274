"""The latencies, the throughput and the batches of a run.

They are counted in a steady window. It opens when as many requests have ended as there are clients,
and at least a tenth of all; it closes when the last request is sent, since the server only empties
from then on. Latencies and throughput count the requests that ended in it, inter-token latencies
the gaps that did, and means over time its whole length. Where no request ended in it, as with
fewer than two for each client, the whole run is the window, and ``steady`` is false.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moesim.report.tables import write_csv
from moesim.serving.loop.gaps import Gaps
from moesim.serving.loop.records import RequestRecord
from moesim.units import MS

if TYPE_CHECKING:
    import pandas as pd

PERCENTILES = (50, 90, 99)
_NAMES = ("mean", *(f"p{p}" for p in PERCENTILES))
#: what each latency of a row means, for wherever they are printed
DEFINITIONS = {
    "queue": "from sending a request to the first step with its prompt",
    "ttft": "from sending a request to its first token",
    "tpot": "(last token - first token) / (osl - 1)",
    "latency": "from sending a request to its last token",
    "itl": "gap between two steps that bring tokens to a request",
}
#: latencies of the requests in a row
_LATENCIES: dict[str, Callable[[RequestRecord], float | None]] = {
    "queue": lambda r: r.queue_s,
    "ttft": lambda r: r.ttft_s,
    "tpot": lambda r: r.tpot_s,
    "latency": lambda r: r.latency_s,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The interval of time that is counted, see the module's text.

    Attributes:
        open_s: Its beginning, which does not belong to it.
        close_s: Its end.
        steady: Whether warm-up and drain are cut off.
    """

    open_s: float
    close_s: float
    steady: bool

    @classmethod
    def of(cls, requests: Sequence[RequestRecord], concurrency: int | None) -> "Window":
        """Find the window of a run.

        Args:
            requests: All of its requests.
            concurrency: Number of clients; None for open traffic.
        """
        ends = sorted(r.end_s for r in requests)
        first_sent_s, last_sent_s = requests[0].sent_s, requests[-1].sent_s
        warm = max(math.ceil(len(ends) / 10), concurrency or 0)
        if warm <= len(ends):
            open_s = ends[warm - 1]
            if any(open_s < end_s <= last_sent_s for end_s in ends):
                return cls(open_s=open_s, close_s=last_sent_s, steady=True)
        # one that ends at once would end at the opening, which is not counted
        open_s = math.nextafter(first_sent_s, -math.inf)
        return cls(open_s=open_s, close_s=ends[-1], steady=False)

    def __contains__(self, time_s: float) -> bool:
        return self.open_s < time_s <= self.close_s

    @property
    def length_s(self) -> float:
        """The length of the window."""
        return self.close_s - self.open_s

    def mean_between(self, begin_s_N: np.ndarray, end_s_N: np.ndarray) -> float:
        """Return how many of N intervals last at a time, averaged over the window."""
        inside = np.minimum(end_s_N, self.close_s) - np.maximum(begin_s_N, self.open_s)
        return float(np.maximum(inside, 0.0).sum() / self.length_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingResult:
    """What a run has given.

    Attributes:
        requests: All requests, in order of sending.
        gaps: The inter-token latencies.
        window: The interval that the row counts.
        concurrency: Number of clients; None for open traffic.
        ranks: Number of attention ranks of all servers that decode.
        steps: Number of steps of all servers.
        peak_blocks: The most KV blocks in use on a rank that decodes.
        kv_blocks: The KV blocks of such a rank.
        prefill_peak_blocks: The most KV blocks in use on a rank of prefill servers; None without
            these.
    """

    requests: tuple[RequestRecord, ...]
    gaps: Gaps
    window: Window
    concurrency: int | None
    ranks: int
    steps: int
    peak_blocks: int
    kv_blocks: int
    prefill_peak_blocks: int | None = None

    def counted(self) -> list[RequestRecord]:
        """Return the requests that ended in the window."""
        return [r for r in self.requests if r.end_s in self.window]

    def row(self) -> dict[str, object]:
        """Return one flat row: the mean and percentiles of the latencies in `DEFINITIONS`, and
        rates in the window.

        ``mean_batch`` is the number of requests between their first and last token on a rank,
        averaged over time; ``mean_in_flight`` that of all requests that were sent and have not
        ended.
        """
        counted, length_s = self.counted(), self.window.length_s
        sent_N, first_N, end_N = np.array([(r.sent_s, r.first_s, r.end_s) for r in self.requests]).T
        output = sum(r.osl for r in counted)
        return {
            "num_requests": len(self.requests),
            "concurrency": self.concurrency,
            "steady": self.window.steady,
            "window_s": length_s,
            "num_counted": len(counted),
            "requests_per_s": len(counted) / length_s,
            "output_tokens_per_s": output / length_s,
            "total_tokens_per_s": (output + sum(r.isl for r in counted)) / length_s,
            **self._latencies(counted),
            "mean_in_flight": self.window.mean_between(sent_N, end_N),
            "mean_batch": self.window.mean_between(first_N, end_N) / self.ranks,
            "peak_kv_blocks": self.peak_blocks,
            "peak_kv_fraction": self.peak_blocks / self.kv_blocks,
            "peak_prefill_kv_blocks": self.prefill_peak_blocks,
            "preemptions": sum(r.preemptions for r in self.requests),
            "recomputed_tokens": sum(r.recomputed_tokens for r in self.requests),
            "steps": self.steps,
            "end_s": float(end_N.max()),
        }

    def request_rows(self) -> list[dict[str, float | None]]:
        """Return one flat row for each request."""
        return [
            {**request.row(), "counted": request.end_s in self.window} for request in self.requests
        ]

    def frame(self) -> "pd.DataFrame":
        """Return the rows of the requests as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.request_rows())

    def write_requests(self, path: str | Path) -> Path:
        """Write the rows of the requests as CSV.

        Raises:
            ConfigError: The file cannot be written.
        """
        return write_csv(path, self.request_rows())

    def _latencies(self, counted: Sequence[RequestRecord]) -> dict[str, float | None]:
        columns: dict[str, float | None] = {}
        for name, of in _LATENCIES.items():
            values = [value for r in counted if (value := of(r)) is not None]
            found = (
                [float(np.mean(values)), *np.percentile(values, PERCENTILES)] if values else None
            )
            columns |= _columns(name, found)
        itl = self.gaps.statistics(self.window.open_s, self.window.close_s, PERCENTILES)
        return columns | _columns("itl", itl)


def _columns(name: str, found: Sequence[float] | None) -> dict[str, float | None]:
    return {
        f"{name}_{which}_ms": None if found is None else float(found[i]) / MS
        for i, which in enumerate(_NAMES)
    }
