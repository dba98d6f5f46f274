"""Say how far to trust a simulated time: its interval, the calibration it rests on, and a hash over
both.
"""

import hashlib
from dataclasses import replace

from moesim.costs.calibration import load_calibration, weakest
from moesim.costs.comm.choose import exchange_digest, exchange_kernel
from moesim.costs.devices.serial import phase_intervals
from moesim.costs.grades import ASSUMED_GRADE, Grade, grade_of, worst
from moesim.costs.libraries import own_name
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


def granularity_of(cluster: Cluster, schedule: Schedule) -> str:
    """Return the granularity of the simulated transfers, and whether it is known to be inaccurate
    here.

    ``device_loose`` marks oversubscribed leaves (layer times up to 10 % off), mixed clusters (8 %),
    and beyond 64 devices tori (7 %) and exchanges of two hops (14 %, where sources keep to their
    own domains). These are the worst layer times found with the method of studies/granularity.py.
    Elsewhere the worst were 6 % off, and the mean below 1 %.

    Returns:
        ``pair``, ``device`` or ``device_loose``.
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
    return "device_loose" if loose else "device"


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


def span_of(
    intervals: dict[str, tuple[float, float]], phases: dict[str, float]
) -> tuple[float, float]:
    """Return the interval of a layer's time, from those of the phases on its critical path.

    Args:
        intervals: Phase -> P10 and P90 of its time as factors, see `intervals_of`.
        phases: Seconds of each phase on the critical path.

    Returns:
        Factors (low, high) of the layer's time.
    """
    total = sum(phases.values())
    low, high = (
        sum(t * intervals.get(name, ASSUMED_INTERVAL)[end] for name, t in phases.items()) / total
        for end in (0, 1)
    )
    return low, high


def _measured_as(layer: MoELayer, profile: Profile) -> str:
    """Return the format of the measured rows behind the price of a layer's experts on a device. No
    measured row has experts of different widths.
    """
    library = known_library(own_name(profile)) or kernel_library(_PLAIN)
    known = library.formats.get(layer.precision.name, _UNMEASURED)
    return _UNMEASURED if layer.widths_differ else known


def expert_grade(candidate: Candidate, cluster: Cluster) -> Grade:
    """Return the grade of the experts' price, that of the worst device of the cluster.

    Args:
        candidate: The design whose layer is priced.
        cluster: The hardware it runs on.
    """
    layer, found = candidate.layer, []
    for profile, _ in cluster.groups:
        if profile.execution == "serial":
            known = phase_intervals(profile, layer.precision.activations, layer.gate.precision)
            low, high = known.get("experts", ASSUMED_INTERVAL)
            letter, words = (
                ("A", "timed on this machine")
                if "experts" in known
                else ("D", "assumed: no measured rows")
            )
            found.append(Grade(letter=letter, rests_on=words, low=low, high=high))
            continue
        kernels = load_calibration(profile.calibration, profile)
        grade = grade_of(kernels, _measured_as(layer, profile), candidate.parallelism.ep)
        if layer.widths_differ:
            words = "assumed: no measured row has experts of different widths"
            grade = replace(grade, letter="D", rests_on=words)
        found.append(grade)
    return worst(found)


def grades_of(candidate: Candidate, cluster: Cluster) -> dict[str, Grade]:
    """Return the grade of each phase that a calibration prices; a phase without one is assumed
    (`moesim.costs.grades.ASSUMED_GRADE`).

    Args:
        candidate: The design whose layer is simulated.
        cluster: The hardware it runs on, with the calibrations of its kernels.
    """
    found = {"experts": expert_grade(candidate, cluster)}
    if cluster.num_devices == 1:
        return found
    exchange = cluster.exchange(candidate.schedule)
    kernel = exchange_kernel(cluster, exchange)
    level = kernel.level if exchange.runs_on(cluster) else "none"
    if cluster.is_what_if:
        level = weakest([level, "spec_sheet"])
    letter, words = _OF_LEVEL[level]
    for way in ("dispatch", "combine"):
        low, high = kernel.interval(way) if exchange.runs_on(cluster) else ASSUMED_INTERVAL
        rests_on = f"{exchange.calibration or exchange.name}: {words}"
        found[way] = Grade(letter=letter, rests_on=rests_on, low=low, high=high)
    return found


def intervals_of(
    candidate: Candidate, cluster: Cluster
) -> tuple[dict[str, tuple[float, float]], str]:
    """Return the interval of each phase, and the weakest calibration.

    Args:
        candidate: The design whose layer is simulated.
        cluster: The hardware it runs on, with the calibrations of the libraries that run its
            experts (`moesim.costs.libraries.running`).

    Returns:
        Phase -> factors of its time, P10 and P90 (a phase without an entry has `ASSUMED_INTERVAL`);
        and the weakest calibration that the layer rests on.
    """
    intervals: dict[str, tuple[float, float]] = {}
    levels = []
    layer = candidate.layer
    for profile, _ in cluster.groups:
        if profile.execution == "serial":
            intervals |= phase_intervals(profile, layer.precision.activations, layer.gate.precision)
            levels.append("calibrated" if "experts" in intervals else "none")
            continue
        kernels = load_calibration(profile.calibration, profile)
        spread = "epn" if candidate.parallelism.ep > 1 else "ep1"
        measured_as = _measured_as(layer, profile)
        low, high = kernels.interval(f"{measured_as}-{spread}")
        before = intervals.get("experts", (low, high))
        intervals["experts"] = (min(low, before[0]), max(high, before[1]))
        # a calibration without measured rows was fitted to nothing: its efficiencies are assumed
        levels.append(kernels.level if measured_as != _UNMEASURED and kernels.measured else "none")
    if cluster.num_devices > 1:
        exchange = cluster.exchange(candidate.schedule)
        kernel = exchange_kernel(cluster, exchange)
        if exchange.runs_on(cluster):
            intervals["dispatch"], intervals["combine"] = (
                kernel.interval("dispatch"),
                kernel.interval("combine"),
            )
            levels.append(kernel.level)
        else:
            levels.append("none")
    if cluster.is_what_if:
        levels.append("spec_sheet")
    return intervals, weakest(levels)
