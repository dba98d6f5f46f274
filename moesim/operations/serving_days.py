"""Days of serving with failures: ranks that are lost, pauses, and the throughput after.

A SimPy process for each cause takes ranks away, one for each repair brings them back. An elastic
server stops for `moesim.operations.serving_pool.ServingPool.pause_s` and goes on with the ranks
that are left; one that is not, or that has too few slots left for all experts, starts again once
its ranks are back. What is silent
counts as lost when it comes. Work is tokens decoded at full load.
"""

from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from moesim.errors import ConfigError, require
from moesim.operations.failure_draws import Draws, Topology, draw_failures
from moesim.operations.failure_rates import DAY_S, HOUR_S, Cause
from moesim.operations.serving_pool import ServingPool
from moesim.version import VERSION

Process = Generator[simpy.Event, object, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingDays:
    """What is to be simulated.

    Attributes:
        pool: The server.
        days: Days.
        causes: Reasons for failures.
        elastic: Whether it goes on without lost ranks.
        restart_s: Seconds of a start from nothing.
        rejoin_s: Seconds in which the server stands to take ranks in again.
        repair_s: Seconds until lost ranks are back, where their cause says nothing else.

    Raises:
        ConfigError: A number is out of range.
    """

    pool: ServingPool
    days: float
    causes: tuple[Cause, ...]
    elastic: bool = True
    restart_s: float = 150.0
    rejoin_s: float = 8.0
    repair_s: float = 14_400.0

    def __post_init__(self) -> None:
        for key in ("restart_s", "rejoin_s", "repair_s"):
            require(getattr(self, key) >= 0, f"serving.{key}", "a number >= 0", getattr(self, key))
        for cause in self.causes:
            if cause.slowdown > 1:
                raise ConfigError(
                    f"failures.causes.{cause.name}: expected a cause that stops ranks in serving, "
                    "got one that slows them down"
                )

    @property
    def topology(self) -> Topology:
        """The devices of the server."""
        cluster = self.pool.cluster
        node = min(cluster.devices_per_domain, cluster.num_devices)
        return Topology(devices=cluster.num_devices, devices_per_node=node, devices_per_switch=node)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEvent:
    """A change of the ranks that serve.

    Attributes:
        time_s: When it came.
        cause: What it was.
        response: ``elastic``, ``restart`` or ``rejoin``.
        pause_s: Seconds in which the server stands.
        ranks: Ranks that serve after it.
        tokens_per_s: Their throughput.
        lost_sequences: Sequences of lost ranks, which are computed again.
    """

    time_s: float
    cause: str
    response: str
    pause_s: float
    ranks: int
    tokens_per_s: float
    lost_sequences: float

    def row(self) -> dict[str, Any]:
        """Return a flat row for a CSV file."""
        return {
            "time_h": self.time_s / HOUR_S,
            "cause": self.cause,
            "response": self.response,
            "pause_s": self.pause_s,
            "ranks": self.ranks,
            "tokens_per_s": self.tokens_per_s,
            "lost_sequences": self.lost_sequences,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingDaysResult:
    """Days of serving.

    Attributes:
        days: Days.
        seed: Seed of the failures.
        full_tokens_per_s: Throughput of all ranks.
        tokens: Tokens that were decoded.
        down_s_by_cause: Cause -> seconds in which the server stood.
        lost_sequences: Sequences that were computed again.
        events: Events in order.
    """

    days: float
    seed: int
    full_tokens_per_s: float
    tokens: float
    down_s_by_cause: dict[str, float]
    lost_sequences: float
    events: tuple[ServingEvent, ...]

    @property
    def goodput_fraction(self) -> float:
        """Tokens over those of all ranks without failures."""
        return self.tokens / (self.full_tokens_per_s * self.days * DAY_S)

    @property
    def availability(self) -> float:
        """Share of the time in which the server serves at all."""
        return 1.0 - sum(self.down_s_by_cause.values()) / (self.days * DAY_S)

    def row(self) -> dict[str, Any]:
        """Return the days as one row; units are in the names of columns."""
        return {
            "days": self.days,
            "goodput_fraction": self.goodput_fraction,
            "availability": self.availability,
            "full_tokens_per_s": self.full_tokens_per_s,
            "tokens": self.tokens,
            "down_s": sum(self.down_s_by_cause.values()),
            "lost_sequences": self.lost_sequences,
            "events": len(self.events),
            "evidence": "simulated",
            "seed": self.seed,
            "version": VERSION,
        }


def simulate_serving_days(setting: ServingDays, seed: int = 0) -> ServingDaysResult:
    """Simulate days of serving.

    Args:
        setting: The server and how it is run.
        seed: Seed of the failures.

    Raises:
        ConfigError: There are too many failures to tell.
    """
    env = simpy.Environment()
    server = _Server(env, setting)
    for draws in draw_failures(setting.causes, setting.topology, setting.days, seed):
        env.process(server.failing(draws))
    env.run(until=setting.days * DAY_S)
    server.account()
    return ServingDaysResult(
        days=setting.days,
        seed=seed,
        full_tokens_per_s=server.full_tokens_per_s,
        tokens=server.tokens,
        down_s_by_cause=dict(server.down_s),
        lost_sequences=server.lost_sequences,
        events=tuple(server.events),
    )


class _Server:
    """The ranks that serve, and what was decoded; all times before ``since_s`` are accounted."""

    def __init__(self, env: simpy.Environment, setting: ServingDays) -> None:
        self.env, self.setting, self.pool = env, setting, setting.pool
        self.ranks = set(range(self.pool.cluster.num_devices))
        self.full_tokens_per_s = self.rate = self.pool.tokens_per_s(len(self.ranks))
        self.since_s = self.stands_until_s = 0.0
        self.stands_for = ""
        self.tokens = self.lost_sequences = 0.0
        self.down_s: dict[str, float] = defaultdict(float)
        self.events: list[ServingEvent] = []

    def account(self) -> None:
        """Count what was decoded, and how long the server stood, until now."""
        stood_s = max(min(self.env.now, self.stands_until_s) - self.since_s, 0.0)
        served_s = self.env.now - self.since_s - stood_s
        if self.rate == 0.0:
            stood_s, served_s = stood_s + served_s, 0.0
        if stood_s:
            self.down_s[self.stands_for] += stood_s
        self.tokens += served_s * self.rate
        self.since_s = self.env.now

    def failing(self, draws: Draws) -> Process:
        """Let the failures of a cause happen."""
        for time_s, device in zip(draws.time_s_F.tolist(), draws.device_F.tolist(), strict=True):
            yield self.env.timeout(time_s - self.env.now)
            lost = set(self.setting.topology.lost(draws.cause, device))
            self._lose(draws.cause, lost & self.ranks, restart=not lost)

    def _lose(self, cause: Cause, lost: set[int], *, restart: bool) -> None:
        """Lose ranks; a failure of the whole job, and ranks that are down already, lose none."""
        if not lost and not restart:
            return
        self.account()
        before, setting = sorted(self.ranks), self.setting
        self.ranks -= lost
        if lost:
            own = cause.repair_s
            repair_s = setting.repair_s if own is None else own
            self.env.process(self._repair(lost, repair_s))
        left = len(self.ranks)
        gone = len(before) if restart else len(lost)
        self.lost_sequences += gone * self.pool.sequences_per_rank * (self.rate > 0)
        if setting.elastic and not restart and left >= self.pool.fewest_ranks and self.rate > 0:
            self._stand(cause.name, "elastic", self.pool.pause_s(sorted(lost), before), gone)
        else:
            self._stand(cause.name, "restart", setting.restart_s, gone)

    def _repair(self, lost: set[int], repair_s: float) -> Process:
        yield self.env.timeout(repair_s)
        self.account()
        served = self.rate > 0
        self.ranks |= lost
        pause_s = self.setting.rejoin_s if served else self.setting.restart_s
        self._stand("repair", "rejoin" if served else "restart", pause_s, 0)

    def _stand(self, cause: str, response: str, pause_s: float, gone: int) -> None:
        """Stand for a while, then go on with the ranks that are there."""
        left, full = len(self.ranks), self.pool.cluster.num_devices
        able = self.setting.elastic or left == full
        self.rate = self.pool.tokens_per_s(left) if able else 0.0
        self.stands_until_s, self.stands_for = self.env.now + pause_s, cause
        self.events.append(
            ServingEvent(
                time_s=self.env.now,
                cause=cause,
                response=response,
                pause_s=pause_s,
                ranks=left,
                tokens_per_s=self.rate,
                lost_sequences=gone * self.pool.sequences_per_rank,
            )
        )
