"""What a simulated training step says."""

from dataclasses import dataclass, field, replace
from math import inf

from moesim.costs.grades import Grade
from moesim.costs.training.memory import TrainMemory
from moesim.costs.training.reduction import Volume
from moesim.design.step import ExpertLoad
from moesim.design.training.model import TrainedModel
from moesim.errors import require
from moesim.files.showing import OneRow
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.hardware.frameworks import Framework
from moesim.simulation.trust import basis_digest
from moesim.units import GB, GIB, TERA
from moesim.version import VERSION

_SECONDS_PER_DAY = 86_400.0
_SECONDS_PER_HOUR = 3_600.0
#: phases in which a device waits for others
COMMUNICATION = (
    "dispatch",
    "combine",
    "all_gather",
    "reduce_scatter",
    "context",
    "reduce_gradients",
    "gather_parameters",
    "offload",
)


#: columns of a row, in order
TRAIN_COLUMNS = (
    "model",
    "cluster",
    "devices",
    "layout",
    "plan",
    "precision",
    "micro_batches",
    "step_s",
    "step_low_s",
    "step_high_s",
    "tokens_per_s",
    "tokens_per_s_per_device",
    "tflops_per_device",
    "mfu",
    "hfu",
    "format_mfu",
    "bubble_fraction",
    "exposed_communication_fraction",
    "gradients_and_weights_sent_gb_per_device",
    "dropped_token_fraction",
    "memory_gib",
    "weights_gib",
    "gradients_gib",
    "optimizer_gib",
    "activations_gib",
    "buffers_gib",
    "train_tokens",
    "days",
    "usd",
    "limited_by",
    "kernels",
    "framework",
    "evidence",
    "grade",
    "routing",
    "seed",
    "engine",
    "version",
    "profile_hash",
    "framework_hash",
    "design",
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TrainResult(OneRow):
    """One simulated training step.

    Attributes:
        trained: The design.
        cluster: The cluster.
        load: How tokens choose experts.
        engine: Name of the engine that ran the layers.
        time_s: Time of the step.
        phase_time_s: Seconds of each phase on the busiest stage; they sum to time_s.
        bubble_fraction: Share of the pipeline's time in which a stage waits, the mean over stages.
        useful_flops_per_device: FLOPs that a step needs without any recomputation: three times the
            forward's products, a device's share.
        done_flops_per_device: FLOPs that are done.
        sent: Bytes that a device of the busiest stage sends for gradients and parameters.
        dropped_fraction: Share of choices that were dropped over capacity, the mean over layers.
        kernels: Names of the libraries that run the experts.
        memory: Memory of the fullest device.
        grades: Phase -> what its price rests on.
        framework: Name of the framework; empty before its efficiency is applied.
        low_s: P10 of the time.
        high_s: P90.
        framework_digest: Hash of the framework's record.
    """

    trained: TrainedModel
    cluster: Cluster
    load: ExpertLoad
    engine: str
    time_s: float
    phase_time_s: dict[str, float]
    bubble_fraction: float
    useful_flops_per_device: float
    done_flops_per_device: float
    sent: Volume
    dropped_fraction: float
    kernels: str
    memory: TrainMemory
    grades: dict[str, Grade] = field(default_factory=dict)
    framework: str = ""
    low_s: float = 0.0
    high_s: float = 0.0
    framework_digest: str = ""

    def graded(self, grades: dict[str, Grade], framework: Framework) -> "TrainResult":
        """Return the step as slow as a framework runs it, with what it rests on."""
        slower = 1.0 / framework.efficiency
        time_s = self.time_s * slower
        return replace(
            self,
            time_s=time_s,
            phase_time_s={name: one * slower for name, one in self.phase_time_s.items()},
            grades=grades,
            framework=framework.name,
            low_s=time_s * framework.low,
            high_s=time_s * framework.high,
            framework_digest=framework.digest,
        )

    def facts(self) -> dict[str, str]:
        """Return what people look at first, as texts."""
        return {
            "design": self.trained.label,
            "cluster": self.cluster.name,
            "step": f"{self.time_s:,.3f} s ({self.low_s:,.3f} to {self.high_s:,.3f})",
            "MFU": f"{100 * self.mfu:.1f} %",
            "throughput": f"{self.tokens_per_s_per_device:,.0f} tokens/s per device",
            "bubble": f"{100 * self.bubble_fraction:.1f} %",
            "memory": f"{self.memory.total_bytes / GIB:.1f} GiB",
            "evidence": f"simulated; grade {self.grade}",
        }

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of the run."""
        return self.trained.plan.tokens / self.time_s

    @property
    def tokens_per_s_per_device(self) -> float:
        """Tokens per second and device."""
        return self.tokens_per_s / self.trained.layout.num_devices

    @property
    def flops_per_s_per_device(self) -> float:
        """Useful FLOP/s of a device."""
        return self.useful_flops_per_device / self.time_s

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: useful FLOP/s over the bf16 peak, whatever format multiplies
        (Chowdhery et al. 2022, arXiv 2204.02311).
        """
        return self.flops_per_s_per_device / self.cluster.profile.peak("bfloat16")

    @property
    def hfu(self) -> float:
        """Hardware FLOPs utilization: the FLOP/s that are done over the bf16 peak."""
        done = self.done_flops_per_device / self.time_s
        return done / self.cluster.profile.peak("bfloat16")

    @property
    def format_mfu(self) -> float:
        """Useful FLOP/s over the peak of the format that experts multiply in."""
        peak = self.cluster.profile.peak(self.trained.precision.activations)
        return self.flops_per_s_per_device / peak

    @property
    def exposed_s(self) -> float:
        """Seconds of a step in which a device waits for an exchange."""
        return sum(self.phase_time_s.get(name, 0.0) for name in COMMUNICATION)

    def days(self, tokens: float) -> float:
        """Return the days of a training run of so many tokens, without failures.

        Raises:
            ConfigError: The number is not above 0.
        """
        require(0 < tokens < inf, "tokens", "a number > 0", tokens)
        return tokens / self.tokens_per_s / _SECONDS_PER_DAY

    def usd(self, tokens: float, economics: Economics) -> float:
        """Return the price of a training run of so many tokens, without failures.

        Raises:
            ConfigError: The number is not above 0, or a device has no price.
        """
        hours = self.days(tokens) * _SECONDS_PER_DAY / _SECONDS_PER_HOUR
        return hours * economics.usd_per_hour(self.cluster)

    @property
    def grade(self) -> str:
        """The worst grade among phases that take a tenth of the step."""
        known = [
            self.grades[name].letter
            for name, seconds in self.phase_time_s.items()
            if name in self.grades and seconds >= 0.1 * self.time_s
        ]
        return max(known, default="D")

    def row(
        self, *, tokens: float | None = None, economics: Economics | None = None
    ) -> dict[str, object]:
        """Return the step as one row; units are in the names of columns.

        Args:
            tokens: Tokens of the training run; None leaves days and price empty.
            economics: Cost model; None leaves the price empty.
        """
        memory, trained = self.memory, self.trained
        priced = economics is not None and economics.unknown_price(self.cluster) is None
        return {
            "model": trained.name,
            "cluster": self.cluster.name,
            "devices": trained.layout.num_devices,
            "layout": str(trained.layout),
            "plan": str(trained.plan),
            "precision": trained.precision.name,
            "micro_batches": trained.num_micro_batches,
            "step_s": self.time_s,
            "step_low_s": self.low_s,
            "step_high_s": self.high_s,
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_device": self.tokens_per_s_per_device,
            "tflops_per_device": self.flops_per_s_per_device / TERA,
            "mfu": self.mfu,
            "hfu": self.hfu,
            "format_mfu": self.format_mfu,
            "bubble_fraction": self.bubble_fraction,
            "exposed_communication_fraction": self.exposed_s / self.time_s,
            "gradients_and_weights_sent_gb_per_device": self.sent.total / GB,
            "dropped_token_fraction": self.dropped_fraction,
            "memory_gib": memory.total_bytes / GIB,
            "weights_gib": memory.weights_bytes / GIB,
            "gradients_gib": memory.gradients_bytes / GIB,
            "optimizer_gib": memory.optimizer_bytes / GIB,
            "activations_gib": memory.activations_bytes / GIB,
            "buffers_gib": memory.buffers_bytes / GIB,
            "train_tokens": tokens,
            "days": None if tokens is None else self.days(tokens),
            "usd": (self.usd(tokens, economics) if priced and tokens and economics else None),
            "limited_by": max(self.phase_time_s, key=self.phase_time_s.__getitem__),
            "kernels": self.kernels,
            "framework": self.framework,
            "evidence": "simulated",
            "grade": self.grade,
            "routing": self.load.routing,
            "seed": self.load.seed,
            "engine": self.engine,
            "version": VERSION,
            "profile_hash": basis_digest(self.cluster),
            "framework_hash": self.framework_digest,
            "design": trained.key,
        }
