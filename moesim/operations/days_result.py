"""What days of training came to: time by what it went to, work done and lost, and each event."""

from dataclasses import dataclass
from typing import Any

from moesim.files.showing import OneRow
from moesim.operations.failure_rates import DAY_S, HOUR_S
from moesim.operations.training_job import TrainingJob
from moesim.quality import PUBLISHED
from moesim.version import VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class DayEvent:
    """One interruption, or one change without.

    Attributes:
        time_s: When it came.
        cause: Its cause.
        scope: What went down.
        device: The first device that it took along.
        response: ``rollback`` to a checkpoint, ``failover`` to copies of experts, ``planned`` stop,
            ``slow`` steps from here on, ``replaced`` without loss, ``silent`` corruption from here
            on, or ``rejoin`` of repaired nodes.
        down_s: Seconds in which the job stood.
        lost_steps: Steps that are computed again.
        lost_updates: Expert-steps that no checkpoint or copy has: experts x steps.
        devices: Devices that the job goes on with.
        spares: Spare nodes left; below 0 those that are missing.
    """

    time_s: float
    cause: str
    scope: str
    device: int
    response: str
    down_s: float
    lost_steps: int
    lost_updates: float
    devices: int
    spares: int

    def row(self) -> dict[str, Any]:
        """Return a flat row for a CSV file."""
        return {
            "time_h": self.time_s / HOUR_S,
            "cause": self.cause,
            "scope": self.scope,
            "device": self.device,
            "response": self.response,
            "down_s": self.down_s,
            "lost_steps": self.lost_steps,
            "lost_expert_updates": self.lost_updates,
            "devices": self.devices,
            "spares": self.spares,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkedStretch:
    """A time in which the job trained without standing.

    Attributes:
        begin_s: When it began.
        end_s: When it ended.
        step_s: Time of a step in it, refreshes of copies included.
        until_checkpoint: Steps up to its first checkpoint.
        interval_steps: Steps from one checkpoint to the next.
        checkpoints: Checkpoints in it.
        block_s: Seconds in which each stopped the steps.
        steps: Steps in it.
        cut_s: Seconds at its end of a step or checkpoint that was not finished.
    """

    begin_s: float
    end_s: float
    step_s: float
    until_checkpoint: int
    interval_steps: int
    checkpoints: int
    block_s: float
    steps: int
    cut_s: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DaysResult(OneRow):
    """Days of training.

    The seconds of all kinds sum to the days: steps of the lineage and steps that were lost, at the
    time of a step without failures; what fewer devices and stragglers add to steps; refreshes of
    copies; checkpoints; steps and checkpoints that a failure cut; and the time the job stood.

    Attributes:
        job: The job.
        days: Days.
        seed: Seed of the failures.
        useful_steps: Steps in the lineage of the model at the end.
        lost_steps: Steps that were computed and rolled back.
        slow_s: Seconds that fewer devices and stragglers added to steps.
        replication_s: Seconds in which refreshes of copies stopped steps.
        checkpoint_s: Seconds in which checkpoints stopped steps.
        cut_s: Seconds of steps and checkpoints that were not finished.
        down_s_by_cause: Cause -> seconds in which the job stood.
        interruptions: Times that the job stood.
        failovers: Failures after which copies of experts took over.
        rollbacks: Failures after which the job went back to a checkpoint.
        lost_updates: Expert-steps that no checkpoint or copy had: experts x steps.
        events: Events in order.
        stretches: The times in which the job trained, in order.
    """

    job: TrainingJob
    days: float
    seed: int
    useful_steps: int
    lost_steps: int
    slow_s: float
    replication_s: float
    checkpoint_s: float
    cut_s: float
    down_s_by_cause: dict[str, float]
    interruptions: int
    failovers: int
    rollbacks: int
    lost_updates: float
    events: tuple[DayEvent, ...]
    stretches: tuple[WorkedStretch, ...] = ()

    def facts(self) -> dict[str, str]:
        """Return what people look at first, as texts."""
        return {
            "days": f"{self.days:g}",
            "ETTR": f"{self.ettr:.4f}",
            "interruptions": f"{self.interruptions:,}",
            "steps": f"{self.useful_steps:,} useful, {self.lost_steps:,} lost",
            "down": f"{self.down_s / 3600:,.1f} h",
            "failovers, rollbacks": f"{self.failovers:,}, {self.rollbacks:,}",
            "seed": str(self.seed),
        }

    @property
    def computed_steps(self) -> int:
        """All steps that were computed: useful and lost."""
        return self.useful_steps + self.lost_steps

    @property
    def useful_samples(self) -> int:
        """Samples in the lineage of the model."""
        return self.useful_steps * self.job.samples_per_step

    @property
    def lost_samples(self) -> int:
        """Samples that were computed again."""
        return self.lost_steps * self.job.samples_per_step

    @property
    def down_s(self) -> float:
        """Seconds in which the job stood."""
        return sum(self.down_s_by_cause.values())

    @property
    def ettr(self) -> float:
        """Effective training time ratio: time of the steps in the lineage over all time."""
        return self.useful_steps * self.job.step_s / (self.days * DAY_S)

    @property
    def goodput_samples_per_s(self) -> float:
        """Samples in the lineage per second."""
        return self.useful_samples / (self.days * DAY_S)

    @property
    def lost_update_fraction(self) -> float:
        """The share of all expert-steps whose updates are lost (the proportion of lost tokens of
        arXiv 2408.04307 if all experts get as many).
        """
        return self.lost_updates / max(self.useful_steps * self.job.num_experts, 1)

    @property
    def loss_effect(self) -> tuple[float, float, float] | None:
        """Low end, middle and high end of what lost updates cost in loss, in nats; None if the
        job says nothing of its parameters.

        This is an assumption. The low end is 0: MoC-System saw none (arXiv 2408.04307). The high
        end is what the joint law says of a model that never saw the lost share of the tokens,
        although its dense part did and experts see others after it. The middle is half of that.
        """
        job = self.job
        if job.active_params is None or not self.useful_steps:
            return None
        tokens = self.useful_samples * job.tokens_per_sample
        left = max(1.0 - self.lost_update_fraction, 1e-9)
        sizes = job.experts_over_top_k, job.active_params
        less, all_ = (PUBLISHED.mid(*sizes, n, 1.0) for n in (tokens * left, tokens))
        high = float(less) - float(all_)
        return 0.0, high / 2.0, high

    def row(self) -> dict[str, Any]:
        """Return the days as one row; units are in the names of columns."""
        effect = self.loss_effect or (None, None, None)
        return {
            "days": self.days,
            "devices": self.job.devices,
            "ettr": self.ettr,
            "goodput_samples_per_s": self.goodput_samples_per_s,
            "interruptions": self.interruptions,
            "rollbacks": self.rollbacks,
            "failovers": self.failovers,
            "useful_steps": self.useful_steps,
            "lost_steps": self.lost_steps,
            "useful_samples": self.useful_samples,
            "lost_samples": self.lost_samples,
            "lost_expert_updates": self.lost_updates,
            "lost_update_fraction": self.lost_update_fraction,
            "loss_effect_low": effect[0],
            "loss_effect": effect[1],
            "loss_effect_high": effect[2],
            "down_h": self.down_s / HOUR_S,
            "checkpoint_h": self.checkpoint_s / HOUR_S,
            "replication_h": self.replication_s / HOUR_S,
            "slow_h": self.slow_s / HOUR_S,
            "cut_h": self.cut_s / HOUR_S,
            "evidence": "simulated",
            "seed": self.seed,
            "version": VERSION,
        }

    def downtime_rows(self) -> list[dict[str, Any]]:
        """Return a row for each cause, that with most downtime first."""
        causes = sorted(self.down_s_by_cause.items(), key=lambda one: -one[1])
        counts: dict[str, int] = {}
        for event in self.events:
            counts[event.cause] = counts.get(event.cause, 0) + (event.down_s > 0)
        return [
            {"cause": name, "interruptions": counts.get(name, 0), "down_h": seconds / HOUR_S}
            for name, seconds in causes
        ]
