"""The requests that are sent to a server: when each is sent, and how many tokens it has.

In a closed loop a fixed number of clients each send a request when their last one has ended. Open
traffic is sent whatever the server does: at random (Poisson arrivals) or at the times of a file.

A file of requests is a CSV with the columns ``isl`` and ``osl`` (tokens of the prompt and of the
answer) and, for arrivals of its own, ``arrival_s``. Other columns are ignored.

Shape legend: N requests.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import ConfigError, require, require_int
from moesim.files.texts import read_csv
from moesim.limits import check_request
from moesim.serving.loop.lengths import Lengths

#: requests sent without a stated number: so many for each client, or so many of open traffic
REQUESTS_PER_CLIENT, OPEN_REQUESTS = 10, 1000

#: requests that a loop goes through one by one, and clients with ten of them each
_MOST_REQUESTS, _MOST_CLIENTS = 1 << 22, 1 << 18
#: bytes and microseconds of a request in the loop, as measured: of few clients it takes the double,
#: of hundreds, whose steps are shared, a third
REQUEST_BYTES, REQUEST_US = 1500.0, 800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """The requests of one run.

    Attributes:
        arrival_s_N: ndarray of shape (N,): when each is sent, ascending; None in a closed loop.
        isl_N: ndarray of shape (N,): tokens of each prompt.
        osl_N: ndarray of shape (N,): tokens of each answer.
    """

    arrival_s_N: np.ndarray | None
    isl_N: np.ndarray
    osl_N: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTraffic:
    """What is sent to a server.

    Attributes:
        concurrency: Number of clients of a closed loop.
        rate_per_s: Mean rate of Poisson arrivals.
        file: CSV file of requests, whose ``arrival_s`` counts if neither of the former is given.
        num_requests: Number of requests; by default all of the file, ten for each client, or 1,000
            of open traffic.
        isl: Tokens of a prompt (input sequence length), see `moesim.serving.loop.lengths`.
        osl: Tokens of an answer (output sequence length), in the same forms.
        seed: Seed of the lengths and of the arrivals, which are independent streams.

    Raises:
        ConfigError: A number is out of range, a length cannot be read, or arrivals are given twice
            or not at all.
    """

    concurrency: int | None = None
    rate_per_s: float | None = None
    file: Path | None = None
    num_requests: int | None = None
    isl: str | int = 1024
    osl: str | int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        given = [v for v in (self.concurrency, self.rate_per_s) if v is not None]
        if len(given) > 1 or (not given and self.file is None):
            raise ConfigError(
                "traffic: expected exactly one of concurrency, rate_per_s and arrivals in a file, "
                f"got concurrency {self.concurrency!r} and rate_per_s {self.rate_per_s!r}"
            )
        if self.concurrency is not None:
            require_int("traffic.concurrency", self.concurrency, 1, _MOST_CLIENTS)
        if self.rate_per_s is not None:
            require(
                0 < self.rate_per_s < math.inf,
                "traffic.rate_per_s",
                "a number > 0",
                self.rate_per_s,
            )
        if self.num_requests is not None:
            require_int("traffic.num_requests", self.num_requests, 1, _MOST_REQUESTS)
        require_int("traffic.seed", self.seed, 0)
        Lengths.parse(self.isl, "traffic.isl")
        Lengths.parse(self.osl, "traffic.osl")

    def requests(self) -> Requests:
        """Draw or read the requests.

        Raises:
            ConfigError: The file cannot be read, breaks a rule (the text names line and column), or
                has too few requests.
            CapacityError: There would be more than anybody waits for.
        """
        if self.file is not None:
            found = self._from_file(self.file)
        else:
            count = self.num_requests or (
                OPEN_REQUESTS
                if self.concurrency is None
                else REQUESTS_PER_CLIENT * self.concurrency
            )
            check_request(
                f"{count:,} requests",
                memory_bytes=REQUEST_BYTES * count,
                work_us=REQUEST_US * count,
                advice="fewer requests or clients",
            )
            isl_N, osl_N = (
                Lengths.parse(text, "traffic").draw(count, np.random.default_rng([self.seed, i]))
                for i, text in enumerate((self.isl, self.osl))
            )
            found = Requests(arrival_s_N=None, isl_N=isl_N, osl_N=osl_N)
        if self.rate_per_s is None:
            return found
        waits = np.random.default_rng([self.seed, 2]).exponential(
            1 / self.rate_per_s, len(found.isl_N)
        )
        return Requests(arrival_s_N=np.cumsum(waits), isl_N=found.isl_N, osl_N=found.osl_N)

    def _from_file(self, path: Path) -> Requests:
        own_arrivals = self.concurrency is None and self.rate_per_s is None
        found = read_requests(path, arrivals=own_arrivals)
        count = self.num_requests or len(found.isl_N)
        if count > len(found.isl_N):
            raise ConfigError(
                f"{path.name}: expected at least {count} requests, got {len(found.isl_N)}"
            )
        return Requests(
            arrival_s_N=None if found.arrival_s_N is None else found.arrival_s_N[:count],
            isl_N=found.isl_N[:count],
            osl_N=found.osl_N[:count],
        )


def read_requests(path: str | Path, *, arrivals: bool) -> Requests:
    """Read a CSV file of requests.

    Args:
        path: The file.
        arrivals: Whether the column ``arrival_s`` is read; then the requests are in its order.

    Raises:
        ConfigError: The file does not exist, a column is missing, or a value is impossible. The
            text names the file, the line and the column.
    """
    path = Path(path)
    columns = ("arrival_s", "isl", "osl") if arrivals else ("isl", "osl")
    table = read_csv(path)
    if missing := [name for name in columns if name not in table.header]:
        raise ConfigError(
            f"{path.name}: expected columns {', '.join(columns)}, without {', '.join(missing)}"
        )
    rows = [
        [_value(row.get(name), name, f"{path.name}:{line}: {name}") for name in columns]
        for line, row in table.rows
    ]
    if not rows:
        raise ConfigError(f"{path.name}: expected at least one request, got none")
    table_NC = np.array(rows)
    arrival_s_N = None
    if arrivals:
        # stable: requests that arrive together keep the order of the file
        table_NC = table_NC[np.argsort(table_NC[:, 0], kind="stable")]
        arrival_s_N = table_NC[:, 0]
    isl_N, osl_N = table_NC[:, -2:].astype(np.int64).T
    return Requests(arrival_s_N=arrival_s_N, isl_N=isl_N, osl_N=osl_N)


def _value(text: str | None, name: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if name == "arrival_s":
        require(0 <= value < math.inf, where, "a number >= 0", text)
    else:
        require(1 <= value < 2**53 and value == int(value), where, "an integer >= 1", text)
    return value
