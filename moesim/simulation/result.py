"""Define what a simulation returns: times with their interval, where the time went, and how far to
trust it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesim.costs.grades import ASSUMED_GRADE, Grade, worst
from moesim.design.candidate import DESIGN_COLUMNS, WORKLOAD_COLUMNS, Candidate, Workload
from moesim.files.showing import OneRow
from moesim.simulation.effects import COLUMNS, STORAGE_COLUMNS, GateEffects, StorageEffects
from moesim.units import GIB, US

if TYPE_CHECKING:
    import plotly.graph_objects as go

PHASES = (
    "gate",
    "permute",
    "dispatch",
    "shared",
    "fetch",
    "experts",
    "prefetch",
    "combine",
    "reduce",
)
#: share of the critical path from which on a phase's grade counts
_MATTERS = 0.1
RESOURCES = ("egress", "hbm", "ingress", "sm", "link", "nic_out", "nic_in", "host")
#: columns that say what a row rests on, the last of every table
PROVENANCE_COLUMNS = (
    "evidence",
    "calibration",
    "grade",
    "rests_on",
    "engine",
    "seed",
    "version",
    "profile_hash",
)
#: columns of `Result.row` before these: every field of the design and its workload, then what was
#: found
FOUND_COLUMNS = (
    "candidate",
    "design",
    "cluster",
    *DESIGN_COLUMNS,
    *(name for name in WORKLOAD_COLUMNS if name != "seed"),
    "layer_time_us",
    "layer_time_low_us",
    "layer_time_high_us",
    "layer_tokens_per_s_per_device",
    *(f"{phase}_us" for phase in PHASES),
    "bottleneck",
    *(f"{resource}_utilisation" for resource in RESOURCES),
    "load_imbalance",
    "dropped_token_fraction",
    *COLUMNS,
    *STORAGE_COLUMNS,
    "peak_memory_gib",
    "kernels",
    "tile",
    "granularity",
)
#: columns of `Result.row`, in order: frozen by a test, since people read the files with scripts
RESULT_COLUMNS = (*FOUND_COLUMNS, *PROVENANCE_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result(OneRow):
    """One simulated forward pass of one MoE layer.

    Attributes:
        candidate: The design that was simulated.
        cluster: Name of the cluster.
        layer_time_s: Time of the layer; with engine ``bound`` a lower bound.
        layer_time_low_s: P10 of the layer time, from the residuals of the calibration of each phase
            on the critical path.
        layer_time_high_s: P90 of the layer time, from the same residuals.
        tokens_per_s: Tokens of all devices over the layer time.
        tokens_per_s_per_device: Tokens of one device over the layer time.
        phase_time_s: Seconds of each phase on the critical path; they sum to layer_time_s.
        experts_time_s: Seconds of the busiest device's expert phase alone.
        bottleneck: The phase with the most time on the critical path.
        utilisation: Work of each kind of resource on its busiest device, over the layer time.
        mean_utilisation: Work over the layer time, averaged over all resources of each kind.
        load_imbalance: Rows of the busiest device over the mean of all devices.
        dropped_token_fraction: Share of choices that were dropped over capacity.
        effects: Effects of the gate and its capacity on traffic, rows and loss.
        storage: Effects of how experts are stored.
        peak_memory_bytes: Bytes needed on the device with the least headroom; None without a dense
            part.
        memory_over_bytes: Bytes by which these exceed what the device has; <= 0 where they fit.
        evidence: Kind of evidence, always ``simulated`` here.
        calibration: The weakest level of all calibrations the time rests on, see
            `moesim.costs.calibration.LEVELS`.
        bound_s: The bound engine's layer time, which a screening would have seen.
        engine: Name of the engine that ran it.
        workload: The tokens it was given; its seed is that of the routing.
        version: Version of moesim.
        profile_hash: Hash over the cluster, device and calibration files.
        kernels: Name of the library that runs the experts, one for each kind of device joined by
            ``+``; empty on devices that are no GPUs.
        grades: Phase -> its grade, with the P10 and P90 of measured over simulated time, see
            `moesim.costs.grades`; a phase without an entry is assumed (`grade_of`).
        tile: Tile of the expert GEMMs; empty on devices that run no GPU tiles.
        granularity: Whether transfers were simulated per ``device`` or per ``pair``;
            ``device_loose`` where one transfer per device is known to be inaccurate; with
            ``_expected`` where not every token was drawn, see
            `moesim.simulation.trust.granularity_of`.
    """

    candidate: Candidate
    cluster: str
    layer_time_s: float
    layer_time_low_s: float
    layer_time_high_s: float
    tokens_per_s: float
    tokens_per_s_per_device: float
    phase_time_s: dict[str, float]
    experts_time_s: float
    bottleneck: str
    utilisation: dict[str, float]
    mean_utilisation: dict[str, float]
    load_imbalance: float
    dropped_token_fraction: float
    effects: GateEffects
    storage: StorageEffects
    peak_memory_bytes: float | None
    memory_over_bytes: float | None
    evidence: str
    calibration: str
    bound_s: float
    engine: str
    workload: Workload
    version: str
    profile_hash: str
    kernels: str
    grades: dict[str, Grade]
    tile: str
    granularity: str = "device"

    def grade_of(self, phase: str) -> Grade:
        """Return the grade of a phase."""
        return self.grades.get(phase, ASSUMED_GRADE)

    @property
    def graded(self) -> tuple[str, Grade]:
        """The phase whose grade is that of the layer, and the grade: the worst among those that
        take at least a tenth of the critical path.
        """
        total = sum(self.phase_time_s.values())
        known = {
            name: self.grade_of(name)
            for name, seconds in self.phase_time_s.items()
            if seconds >= _MATTERS * total
        }
        grade = worst(known.values())
        return next(name for name, one in known.items() if one is grade), grade

    def facts(self) -> dict[str, str]:
        """Return what people look at first, as texts."""
        low, high = (end / US for end in (self.layer_time_low_s, self.layer_time_high_s))
        phases = sorted(self.phase_time_s.items(), key=lambda one: -one[1])
        shares = (f"{name} {100 * s / self.layer_time_s:.0f} %" for name, s in phases if s > 0)
        phase, grade = self.graded
        memory = self.peak_memory_bytes
        return {
            "design": self.candidate.label,
            "cluster": self.cluster,
            "layer time": f"{self.layer_time_s / US:,.0f} us ({low:,.0f} to {high:,.0f})",
            "bottleneck": self.bottleneck,
            "workload": self.workload.label,
            "throughput": f"{self.tokens_per_s_per_device:,.0f} tokens/s per device, one MoE layer",
            "critical path": ", ".join(shares),
            "imbalance": f"{self.load_imbalance:.2f}",
            "memory": "no dense part" if memory is None else f"{memory / GIB:.1f} GiB",
            "evidence": f"{self.evidence}, {self.calibration}; grade {grade.letter} by {phase}",
        }

    def plot(self) -> "go.Figure":
        """Return a plotly figure of the phases on the critical path; they sum to the time."""
        import plotly.graph_objects as go

        known = {name: s / US for name, s in self.phase_time_s.items() if s > 0}
        bars = [
            go.Bar(y=[self.cluster], x=[us], name=name, orientation="h")
            for name, us in known.items()
        ]
        figure = go.Figure(bars)
        low, high = (end / US for end in (self.layer_time_low_s, self.layer_time_high_s))
        return figure.update_layout(
            barmode="stack",
            title=self.candidate.label,
            xaxis_title=f"us on the critical path (P10 to P90 {low:,.0f} to {high:,.0f})",
            height=260,
        )

    def row(self) -> dict[str, object]:
        """Return one flat row for a CSV file, with units in the column names."""
        phase, grade = self.graded
        row = {
            "candidate": self.candidate.label,
            "design": self.candidate.key,
            "cluster": self.cluster,
            **self.candidate.to_dict(),
            **self.workload.to_dict(),
            "layer_time_us": self.layer_time_s / US,
            "layer_time_low_us": self.layer_time_low_s / US,
            "layer_time_high_us": self.layer_time_high_s / US,
            "layer_tokens_per_s_per_device": self.tokens_per_s_per_device,
            **{f"{name}_us": self.phase_time_s.get(name, 0.0) / US for name in PHASES},
            "bottleneck": self.bottleneck,
            **{f"{name}_utilisation": self.utilisation.get(name, 0.0) for name in RESOURCES},
            "load_imbalance": self.load_imbalance,
            "dropped_token_fraction": self.dropped_token_fraction,
            **self.effects.row(),
            **self.storage.row(),
            "peak_memory_gib": None
            if self.peak_memory_bytes is None
            else self.peak_memory_bytes / GIB,
            "kernels": self.kernels,
            "tile": self.tile,
            "granularity": self.granularity,
            "evidence": self.evidence,
            "calibration": self.calibration,
            "grade": grade.letter,
            "rests_on": f"{phase}: {grade.rests_on}",
            "engine": self.engine,
            "version": self.version,
            "profile_hash": self.profile_hash,
        }
        return {name: row[name] for name in RESULT_COLUMNS}
