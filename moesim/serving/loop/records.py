"""What a run tells about each request.

- TTFT (time to first token): from sending the request to the first token of its answer.
- Queue time: from sending to the first step that computes its prompt.
- TPOT (time per output token): (last token - first token) / (osl - 1); none for an answer of one
  token.
- Latency: from sending to the last token.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from moesim.serving.loop.job import Job
from moesim.units import MS


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request that was served.

    Attributes:
        id: Its number, in order of sending.
        isl: Tokens of its prompt.
        osl: Tokens of its answer.
        sent_s: When it was sent.
        start_s: When the first step with its prompt began.
        first_s: When its first token came.
        end_s: When its last token came.
        preemptions: How often it lost its KV blocks.
        recomputed_tokens: Tokens that were computed again because of that.
    """

    id: int
    isl: int
    osl: int
    sent_s: float
    start_s: float
    first_s: float
    end_s: float
    preemptions: int
    recomputed_tokens: int

    @property
    def queue_s(self) -> float:
        """The queue time."""
        return self.start_s - self.sent_s

    @property
    def ttft_s(self) -> float:
        """The time to first token."""
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """The time per output token; None for an answer of one token."""
        return (self.end_s - self.first_s) / (self.osl - 1) if self.osl > 1 else None

    @property
    def latency_s(self) -> float:
        """The time from sending to the last token."""
        return self.end_s - self.sent_s

    def row(self) -> dict[str, float | None]:
        """Return a flat row for a CSV file, with units in the column names."""
        return {
            "request": self.id,
            "isl": self.isl,
            "osl": self.osl,
            "sent_s": self.sent_s,
            "start_s": self.start_s,
            "first_token_s": self.first_s,
            "end_s": self.end_s,
            "queue_ms": self.queue_s / MS,
            "ttft_ms": self.ttft_s / MS,
            "tpot_ms": None if self.tpot_s is None else self.tpot_s / MS,
            "latency_ms": self.latency_s / MS,
            "preemptions": self.preemptions,
            "recomputed_tokens": self.recomputed_tokens,
        }


def records_of(jobs: Iterable[Job]) -> tuple[RequestRecord, ...]:
    """Return the records of requests that have all ended."""
    records = []
    for job in jobs:
        assert job.start_s is not None
        assert job.first_s is not None
        assert job.end_s is not None
        records.append(
            RequestRecord(
                id=job.id,
                isl=job.isl,
                osl=job.osl,
                sent_s=job.sent_s,
                start_s=job.start_s,
                first_s=job.first_s,
                end_s=job.end_s,
                preemptions=job.preemptions,
                recomputed_tokens=job.recomputed_tokens,
            )
        )
    return tuple(records)
