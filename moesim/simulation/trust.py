"""Say how far to trust a simulated time: its interval, the calibration it rests on, and a hash over
both.
"""

import hashlib
from dataclasses import replace

from moesim.costs.calibration import load_calibration, weakest
from moesim.costs.comm.choose import exchange_digest, exchange_kernel
from moesim.costs.devices.serial import phase_intervals
from moesim.costs.grades import ASSUMED_GRADE, Grade, grade_of, worst
from moesim.costs.libraries import names_of
from moesim.design.candidate import Candidate
from moesim.design.schedule import Schedule
from moesim.hardware import Cluster, Profile
from moesim.hardware.exchanges import Exchange
from moesim.hardware.libraries import kernel_libraries, kernel_library, known_library
from moesim.model import MoELayer

#: interval of phases without measured rows behind them (gate, permute, reduce, shared)
ASSUMED_INTERVAL = (ASSUMED_GRADE.low, ASSUMED_GRADE.high)
#: library whose formats name the classes of a calibration that belongs to no library
_PLAIN = "sglang-triton"
_UNMEASURED = "unmeasured"
#: level of an exchange's calibration -> its grade (`moesim.costs.grades`), and what that means
_OF_LEVEL = {
    "calibrated": ("A", "fitted on this device"),
    "few_shot": ("B", "ten rows of this device"),
    "spec_sheet": ("C", "fitted on other devices or fabrics"),
    "none": ("D", "assumed: no measured rows"),
}
#: number of devices up to which one transfer op per device agreed with pairs within 4 % on any
#: fabric without thin uplinks (studies/granularity.py); beyond it, tori and exchanges of two hops
#: were up to 7 and 14 % off
_LOOSE_BEYOND = 64


def granularity_of(cluster: Cluster, schedule: Schedule, *, expected: bool = False) -> str:
    """Return the granularity of the simulated transfers, and whether it is known to be inaccurate
    here.

    ``device_loose`` marks oversubscribed leaves (layer times up to 10 % off), mixed clusters (8 %),
    and beyond 64 devices tori (7 %) and exchanges of two hops (14 %, where sources keep to their
    own domains). These are the worst layer times found with the method of studies/granularity.py.
    Elsewhere the worst were 6 % off, and the mean below 1 %.

    With expected instead of drawn traffic (`moesim.lowering.expected`), ``_expected`` follows;
    layer times on 64 and 256 devices were within 1.2 % of drawn ones
    (tests/simulation/test_expected.py).

    Args:
        cluster: The hardware.
        schedule: The granularity and the exchange.
        expected: Whether the traffic is expected.

    Returns:
        ``pair``, ``device`` or ``device_loose``, the latter two perhaps with ``_expected``.
    """
    if schedule.granularity == "pair" or cluster.num_devices == 1:
        return schedule.granularity
    hops = cluster.num_nodes > 1 and cluster.exchange(schedule).hops_across
    far_reaching = cluster.is_torus or hops
    loose = (
        cluster.has_thin_uplinks
        or len(cluster.groups) > 1
        or (far_reaching and cluster.num_devices > _LOOSE_BEYOND)
    )
    return ("device_loose" if loose else "device") + ("_expected" if expected else "")


def calibration_digests(cluster: Cluster, exchange: Exchange | None = None) -> list[str]:
    """Return the hashes of the calibration files that prices on this cluster and by this exchange
    rest on.
    """
    found = [
        load_calibration(profile.calibration, profile).digest
        for profile, _ in cluster.groups
        if profile.execution != "serial"
    ]
    if cluster.num_devices > 1:
        found.append(exchange_digest(cluster, exchange or cluster.exchange()))
    return found


def study_digests(cluster: Cluster) -> list[str]:
    """Return the hashes of everything that prices on this cluster may rest on, by whatever library
    and exchange a design chooses: the calibrations and records of all libraries, and the
    calibration of the cluster's own exchange.
    """
    found = calibration_digests(cluster)
    for library in kernel_libraries():
        found.append(library.digest)
        found += [
            load_calibration(library.calibration, profile).digest
            for profile, _ in cluster.groups
            if profile.execution == "waves"
        ]
    return found


def basis_digest(cluster: Cluster, exchange: Exchange | None = None) -> str:
    """Return a hash over everything a price on this cluster rests on: cluster, device and
    calibration files.
    """
    return hashlib.sha256(
        "".join([cluster.digest, *calibration_digests(cluster, exchange)]).encode()
    ).hexdigest()[:12]


def span_of(grades: dict[str, Grade], phases: dict[str, float]) -> tuple[float, float]:
    """Return the interval of a layer's time, from those of the phases on its critical path.

    Args:
        grades: Phase -> grade, with the P10 and P90 of its time as factors, see `trust_of`.
        phases: Seconds of each phase on the critical path.

    Returns:
        Factors (low, high) of the layer's time.
    """
    total = sum(phases.values())
    known = [(seconds, grades.get(name, ASSUMED_GRADE)) for name, seconds in phases.items()]
    return (
        sum(seconds * grade.low for seconds, grade in known) / total,
        sum(seconds * grade.high for seconds, grade in known) / total,
    )


def trust_of(
    candidate: Candidate, cluster: Cluster, kernels: str = ""
) -> tuple[dict[str, Grade], str]:
    """Return how far the price of each phase can be trusted, and the weakest calibration.

    Args:
        candidate: The design whose layer is simulated.
        cluster: The hardware it runs on, with the calibrations of the libraries that run its
            experts (`moesim.costs.libraries.running`).
        kernels: Names of those libraries, see `moesim.simulation.kernels.choose_kernels`.

    Returns:
        Phase -> its grade and interval (a phase without an entry has
        `moesim.costs.grades.ASSUMED_GRADE`); and the weakest calibration that the layer rests on.
    """
    found: dict[str, Grade] = {}
    experts, levels = [], []
    for (profile, _), name in zip(cluster.groups, names_of(kernels, cluster), strict=True):
        if profile.execution == "serial":
            timed = _timed(profile, candidate.layer)
            found |= timed
            experts.append(timed.get("experts", ASSUMED_GRADE))
            levels.append("calibrated" if "experts" in timed else "none")
            continue
        calibration = load_calibration(profile.calibration, profile)
        fmt = _measured_as(candidate.layer, name)
        grade = grade_of(calibration, fmt, candidate.parallelism.ep)
        if candidate.compression.cold_fraction:
            words = "assumed: no measured row has cold experts of another form"
            grade = replace(grade, letter="D", rests_on=words)
        if candidate.layer.widths_differ:
            words = "assumed: no measured row has experts of different widths"
            grade = replace(grade, letter="D", rests_on=words)
        experts.append(grade)
        # a calibration without measured rows was fitted to nothing: its efficiencies are assumed
        known = fmt != _UNMEASURED and calibration.measured
        levels.append(calibration.level if known else "none")
    # devices of several kinds: the worst grade, within all their intervals
    found["experts"] = replace(
        worst(experts), low=min(g.low for g in experts), high=max(g.high for g in experts)
    )
    if cluster.num_devices > 1:
        moved, level = _moved(cluster, candidate.schedule)
        found |= moved
        levels.append(level)
    if cluster.is_what_if:
        levels.append("spec_sheet")
    return found, weakest(levels)


def _timed(profile: Profile, layer: MoELayer) -> dict[str, Grade]:
    """Return the grades of the phases that a profile's own measurements price."""
    known = phase_intervals(profile, layer.precision.activations, layer.gate.precision)
    return {
        name: Grade(letter="A", rests_on="timed on this machine", low=low, high=high)
        for name, (low, high) in known.items()
    }


def _measured_as(layer: MoELayer, kernels: str) -> str:
    """Return the format of the measured rows behind the price of a layer's experts by a library. No
    measured row has experts of different widths.
    """
    library = known_library(kernels) or kernel_library(_PLAIN)
    known = library.formats.get(layer.precision.name, _UNMEASURED)
    return _UNMEASURED if layer.widths_differ else known


def _moved(cluster: Cluster, schedule: Schedule) -> tuple[dict[str, Grade], str]:
    """Return the grades of dispatch and combine, and the level of their calibration."""
    exchange = cluster.exchange(schedule)
    kernel = exchange_kernel(cluster, exchange)
    runs = exchange.runs_on(cluster)
    level = kernel.level if runs else "none"
    letter, words = _OF_LEVEL[weakest([level, "spec_sheet"]) if cluster.is_what_if else level]
    rests_on = f"{exchange.calibration or exchange.name}: {words}"
    found = {}
    for way in ("dispatch", "combine"):
        low, high = kernel.interval(way) if runs else ASSUMED_INTERVAL
        found[way] = Grade(letter=letter, rests_on=rests_on, low=low, high=high)
    return found, level
