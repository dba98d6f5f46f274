"""Define what a measurement source is, and find the installed ones.

A source checks one candidate and returns `CheckRow`s with what was simulated, what was measured,
and of which kind: first the largest part of a layer that it knows, then that part by phase where it
can. If it substitutes another shape for the requested one, as a CPU must, the row says so; if it
cannot check, the row says why.

Sources are found through the entry point group ``moesim.measurement_sources``: ``silicon``
(measured tables), ``triton`` (this machine's GPU), ``torch-cpu`` and ``gloo`` (this CPU, and
processes on it), ``interpret`` (whether the kernels compute the right numbers, never a time).
Sources that need torch or Triton are in `moesim_kernels`.
"""

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

from moesim.design.candidate import Candidate, Workload
from moesim.hardware import Cluster

GROUP = "moesim.measurement_sources"
PROFILERS = "moesim.profilers"
Status = Literal["checked", "not_measured", "unavailable"]
Evidence = Literal["measured", "interpolated", "simulated"]
STATUSES: tuple[Status, ...] = ("checked", "not_measured", "unavailable")
QUANTITIES = (
    "layer_time_us",
    "gate_time_us",
    "dispatch_time_us",
    "experts_time_us",
    "experts_warm_time_us",
    "combine_time_us",
    "max_abs_error",
    "none",
)
Verdict = Literal["confirmed", "refuted", "inconclusive", "not_measured"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "refuted", "inconclusive", "not_measured")
#: percent of error within which a simulation is confirmed, and beyond which it is refuted if it is
#: also outside its interval
CONFIRMED_WITHIN, REFUTED_BEYOND = 15.0, 30.0
#: an interval whose high end is so many times the low one is too wide to confirm anything
WIDE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One comparison of simulation and measurement.

    Attributes:
        candidate: Label of the candidate that is checked.
        source: Name of the source.
        quantity: What is compared, with its unit, one of `QUANTITIES`; ``none`` if nothing is
            compared.
        status: ``checked``, ``not_measured`` if nobody measured exactly this, or ``unavailable`` if
            the source cannot run.
        simulated: Simulated value; None for a numerical check.
        simulated_low: P10 of the simulated value's interval.
        simulated_high: P90 of the simulated value's interval.
        measured: Measured value (a median, unless ``detail`` says otherwise); None without one.
        measured_low: P10 of the repeats; None for tables that only have a mean.
        measured_high: P90 of the repeats; None for tables that only have a mean.
        limit: Largest error that a numerical check allows.
        detail: One line that says what exactly was run, or why nothing was.
        in_fit_set: Whether the measured row may have been used to fit the model; None if nothing
            was fitted.
        interpolated: Whether the measured value is interpolated between two rows of a table that
            differ only in tokens.
        calibration: Level of the calibration of the simulated value.
        engine: Engine or model of the simulated value.
        seed: Seed of the routing.
        profile_hash: Hash of what the simulated value rests on.
        design: Key of the candidate, which `moesim.measured.check.check_candidate` fills in.
        workload: Label of the workload, which `moesim.measured.check.check_candidate` fills in.
        extra: Further facts that some readers of the row need.
    """

    candidate: str
    source: str
    quantity: str
    status: Status
    simulated: float | None = None
    simulated_low: float | None = None
    simulated_high: float | None = None
    measured: float | None = None
    measured_low: float | None = None
    measured_high: float | None = None
    limit: float | None = None
    detail: str = ""
    in_fit_set: bool | None = None
    interpolated: bool = False
    calibration: str = "none"
    engine: str = ""
    seed: int = 0
    profile_hash: str = ""
    design: str = ""
    workload: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def evidence(self) -> Evidence:
        """``measured`` or ``interpolated`` if there is a measured value, otherwise
        ``simulated``.
        """
        if self.measured is None:
            return "simulated"
        return "interpolated" if self.interpolated else "measured"

    @property
    def error_percent(self) -> float | None:
        """The error 100 (simulated / measured - 1); None if either value is missing."""
        if self.simulated is None or not self.measured:
            return None
        return 100.0 * (self.simulated / self.measured - 1.0)

    @property
    def is_time(self) -> bool:
        """Whether the row compares a time."""
        return self.quantity.endswith("_us")

    @property
    def verdict(self) -> Verdict:
        """What the comparison says about the simulated value.

        ``confirmed``: the simulated value is within 15 %, or the measured value is inside the
        simulated 80 % interval and the interval narrower than a factor of 1.5, or a numerical check
        is within its limit. ``refuted``: it is off by more than 30 % and outside the interval, or a
        numerical check is beyond its limit. ``inconclusive``: it is between the two, or only inside
        an interval that is wide. ``not_measured``: nothing was measured.
        """
        if self.measured is None:
            return "not_measured"
        if self.limit is not None:
            return "confirmed" if self.measured <= self.limit else "refuted"
        error = self.error_percent
        if error is None:
            return "not_measured"
        low, high = self.simulated_low, self.simulated_high
        inside = narrow = False
        if low is not None and high is not None:
            inside = low <= self.measured <= high
            narrow = inside and high < WIDE * low
        if narrow or abs(error) <= CONFIRMED_WITHIN:
            return "confirmed"
        return "refuted" if abs(error) > REFUTED_BEYOND and not inside else "inconclusive"


class MeasurementSource(Protocol):
    """Something that can check a candidate."""

    name: str

    def unavailable_because(self) -> str | None:
        """Say in one line why it cannot run on this machine; None if it can."""

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> list[CheckRow]:
        """Check one candidate: at least one row, the largest part of a layer first, then its
        phases.

        Raises:
            MoesimError: It cannot check this candidate; `moesim.measured.check.check_candidate`
                turns that into a row.
        """


class Profiler(Protocol):
    """Something that can measure this machine and write a device profile of it."""

    name: str

    def unavailable_because(self) -> str | None:
        """Say in one line why it cannot run on this machine; None if it can."""

    def write(self, path: Path, seconds: float, command: str) -> None:
        """Measure for about ``seconds`` and write the profile, which names ``command``."""


def profilers() -> dict[str, Profiler]:
    """Return the profilers of all installed packages by name."""
    return {point.name: point.load()() for point in entry_points(group=PROFILERS)}


def installed_sources() -> dict[str, MeasurementSource]:
    """Return the sources of all installed packages by name; this may load torch and Triton."""
    return {
        point.name: point.load()()
        for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)
    }
