"""Limits on latency, and the most clients that a server keeps them for."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from moesim.errors import ConfigError, MoesimError, shown
from moesim.serving.loop import RequestTraffic
from moesim.serving.whole import WholeResult

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_TERM = re.compile(
    r"(ttft|tpot|itl|latency)(?:_(mean|p50|p90|p99))?<=([0-9]{1,12}(?:[.][0-9]{1,12})?)(us|ms|s)"
)
_Result = TypeVar("_Result")
#: requests of each client while the most clients are sought
_REQUESTS_PER_CLIENT = 3
MOST_CLIENTS = 1 << 16


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: a column of `ServingResult.row`, and its most milliseconds."""

    column: str
    most_ms: float

    @property
    def mean(self) -> str:
        """The column of the mean."""
        return re.sub(r"_(p50|p90|p99)_", "_mean_", self.column)

    def keeps(self, result: WholeResult) -> bool:
        """Return whether a run kept it; where a steady state has no percentile, its mean must."""
        row = result.loop.row()
        value = row[self.column]
        if value is None:
            value = row[self.mean]
        return value is None or float(str(value)) <= self.most_ms


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Return the limits in a text such as ``ttft<=2s,tpot<=50ms``; ``tpot_p50<=40ms`` names another
    percentile than the 90th.

    Raises:
        ConfigError: The text has another form.
    """
    found = []
    for term in text.replace(" ", "").split(","):
        match = _TERM.fullmatch(term)
        # nothing takes no time, and a limit is divided by
        if match is None or not float(match[3]) > 0:
            raise ConfigError(
                f"slo: expected terms such as ttft<=2s,tpot<=50ms or itl_p99<=80ms, got "
                f"{shown(text)}"
            )
        name, which, number, unit = match.groups()
        found.append(Limit(f"{name}_{which or 'p90'}_ms", float(number) * _UNITS[unit]))
    return tuple(found)


def most_clients(
    run: Callable[[RequestTraffic], WholeResult], traffic: RequestTraffic, limits: tuple[Limit, ...]
) -> WholeResult | None:
    """Return the run with the most clients of a closed loop that keeps all limits; None if not even
    one client's requests do.

    More clients never wait less, so that their number is doubled and then halved into place, to an
    eighth.

    Args:
        run: Serves requests.
        traffic: The requests; its number of clients is replaced.
        limits: The limits.
    """

    def at(clients: int) -> WholeResult | None:
        asked = replace(
            traffic,
            concurrency=clients,
            rate_per_s=None,
            num_requests=max(_REQUESTS_PER_CLIENT * clients, 16),
        )
        try:
            found = run(asked)
        except MoesimError:
            if clients == 1:
                raise
            return None
        return found if all(limit.keeps(found) for limit in limits) else None

    best, clients = at(1), 1
    if best is None:
        return None
    while clients < MOST_CLIENTS and (more := at(2 * clients)) is not None:
        # a batch that is full leaves the rest waiting: more clients add nothing
        if _rate(more) <= _rate(best) * 1.005 and clients > 1:
            return best
        best, clients = more, 2 * clients
    step = clients // 2
    while step >= max(clients // 8, 1):
        if (more := at(clients + step)) is not None:
            best, clients = more, clients + step
        step //= 2
    return best


def _rate(result: WholeResult) -> float:
    return float(str(result.loop.row()["output_tokens_per_s"]))
