"""Adjust a measured profile of this machine to the measured times of layers and exchanges, and see
whether that helps.

A profile is fitted to primitives, never to layers. `moesim check --recalibrate` asks what fitting
to layers would be worth. On a CPU there is one factor each for the cost of GEMMs, selection,
movement and calls of the framework, and for the start and bytes of an exchange. On a GPU there is
one each for what the price of a kernel is made of: matrix instructions, bytes of memory, and cycles
that are neither. The factors are fitted to half of the checked candidates (factors near 1 are the
likely ones, see `moesim.measured.fitting.few_shot_fit`) and scored on the other half. The halves
depend only on the names of the candidates. On the CPUs tried, such factors did not help: the
remaining error is not a matter of scale.

A GPU's kernels are priced by shares of its peak rates and bandwidth and by cycles of its clock, so
that its factors divide these three figures. The shares of the bandwidth that were measured grow by
as much, since the measured rates are what they are.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from moesim.costs.libraries import running
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.output import write_file
from moesim.files.texts import read_text
from moesim.hardware import Cluster, Profile, ranks_of_host, single_device
from moesim.measured.fitting import few_shot_fit
from moesim.measured.scores import error_scores
from moesim.measured.sources import CheckRow
from moesim.measured.winners import Case
from moesim.simulation.run import simulate
from moesim.units import US

Array = np.ndarray
#: factor -> tables of ``[serial]`` that it multiplies
GROUPS = {
    "gemm": ("gemm_float32", "gemm_bfloat16"),
    "select": ("top_k", "softmax", "cast", "mask"),
    "move": ("stream", "gather", "align"),
    "launch": ("launch",),
}
#: factors of ``[host_fabric]``: its start, and its seconds per byte
EXCHANGE = ("exchange_start", "exchange_bytes")
#: factors of a GPU: of the seconds that its peak rates, its bandwidth, and its clock stand for
GPU = ("matrix", "memory", "cycles")
#: what a GPU is fitted to: quantity of a row -> the simulated phase, or None for the whole layer
_PHASES = {"layer_time_us": None, "experts_time_us": "experts", "gate_time_us": "gate"}
_FEWEST = 4
_HEADER = re.compile(r"^\[+([^\]]+)\]+$")
_NUMBER = re.compile(r"\b(value|low|high|min|median) = ([-+.\deE]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """Factors, and the scores with and without them.

    Attributes:
        factors: Factors by their names in `GROUPS` and `EXCHANGE`, or `GPU`.
        before: Scores of the held-out half, in percent, with the unchanged profile.
        after: Scores of the held-out half with the factors.
        fitted_on: Labels of the candidates that were fitted.
        kept_apart: Labels of the held-out candidates.
    """

    factors: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]
    fitted_on: tuple[str, ...]
    kept_apart: tuple[str, ...]

    @property
    def helps(self) -> bool:
        """Whether the mean error on the held-out half became smaller."""
        return self.after["mape"] < self.before["mape"]


def scaled(profile: Profile, factors: dict[str, float]) -> Profile:
    """Return the profile with its serial tables and its all-to-all multiplied by factors, or with
    the figures of a GPU divided by them.
    """
    if profile.execution == "waves":
        matrix, memory, cycles = (factors.get(name, 1.0) for name in GPU)
        return replace(
            profile,
            peak_flops_per_s={f: rate / matrix for f, rate in profile.peak_flops_per_s.items()},
            hbm_bandwidth_bytes_per_s=profile.hbm_bandwidth_bytes_per_s / memory,
            clock_hz=profile.clock_hz / cycles,
        )
    of_table = {
        table: factors[group]
        for group, tables in GROUPS.items()
        for table in tables
        if group in factors
    }
    serial = {
        table: {name: value * of_table.get(table, 1.0) for name, value in terms.items()}
        for table, terms in profile.serial.items()
    }
    fabric = profile.host_fabric
    if fabric is not None:
        start, per_byte = (factors.get(name, 1.0) for name in EXCHANGE)
        fabric = replace(
            fabric,
            start_s=fabric.start_s * start,
            port_bytes_per_s=fabric.port_bytes_per_s / per_byte,
        )
    return replace(profile, serial=serial, host_fabric=fabric)


def recalibrate(checked: Sequence[tuple[Case, CheckRow]]) -> Recalibration:
    """Fit factors to half of the candidates and score them on the other half.

    Args:
        checked: Winners on one measured profile of a CPU or GPU, and the rows of sources that ran
            them unscaled.

    Raises:
        ConfigError: The winners are not on such a profile, or on several, or too few candidates
            were measured unscaled.
    """
    profiles = {winner.cluster.profile.digest: winner.cluster.profile for winner, _ in checked}
    # A shipped profile names no machine: its figures are not ours to move.
    measured_here = [p for p in profiles.values() if p.machine and p.execution != "systolic"]
    if len(profiles) != 1 or not measured_here:
        names = ", ".join(sorted({profile.name for profile in profiles.values()})) or "none"
        raise ConfigError(
            "--recalibrate: expected winners on one profile that `moesim measure` wrote of this "
            f"CPU or GPU, got {names}"
        )
    (profile,) = measured_here
    used = [(winner, row) for winner, row in checked if _is_of_profile(profile, row)]
    halves = _halves(used)
    if not all(halves):
        count = len({winner.key for winner, _ in used})
        raise ConfigError(
            f"--recalibrate: expected at least {_FEWEST} candidates that were measured as they "
            f"are, got {count}"
        )
    fitting, apart = halves
    free = GPU if profile.execution == "waves" else _factors_in(fitting)
    ratios = _ratios
    if profile.execution == "waves":
        before = {case.key: _phases(case, profile) for case, _ in used}
        ratios = partial(_gpu_ratios, before=before)
    factors = few_shot_fit(
        lambda p: np.log(ratios(fitting, profile, p)), dict.fromkeys(free, 1.0), free
    )

    def scored(chosen: dict[str, float]) -> dict[str, float]:
        found = ratios(apart, profile, chosen)
        return error_scores(found, np.ones_like(found))

    return Recalibration(
        factors=factors,
        before=scored({}),
        after=scored(factors),
        fitted_on=tuple(dict.fromkeys(w.candidate.label for w, _ in fitting)),
        kept_apart=tuple(dict.fromkeys(w.candidate.label for w, _ in apart)),
    )


def _is_of_profile(profile: Profile, row: CheckRow) -> bool:
    """Return whether a row's simulated time is that of the winner itself, on its own profile."""
    if row.measured is None or row.simulated is None:
        return False
    if profile.execution == "waves":
        return row.source == "triton" and row.quantity in _PHASES
    if "port_bytes" in row.extra:
        return bool(row.extra["as_it_is"])
    return row.quantity == "layer_time_us" and bool(row.extra.get("as_it_is"))


def _halves(used: Sequence[tuple[Case, CheckRow]]) -> tuple[list, list]:
    """Split the rows alternately, in the order of hashes of the cases; both halves are empty if
    there are too few.

    Cases whose exchange was timed alternate among themselves: a half without one would leave the
    factors of exchanges to chance.
    """
    exchanged = {winner.key for winner, row in used if "port_bytes" in row.extra}
    keys = sorted(
        {winner.key for winner, _ in used},
        key=lambda key: (key in exchanged, hashlib.sha256(key.encode()).digest()),
    )
    if len(keys) < _FEWEST:
        return [], []
    fitted = set(keys[::2])
    return (
        [pair for pair in used if pair[0].key in fitted],
        [pair for pair in used if pair[0].key not in fitted],
    )


def _factors_in(used: Sequence[tuple[Case, CheckRow]]) -> tuple[str, ...]:
    """Return the factors on which anything that was measured depends."""
    layers = any("port_bytes" not in row.extra for _, row in used)
    exchanges = any(
        "port_bytes" in row.extra or winner.cluster.num_devices > 1 for winner, row in used
    )
    return (*(GROUPS if layers else ()), *(EXCHANGE if exchanges else ()))


def _ratios(
    used: Sequence[tuple[Case, CheckRow]], profile: Profile, factors: dict[str, float]
) -> Array:
    """Return simulated over measured with these factors: ndarray of shape (rows,)."""
    changed = scaled(profile, factors)
    clusters: dict[int, Cluster] = {}
    found = []
    for winner, row in used:
        assert row.measured is not None
        fabric = changed.host_fabric
        if "port_bytes" in row.extra and fabric is not None:
            seconds = fabric.start_s + row.extra["port_bytes"] / fabric.port_bytes_per_s
        else:
            ranks = winner.cluster.num_devices
            if ranks not in clusters:
                clusters[ranks] = (
                    single_device(changed) if ranks == 1 else ranks_of_host(changed, ranks)
                )
            seconds = simulate(
                winner.candidate, clusters[ranks], winner.workload, must_fit=False
            ).layer_time_s
        found.append(seconds / US / row.measured)
    return np.array(found)


def _phases(case: Case, profile: Profile) -> dict[str | None, float]:
    """Return the simulated seconds of a case on this profile, by phase, with the kernels that ran:
    moesim's own; None is the whole layer.
    """
    groups = tuple((profile, count) for _, count in case.cluster.groups)
    cluster = running(replace(case.cluster, groups=groups))
    result = simulate(case.candidate, cluster, case.workload, must_fit=False)
    found: dict[str | None, float] = {None: result.layer_time_s}
    return found | dict(result.phase_time_s)


def _gpu_ratios(
    used: Sequence[tuple[Case, CheckRow]],
    profile: Profile,
    factors: dict[str, float],
    *,
    before: dict[str, dict[str | None, float]],
) -> Array:
    """Return simulated over measured with these factors of a GPU: ndarray of shape (rows,).

    The source's own simulated time is multiplied by what the factors make of the same phase, since
    it may price the phase with the tile that ran.

    Args:
        used: Cases and the rows that measured them.
        profile: The profile without factors.
        factors: Factors of `GPU`.
        before: Key of a case -> `_phases` on that profile.
    """
    changed = scaled(profile, factors)
    after = {case.key: _phases(case, changed) for case, _ in used}
    found = []
    for case, row in used:
        assert row.simulated is not None
        assert row.measured is not None
        phase = _PHASES[row.quantity]
        found.append(row.simulated * after[case.key][phase] / before[case.key][phase])
    return np.array(found) / np.array([row.measured for _, row in used])


def _multiplied(line: str, factor: float) -> str:
    """Multiply a line's numbers, rounded to five digits each."""
    return _NUMBER.sub(
        lambda number: f"{number[1]} = {float(f'{float(number[2]) * factor:.5g}')!r}", line
    )


def recalibrated_text(text: str, found: Recalibration) -> str:
    """Return the text of a measured profile with its coefficients and its all-to-all multiplied by
    the factors, or the figures of a GPU divided by them.

    Args:
        text: The text that `moesim measure` wrote.
        found: The factors, which the file then names as the source of the numbers they changed.
    """
    of_section = {
        f"serial.{table}": found.factors.get(group, 1.0)
        for group, tables in GROUPS.items()
        for table in tables
    }
    start, per_byte = (found.factors.get(name, 1.0) for name in EXCHANGE)
    of_key = {"host_fabric.start_us": start, "host_fabric.gb_per_s": 1.0 / per_byte}
    matrix, memory, cycles = (1.0 / found.factors.get(name, 1.0) for name in GPU)
    of_section["compute.peak_tflops"] = matrix
    of_key |= {"hbm.bandwidth_gb_per_s": memory, "compute.clock_ghz": cycles}
    # What was measured stays what it was: its share of a smaller figure is larger.
    shares = {f"hbm.{curve}.efficiency" for curve in ("gather", "gather_cached", "streaming")}
    section, lines = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            section = header[1]
        key = f"{section}.{line.partition(' = ')[0]}"
        factor = of_section.get(section, of_key.get(key, 1.0))
        if factor != 1.0 and "value = " in line:
            line = re.sub(r'source = "[^"]*"', 'source = "recalibrated"', _multiplied(line, factor))
        elif key in shares and memory != 1.0:
            line = _multiplied(line, 1.0 / memory)
        lines.append(line)
    told = ", ".join(f"{name} {factor:.3f}" for name, factor in found.factors.items())
    lines += [
        "[sources.recalibrated]",
        'title = "moesim check --recalibrate"',
        f'locator = "factors {told}, fitted to {len(found.fitted_on)} candidates; mean error on '
        f"{len(found.kept_apart)} others {found.before['mape']:.1f} % before, "
        f'{found.after["mape"]:.1f} % after"',
        "",
    ]
    return "\n".join(lines)


def write_recalibrated(path: Path, profile: Profile, found: Recalibration) -> None:
    """Write the profile with the factors to a new file, or over the old one.

    Raises:
        ConfigError: No file is found by the profile's name, or the new one cannot be written.
    """
    text = read_text(toml.find("devices", profile.name))
    write_file(path, recalibrated_text(text, found))
