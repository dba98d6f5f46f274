"""Say how far to trust a simulated time: its interval, the calibration it rests on, and a hash over
both.
"""

import hashlib
from dataclasses import replace

from moesim.costs.calibration import load_calibration, weakest
from moesim.costs.comm.choose import exchange_digest, exchange_kernel
from moesim.costs.devices.serial import phase_intervals
from moesim.costs.grades import Grade, grade_of, worst
from moesim.design.candidate import Candidate
from moesim.design.schedule import Schedule
from moesim.hardware import Cluster
from moesim.hardware.exchanges import Exchange
from moesim.model import MoELayer

#: interval of phases without measured rows behind them (gate, permute, reduce, shared): a factor of
#: 1.5, assumed
ASSUMED_INTERVAL = (1 / 1.5, 1.5)
#: recipe -> class of measured kernels that its calibration rests on; other recipes rest on none
_MEASURED_AS = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8_block"}
_UNMEASURED = "unmeasured"
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


def basis_digest(cluster: Cluster, exchange: Exchange | None = None) -> str:
    """Return a hash over everything a price on this cluster rests on: cluster, device and
    calibration files.
    """
    return hashlib.sha256(
        "".join([cluster.digest, *calibration_digests(cluster, exchange)]).encode()
    ).hexdigest()[:12]


def trust_of(
    candidate: Candidate, cluster: Cluster, phases: dict[str, float]
) -> tuple[float, float, str]:
    """Return the interval and the calibration of a simulated layer.

    Args:
        candidate: The design whose layer was simulated.
        cluster: The hardware it ran on.
        phases: Seconds of each phase on the critical path; each has its own interval.

    Returns:
        (low, high, level): factors of the layer time, and the weakest calibration that it rests on.
    """
    intervals, level = intervals_of(candidate, cluster)
    total = sum(phases.values())
    low = sum(t * intervals.get(name, ASSUMED_INTERVAL)[0] for name, t in phases.items()) / total
    high = sum(t * intervals.get(name, ASSUMED_INTERVAL)[1] for name, t in phases.items()) / total
    return low, high, level


def _alike(layer: MoELayer) -> bool:
    widths = layer.expert_intermediate_size
    return isinstance(widths, int) or len(set(widths)) == 1


def _measured_as(layer: MoELayer) -> str:
    """Return the format of measured kernels that a layer's experts run as. No measured row has
    experts of different widths.
    """
    return _MEASURED_AS.get(layer.precision.name, _UNMEASURED) if _alike(layer) else _UNMEASURED


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
        grade = grade_of(kernels, _measured_as(layer), candidate.parallelism.ep)
        if not _alike(layer):
            words = "assumed: no measured row has experts of different widths"
            grade = replace(grade, letter="D", rests_on=words)
        found.append(grade)
    return worst(found)


def intervals_of(
    candidate: Candidate, cluster: Cluster
) -> tuple[dict[str, tuple[float, float]], str]:
    """Return the interval of each phase, and the weakest calibration.

    Args:
        candidate: The design whose layer is simulated.
        cluster: The hardware it runs on.

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
        measured_as = _measured_as(layer)
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
