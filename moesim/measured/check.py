"""The check: winners and measured candidates against every source there is, and what became of the ranking."""

from collections.abc import Iterable, Sequence

import numpy as np

from moesim.candidate import Candidate, Workload
from moesim.measured.scores import ranking
from moesim.measured.silicon_source import Silicon
from moesim.measured.sources import CheckRow, MeasurementSource, installed_sources
from moesim.topology import Cluster
from moesim.version import VERSION

COLUMNS = ("candidate", "role", "source", "quantity", "status", "simulated", "simulated_low", "simulated_high",
           "measured", "measured_low", "measured_high", "error_percent", "limit", "in_fit_set", "detail", "evidence",
           "calibration", "seed", "engine", "version", "profile_hash")


def all_sources() -> dict[str, MeasurementSource]:
    """Every source by name: measured rows first, then those of installed packages."""
    return {"silicon": Silicon(), **installed_sources()}


def check_candidate(source: MeasurementSource, candidate: Candidate, cluster: Cluster, workload: Workload) -> CheckRow:
    """One check; a source that cannot run here gives a row that says why."""
    reason = source.unavailable_because()
    if reason is None:
        return source.check(candidate, cluster, workload)
    return CheckRow(candidate=candidate.label, source=source.name, quantity="", status="unavailable", detail=reason,
                    seed=workload.seed)


def csv_row(check: CheckRow, role: str) -> dict[str, object]:
    """Flat row for check.csv; ``role`` is why the candidate is checked: ``winner`` or ``measured``."""
    values = {name: getattr(check, name) for name in COLUMNS if hasattr(check, name)}
    return values | {"role": role, "version": VERSION}


def ranking_of(checks: Iterable[CheckRow]) -> dict[str, float] | None:
    """Whether simulation ranked the checked candidates as measurement does; each measured row counts once.

    Returns:
        Kendall tau and regret (see `moesim.measured.scores.ranking`), or None under four candidates.
    """
    rows: dict[object, CheckRow] = {}
    for check in checks:
        if check.source == "silicon" and check.status == "checked":
            rows.setdefault(check.extra["candidate_shape"], check)
    simulated: Sequence[float] = [float(r.simulated or 0.0) for r in rows.values()]
    measured: Sequence[float] = [float(r.measured or 0.0) for r in rows.values()]
    return ranking(np.array(simulated), np.array(measured))
