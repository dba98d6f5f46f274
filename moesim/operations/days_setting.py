"""What days of training are simulated: the job, its failures, and how it is run."""

from dataclasses import dataclass, field

from moesim.operations.checkpoints import CheckpointPolicy
from moesim.operations.failure_draws import Draws, draw_failures
from moesim.operations.failure_rates import Cause
from moesim.operations.recovery import RecoveryPolicy
from moesim.operations.replication import ReplicationPolicy
from moesim.operations.training_job import TrainingJob


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingDays:
    """What is to be simulated.

    Attributes:
        job: The job.
        days: Days.
        causes: Reasons for interruptions.
        checkpoint: How states are saved.
        replication: Copies of experts.
        recovery: How the job comes back.
    """

    job: TrainingJob
    days: float
    causes: tuple[Cause, ...]
    checkpoint: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    replication: ReplicationPolicy = field(default_factory=ReplicationPolicy)
    recovery: RecoveryPolicy = field(default_factory=RecoveryPolicy)

    def draws(self, seed: int) -> tuple[Draws, ...]:
        """Draw the failures, which many settings of one job can share."""
        return draw_failures(self.causes, self.job.topology, self.days, seed)
