"""Draw the failures of days: an event per failure, whatever the number of devices.

Events of all devices together are one Poisson process per cause; which device it is, is uniform.
Each cause draws from a seed sequence of its own, made of the seed and the cause's name, so that a
cause that is added leaves the others' draws as they were, and all points of a search meet the same
failures (common random numbers).

Shape legend: F failures of a cause.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from moesim.errors import ConfigError, require, require_int
from moesim.limits import check_request
from moesim.operations.failure_rates import DAY_S, Cause, events_of

Array = np.ndarray
#: more events than this are refused before they are drawn
MOST_EVENTS = 500_000
_MOST_DAYS = 1_000_000
#: bytes and microseconds of a run, and of each of its events, as measured
_RUN_BYTES, _EVENT_BYTES, _RUN_US, _EVENT_US = 2e4, 500.0, 1e3, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What goes down together.

    Attributes:
        devices: Devices of the job.
        devices_per_node: Devices of a node, which is replaced as a whole.
        devices_per_switch: Devices behind a switch.

    Raises:
        ConfigError: Devices are no whole nodes, or switches no whole nodes.
    """

    devices: int
    devices_per_node: int = 8
    devices_per_switch: int = 256

    def __post_init__(self) -> None:
        for key in ("devices", "devices_per_node", "devices_per_switch"):
            require_int(f"job.{key}", getattr(self, key), 1)
        node = self.devices_per_node
        rule = f"a multiple of the {node} devices of a node"
        require(self.devices % node == 0, "job.devices", rule, self.devices)
        switch = self.devices_per_switch
        require(switch % node == 0, "job.devices_per_switch", rule, switch)

    def group(self, cause: Cause) -> int:
        """Return how many devices a failure takes along; 0 for the processes of the job alone."""
        sizes = {
            "device": 1,
            "nic": 1,
            "node": self.devices_per_node,
            "switch": min(self.devices_per_switch, self.devices),
            "job": 0,
        }
        return sizes[cause.scope]

    def lost(self, cause: Cause, device: int) -> range:
        """Return the devices that a failure at a device takes along."""
        size = self.group(cause)
        first = device // size * size if size else 0
        return range(first, min(first + size, self.devices))


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """The failures of a cause.

    Attributes:
        cause: The cause.
        time_s_F: ndarray of shape (F,): seconds since the beginning, ascending.
        device_F: ndarray of shape (F,): the device at which each begins.
        chance_F: ndarray of shape (F,): uniform numbers in [0, 1), by which a job that runs on
            fewer devices leaves failures out.
    """

    cause: Cause
    time_s_F: Array
    device_F: Array
    chance_F: Array


def draw_failures(
    causes: Sequence[Cause], topology: Topology, days: float, seed: int
) -> tuple[Draws, ...]:
    """Draw the failures of a job.

    Args:
        causes: Reasons, with rates.
        topology: The devices of the job.
        days: Days to draw for.
        seed: Seed of all draws.

    Raises:
        ConfigError: There would be more than `MOST_EVENTS` events, or two causes have one name.
    """
    require(0 < days <= _MOST_DAYS, "days", f"a number > 0 and <= {_MOST_DAYS:,}", days)
    require_int("seed", seed, 0)
    expected = events_of(causes, topology.devices, days)
    if len(expected) < len(causes):
        raise ConfigError("failures.causes: expected names that differ, got one twice")
    check_events(sum(expected.values()), days)
    return tuple(_drawn(cause, topology, days, seed) for cause in causes)


def check_events(expected: float, days: float) -> None:
    """Refuse days with more events than can be told.

    Raises:
        ConfigError: There are more than `MOST_EVENTS`.
    """
    if not expected <= MOST_EVENTS:
        raise ConfigError(
            f"failures: expected at most {MOST_EVENTS:,} events in all, got {expected:.3g} in "
            f"{days:g} days (lower the rates or the days)"
        )


def check_runs(causes: Sequence[Cause], topology: Topology, days: float, runs: int) -> None:
    """Refuse days that are simulated so often that nobody waits for them.

    Args:
        causes: Reasons, with rates.
        topology: The devices of the job.
        days: Days of each run.
        runs: Number of runs: seeds, and ways to run the job.

    Raises:
        ConfigError: A single run would have more than `MOST_EVENTS` events.
        CapacityError: All runs together would take too long, or more memory than there is.
    """
    events = sum(events_of(causes, topology.devices, days).values())
    check_events(events, days)
    check_request(
        f"{runs:,} runs of {events:,.0f} events",
        memory_bytes=runs * (_RUN_BYTES + events * _EVENT_BYTES),
        work_us=runs * (_RUN_US + events * _EVENT_US),
        advice="fewer --seeds, a smaller --search or fewer days",
    )


def _drawn(cause: Cause, topology: Topology, days: float, seed: int) -> Draws:
    times, places = np.random.SeedSequence([seed, crc32(cause.name.encode())]).spawn(2)
    rng = np.random.default_rng(times)
    span_s = days * DAY_S
    rate = cause.per_second(topology.devices)
    gaps: list[Array] = []
    reached_s = 0.0
    # gaps in blocks of a fixed size: longer days continue shorter ones
    while rate > 0 and reached_s < span_s:
        # a gap beyond the end is as good as any other
        gaps.append(np.minimum(rng.exponential(1.0 / rate, 256), 2.0 * span_s))
        reached_s += float(gaps[-1].sum())
    time_s_F = np.cumsum(np.concatenate(gaps)) if gaps else np.zeros(0)
    time_s_F = time_s_F[time_s_F < span_s]
    uniform_F2 = np.random.default_rng(places).random((len(time_s_F), 2))
    return Draws(
        cause=cause,
        time_s_F=time_s_F,
        device_F=(uniform_F2[:, 0] * topology.devices).astype(np.int64),
        chance_F=uniform_F2[:, 1],
    )
