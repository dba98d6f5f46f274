"""What checkpoints cost, and what they leave to be done again.

- ``full``: all states.
- ``incremental``: a full one now and then, between them what changed since the last.
- ``partial``: dense states and a share of the experts, turn by turn (partial experts
  checkpointing, MoC-System, arXiv 2408.04307). After a failure the others come from older
  checkpoints: their updates since then are lost.
- ``sparse``: each step copies a share of all states into the memory of peers, so that a window of
  steps holds them all (MoEvement, arXiv 2412.15411). From a window, states of different steps
  become those of one step as its steps are computed again.

A synchronous checkpoint stops the job until it is written. An asynchronous one stops it until the
states are copied to the hosts, less what is hidden under passes that do not change them, and lasts
once it is written; the next waits for that.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from moesim.errors import require, require_int
from moesim.operations.training_job import TrainingJob

CheckpointKind = Literal["full", "incremental", "partial", "sparse"]
CHECKPOINTS: tuple[CheckpointKind, ...] = ("full", "incremental", "partial", "sparse")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPolicy:
    """How and how often states are saved.

    Attributes:
        kind: ``full``, ``incremental``, ``partial`` or ``sparse``.
        interval_s: Seconds of training between two; ignored by ``sparse``.
        asynchronous: Whether training goes on while states are written.
        storage_bytes_per_s: Bytes of a second that storage takes from and gives to the whole job.
        host_bytes_per_s: Bytes of a second that a device copies to its host, or a peer.
        hidden_fraction: Share of a step's time under which such a copy is hidden.
        host_copies: Whether all states stay in the hosts' memory from one checkpoint to the next
            (two levels, as in MoC-System), so that only what failed devices held comes from
            storage.
        block_s: Seconds in which a checkpoint stops the job, instead of what follows from bytes.
        expert_fraction: Share of the experts in a ``partial`` checkpoint.
        full_every: Checkpoints from one full ``incremental`` one to the next.
        changed_fraction: Share of the states that the others write.
        window_steps: Steps of a ``sparse`` window.

    Raises:
        ConfigError: A number is out of range.
    """

    kind: CheckpointKind = "full"
    interval_s: float = 1_800.0
    asynchronous: bool = False
    storage_bytes_per_s: float = 1e12
    host_bytes_per_s: float = 25e9
    hidden_fraction: float = 0.0
    host_copies: bool = False
    block_s: float | None = None
    expert_fraction: float = 0.125
    full_every: int = 8
    changed_fraction: float = 0.5
    window_steps: int = 8

    def __post_init__(self) -> None:
        def check(key: str, holds: bool, rule: str) -> None:
            require(holds, f"checkpoint.{key}", rule, getattr(self, key))

        check("kind", self.kind in CHECKPOINTS, " or ".join(CHECKPOINTS))
        for key in ("interval_s", "storage_bytes_per_s", "host_bytes_per_s"):
            check(key, getattr(self, key) > 0, "a number > 0")
        check("interval_s", self.interval_s <= 1e9, "a number <= 1e9")
        check("expert_fraction", 0.001 <= self.expert_fraction <= 1, "a fraction of .001 to 1")
        check("changed_fraction", 0 < self.changed_fraction <= 1, "a fraction > 0 and <= 1")
        check("hidden_fraction", 0 <= self.hidden_fraction <= 1, "a fraction >= 0 and <= 1")
        check("block_s", self.block_s is None or self.block_s >= 0, "a number >= 0")
        require_int("checkpoint.full_every", self.full_every, 1)
        require_int("checkpoint.window_steps", self.window_steps, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCosts:
    """What a policy costs a job.

    Attributes:
        interval_steps: Steps between two checkpoints.
        block_s: Seconds in which each stops the job.
        lasts_after_s: Seconds from then until it can be restored.
        written_bytes: Bytes of each, the mean.
        restore_s: Seconds in which the job reads one back from storage.
        from_hosts_s: Seconds in which devices read their states from their hosts; None if nothing
            stays there.
        reach_steps: Steps before a checkpoint at which the oldest states in it are; they are
            computed again.
        expert_turns: Checkpoints until all experts were saved once.
    """

    interval_steps: int
    block_s: float
    lasts_after_s: float
    written_bytes: float
    restore_s: float
    from_hosts_s: float | None
    reach_steps: int
    expert_turns: int

    @property
    def mean_expert_age(self) -> float:
        """Checkpoints that an expert's last copy is older than the last checkpoint, the mean: turn
        by turn, 0 to ``expert_turns`` - 1.
        """
        return (self.expert_turns - 1) / 2.0

    def read_s(self, share: float) -> float:
        """Return the seconds of a restore after a share of the devices failed."""
        if self.from_hosts_s is None:
            return self.restore_s
        return max(self.from_hosts_s, self.restore_s * share)


def checkpoint_costs(policy: CheckpointPolicy, job: TrainingJob) -> CheckpointCosts:
    """Return what a policy costs a job without failures."""
    written, read = _bytes(policy, job)
    kept = policy.host_copies and policy.kind != "sparse"
    from_hosts_s = job.state_bytes / job.devices / policy.host_bytes_per_s
    copied_s = from_hosts_s if kept else written / job.devices / policy.host_bytes_per_s
    stored_s = written / policy.storage_bytes_per_s
    exposed_s = max(copied_s - policy.hidden_fraction * job.step_s, 0.0)
    if policy.kind == "sparse":
        steps, block_s, after_s = policy.window_steps, exposed_s * policy.window_steps, 0.0
        read_s = from_hosts_s
    else:
        steps = max(round(policy.interval_s / job.step_s), 1)
        block_s, after_s = (exposed_s, stored_s) if policy.asynchronous else (stored_s, 0.0)
        read_s = read / policy.storage_bytes_per_s
    if policy.block_s is not None:
        block_s = policy.block_s
    # one is written at a time
    block_s = max(block_s, after_s - steps * job.step_s)
    turns = round(1.0 / policy.expert_fraction) if policy.kind == "partial" else 1
    return CheckpointCosts(
        interval_steps=steps,
        block_s=block_s,
        lasts_after_s=after_s,
        written_bytes=written,
        restore_s=read_s,
        from_hosts_s=from_hosts_s if kept else None,
        reach_steps=policy.window_steps if policy.kind == "sparse" else 0,
        expert_turns=turns,
    )


def _bytes(policy: CheckpointPolicy, job: TrainingJob) -> tuple[float, float]:
    """Return the bytes that a checkpoint writes, the mean, and that a restart reads."""
    states = job.state_bytes
    if policy.kind == "partial":
        return job.dense_bytes + job.expert_bytes * policy.expert_fraction, states
    if policy.kind == "sparse":
        return states / policy.window_steps, states
    if policy.kind == "incremental":
        more = (policy.full_every - 1) * policy.changed_fraction
        # on average half of the increments have been written when a failure comes
        return states * (1.0 + more) / policy.full_every, states * (1.0 + more / 2.0)
    return states, states


def ettr_of(*, block_s: float, interval_s: float, restart_s: float, mtbf_s: float) -> float:
    """Return the effective training time ratio to first order, which holds where checkpoints and
    restarts are short against the time between failures: ``1 - (block / interval + (interval / 2 +
    restart) / MTBF)`` (Young 1974, doi 10.1145/361147.361115).

    Args:
        block_s: Seconds in which a checkpoint stops the job.
        interval_s: Seconds from one checkpoint to the next.
        restart_s: Seconds from a failure until the job trains again.
        mtbf_s: Mean seconds between failures of the job.
    """
    return 1.0 - (block_s / interval_s + (interval_s / 2.0 + restart_s) / mtbf_s)


def best_interval_s(block_s: float, mtbf_s: float) -> float:
    """Return the interval at which `ettr_of` is highest: ``sqrt(2 block MTBF)`` (Young 1974)."""
    return sqrt(2.0 * block_s * mtbf_s)
