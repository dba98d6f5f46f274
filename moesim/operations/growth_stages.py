"""A plan of growth, and what its stages come to."""

from dataclasses import dataclass, replace
from typing import Any

from moesim.errors import require
from moesim.hardware import Cluster
from moesim.model import Gate
from moesim.model.hf_config import Model
from moesim.model.spec import ModelSpec
from moesim.units import GIB
from moesim.version import VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthStage:
    """A stage.

    Attributes:
        month: When it begins.
        num_experts: Experts of a layer.
        upcycled: Whether new experts are copies of old ones; otherwise they are drawn where they
            are.
        gate: What chooses them; None for what chose before.
    """

    month: float
    num_experts: int
    upcycled: bool = True
    gate: Gate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthPlan:
    """A plan over months.

    Attributes:
        model: The model; its experts are those of the first stage.
        cluster: A cluster of the kind to be grown.
        stages: Stages in order, the first at month 0.
        months: When the plan ends.
        tokens_per_month: Tokens of training of a month.
        training: Whether it is in training; otherwise it is served in bf16, its loss being that
            of a training that goes on elsewhere.
        expert_width: Width of an expert; None for the model's.
        most_devices: Devices that there are at most; None for a million.
        sequence: Tokens of a sequence, of which a device computes one at a time, all recomputed.
        restart_s: Seconds of a restart.
        storage_bytes_per_s: Bytes of a second that storage takes from the whole job.

    Raises:
        ConfigError: Stages are not in order, shrink, or begin late, or the model has no experts.
    """

    model: Model
    cluster: Cluster
    stages: tuple[GrowthStage, ...]
    months: float
    tokens_per_month: float
    training: bool = True
    expert_width: int | None = None
    most_devices: int | None = None
    sequence: int = 4096
    restart_s: float = 300.0
    storage_bytes_per_s: float = 1e12

    def __post_init__(self) -> None:
        require(self.model.spec.moe is not None, "growth.model", "experts", self.model.name)
        require(self.stages[0].month == 0, "growth.stages[0].month", "0", self.stages[0].month)
        for number in range(1, len(self.stages)):
            old, new = self.stages[number - 1], self.stages[number]
            where = f"growth.stages[{number}]"
            require(new.month > old.month, f"{where}.month", f"> {old.month:g}", new.month)
            rule = f">= {old.num_experts}, those before"
            require(
                new.num_experts >= old.num_experts, f"{where}.num_experts", rule, new.num_experts
            )
        last = self.stages[-1].month
        require(self.months > last, "growth.months", f"> {last:g}, the last stage", self.months)

    def spec(self, stage: int) -> ModelSpec:
        """Return the model of a stage.

        Raises:
            ConfigError: The gate cannot choose among so many experts.
        """
        gates = [one.gate for one in self.stages[: stage + 1] if one.gate is not None]
        blocks = []
        for block in self.model.spec.blocks:
            moe = block.moe
            if moe is not None:
                moe = replace(
                    moe,
                    num_experts=self.stages[stage].num_experts,
                    width=self.expert_width or moe.width,
                    gate=gates[-1] if gates else moe.gate,
                )
            blocks.append(replace(block, moe=moe))
        return replace(self.model.spec, blocks=tuple(blocks))


@dataclass(frozen=True, slots=True, kw_only=True)
class GrownStage:
    """What a stage comes to.

    Attributes:
        stage: The stage.
        total_params: Parameters of the model.
        devices: Devices on which it fits.
        memory_bytes: Bytes that the fullest device holds.
        moved_bytes: Bytes that travel when it begins.
        moved_s: Seconds in which they do.
        downtime_s: Seconds in which the job or service stands.
        device_hours: Hours of all devices until the stage ends.
        tokens: Tokens of training until it ends.
        loss: Low end, middle and high end of the loss at its end, in nats.
        extrapolated: Whether the law's range ends before.
    """

    stage: GrowthStage
    total_params: float
    devices: int
    memory_bytes: float
    moved_bytes: float
    moved_s: float
    downtime_s: float
    device_hours: float
    tokens: float
    loss: tuple[float, float, float]
    extrapolated: bool

    def row(self) -> dict[str, Any]:
        """Return a flat row for a CSV file."""
        return {
            "month": self.stage.month,
            "num_experts": self.stage.num_experts,
            "upcycled": self.stage.upcycled,
            "total_params": self.total_params,
            "devices": self.devices,
            "memory_gib": self.memory_bytes / GIB,
            "moved_gib": self.moved_bytes / GIB,
            "moved_s": self.moved_s,
            "downtime_s": self.downtime_s,
            "device_hours": self.device_hours,
            "train_tokens": self.tokens,
            "loss_low": self.loss[0],
            "loss": self.loss[1],
            "loss_high": self.loss[2],
            "loss_extrapolated": self.extrapolated,
            "evidence": "extrapolated" if self.extrapolated else "simulated",
            "version": VERSION,
        }
