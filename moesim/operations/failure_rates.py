"""State how often what fails: files of ``hw_profiles/failures``, and causes that a plan adds.

A cause has a rate for each device *and* one for the job as a whole, since published fleets
contradict a plain 1/N law: software bugs come to a job once, whatever its size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from pydantic import Field, model_validator

from moesim.errors import ConfigError, require
from moesim.files import toml
from moesim.files.toml import Quantity, Sourced, Strict

Scope = Literal["device", "nic", "node", "switch", "job"]
HOUR_S = 3_600.0
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One reason for interruptions: a Poisson process.

    Attributes:
        name: Its name.
        scope: What goes down at once: a ``device`` (or its ``nic``), a ``node``, all devices of a
            ``switch``, or only the processes of the ``job``.
        per_device_hour: Events of an hour for each device of the job.
        per_job_hour: Events of an hour for the job as a whole.
        planned: Whether it is announced, so that a checkpoint comes first and no work is lost.
        silent: Whether wrong values spread until it is detected, so that checkpoints taken
            meanwhile are of no use.
        slowdown: Factor on the time of a step until it is detected; 1 for what stops the job.
        detection_s: Seconds until it is detected; None for the plan's.
        repair_s: Seconds until what failed is back; 0 if a restart in place is enough, None for
            the plan's.

    Raises:
        ConfigError: A number is out of range.
    """

    name: str
    scope: Scope
    per_device_hour: float = 0.0
    per_job_hour: float = 0.0
    planned: bool = False
    silent: bool = False
    slowdown: float = 1.0
    detection_s: float | None = None
    repair_s: float | None = None

    def __post_init__(self) -> None:
        where = f"causes.{self.name}"
        for key in ("per_device_hour", "per_job_hour", "detection_s", "repair_s"):
            value = getattr(self, key)
            require(value is None or value >= 0, f"{where}.{key}", "a number >= 0", value)
        require(self.slowdown >= 1, f"{where}.slowdown", "a number >= 1", self.slowdown)
        kinds = self.planned + self.silent + (self.slowdown > 1)
        if kinds > 1:
            raise ConfigError(
                f"{where}: expected at most one of planned, silent and slowdown > 1, got {kinds}"
            )

    def per_second(self, devices: int) -> float:
        """Return the events of a second of a job on so many devices."""
        return (self.per_device_hour * devices + self.per_job_hour) / HOUR_S


class _Observed(Strict):
    devices: int = Field(ge=1)
    days: float = Field(gt=0)


class CauseRecord(Strict):
    """A cause as written in a file of ``hw_profiles/failures``; see `Cause`."""

    scope: Scope
    events: Quantity | None = None
    per_device_hour: Quantity | None = None
    per_job_hour: Quantity | None = None
    planned: bool = False
    silent: bool = False
    slowdown: float = Field(default=1.0, ge=1)
    detection_s: Quantity | None = None
    repair_s: Quantity | None = None


class FailuresFile(Sourced):
    """The content of ``hw_profiles/failures/NAME.toml``."""

    title: str = Field(min_length=1)
    observed: _Observed | None = None
    causes: dict[str, CauseRecord] = Field(min_length=1)

    @model_validator(mode="after")
    def _rates(self) -> "FailuresFile":
        for name, record in self.causes.items():
            rates = (record.per_device_hour, record.per_job_hour)
            stated = any(rate is not None for rate in rates)
            if stated == (record.events is not None):
                raise ValueError(f"@causes.{name}@either events or rates per hour@{stated}")
            if record.events is not None and self.observed is None:
                raise ValueError(f"@observed@devices and days, of which {name} has events@nothing")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The causes of a published fleet or job.

    Attributes:
        name: Name of the file.
        title: What it is.
        causes: Its causes.
        rests_on: Cause -> kind and source of its figure.
    """

    name: str
    title: str
    causes: tuple[Cause, ...]
    rests_on: dict[str, tuple[str, str]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, object]]:
        """Return a row per cause: its rates, and what they rest on."""
        return [
            {
                "cause": cause.name,
                "scope": cause.scope,
                "per_device_hour": cause.per_device_hour,
                "per_job_hour": cause.per_job_hour,
                "kind": self.rests_on[cause.name][0],
                "source": self.rests_on[cause.name][1],
            }
            for cause in self.causes
        ]

    def scaled(self, factor: float) -> tuple[Cause, ...]:
        """Return the causes with all rates times a factor.

        Raises:
            ConfigError: The factor is negative.
        """
        require(factor >= 0, "failures.scale", "a number >= 0", factor)
        return tuple(_scaled(cause, factor) for cause in self.causes)


def _scaled(cause: Cause, factor: float) -> Cause:
    return replace(
        cause,
        per_device_hour=cause.per_device_hour * factor,
        per_job_hour=cause.per_job_hour * factor,
    )


def _value(quantity: Quantity | None) -> float | None:
    return None if quantity is None else quantity.value


def _rests_on(record: CauseRecord) -> tuple[str, str]:
    """Return the kind and the source of a cause's figure; a rate that follows is derived."""
    if record.events is not None:
        return "derived", record.events.source
    stated = record.per_device_hour or record.per_job_hour
    return ("", "") if stated is None else (stated.kind, stated.source)


def _cause(name: str, record: CauseRecord, observed: _Observed | None) -> Cause:
    per_device, per_job = _value(record.per_device_hour), _value(record.per_job_hour)
    if record.events is not None and observed is not None:
        hours = observed.days * DAY_S / HOUR_S
        each = record.events.value / hours
        if record.scope == "job":
            per_job = each
        else:
            per_device = each / observed.devices
    return Cause(
        name=name,
        scope=record.scope,
        per_device_hour=per_device or 0.0,
        per_job_hour=per_job or 0.0,
        planned=record.planned,
        silent=record.silent,
        slowdown=record.slowdown,
        detection_s=_value(record.detection_s),
        repair_s=_value(record.repair_s),
    )


@lru_cache(maxsize=16)
def _load(path: str, modified_ns: int) -> Fleet:
    where = toml.Path(path)
    file = toml.parse(toml.read_text(where), FailuresFile, where.name)
    return Fleet(
        name=where.stem,
        title=file.title,
        causes=tuple(_cause(name, record, file.observed) for name, record in file.causes.items()),
        rests_on={name: _rests_on(record) for name, record in file.causes.items()},
    )


def load_fleet(name: str) -> Fleet:
    """Return the failure rates of a published fleet, or those in a file.

    Raises:
        UnknownNameError: No fleet has that name; the text lists the near matches.
        ConfigError: The file is malformed.
    """
    path = toml.find("failures", name)
    return _load(str(path), toml.modified_ns(path))


def events_of(causes: Iterable[Cause], devices: int, days: float) -> dict[str, float]:
    """Return cause -> its expected events in so many days on so many devices."""
    return {cause.name: cause.per_second(devices) * days * DAY_S for cause in causes}
