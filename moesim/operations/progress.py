"""How far a job comes while nothing fails: steps and checkpoints of a stretch in closed form."""

from dataclasses import dataclass

from moesim.operations.checkpoints import CheckpointCosts

#: a step that lacks less than this share of itself is done
_ROUNDING = 1e-9


@dataclass(slots=True)
class Lineage:
    """The state of the model: what was computed, and what lasts.

    Attributes:
        position: Steps of the model.
        durable: Steps of the last checkpoint that can be restored.
        since: Steps since the last checkpoint.
        pending: Steps of a checkpoint that is still written, and when it lasts; None if none is.
    """

    position: int = 0
    durable: int = 0
    since: int = 0
    pending: tuple[int, float] | None = None

    def settle(self, now_s: float) -> None:
        """Let a checkpoint last whose writing has ended."""
        if self.pending is not None and self.pending[1] <= now_s + _ROUNDING:
            self.durable, self.pending = self.pending[0], None

    def saved(self) -> None:
        """Take a checkpoint of the present that lasts at once."""
        self.durable, self.since, self.pending = self.position, 0, None

    def rolled_back(self, reach_steps: int) -> int:
        """Go back to the last checkpoint that lasts, and return the steps that are lost.

        Args:
            reach_steps: Steps before it at which its oldest states are.
        """
        target = max(self.durable - reach_steps, 0)
        lost = max(self.position - target, 0)
        self.position -= lost
        # the next checkpoint comes as many steps after the last one as always
        self.since, self.pending = min(self.position - self.durable, 0), None
        return lost


@dataclass(frozen=True, slots=True)
class TrainedStretch:
    """What a stretch of time without failures came to.

    Attributes:
        steps: Steps.
        checkpoints: Checkpoints.
        cut_s: Seconds of a step or checkpoint that was not finished.
    """

    steps: int
    checkpoints: int
    cut_s: float


def trained(
    lineage: Lineage, costs: CheckpointCosts, step_s: float, began_s: float, now_s: float
) -> TrainedStretch:
    """Train from one moment to another, and say what that came to.

    Args:
        lineage: The state of the model, which moves on.
        costs: Its checkpoints.
        step_s: Time of a step.
        began_s: When training began.
        now_s: When it stops.
    """
    every, block_s = costs.interval_steps, costs.block_s
    left = every - lineage.since
    rest_s = now_s - began_s
    first_s = left * step_s + block_s
    cycle_s = every * step_s + block_s
    checkpoints, ahead = 0, left
    if rest_s >= first_s * (1 - _ROUNDING):
        more = int((rest_s - first_s) / cycle_s + _ROUNDING)
        checkpoints, ahead = 1 + more, every
        rest_s = max(rest_s - first_s - more * cycle_s, 0.0)
    tail = min(int(rest_s / step_s + _ROUNDING), ahead)
    lineage.settle(now_s)
    if checkpoints:
        taken = lineage.position + left + (checkpoints - 1) * every
        lasts_s = began_s + first_s + (checkpoints - 1) * cycle_s + costs.lasts_after_s
        # the one before was written when the last one began
        lineage.durable = taken - every if checkpoints > 1 else lineage.durable
        if checkpoints == 1 and lineage.pending is not None:
            lineage.durable = lineage.pending[0]
        lineage.position, lineage.pending = taken, (taken, lasts_s)
        lineage.settle(now_s)
        lineage.since = 0
    lineage.position += tail
    lineage.since += tail
    steps = tail + (left + (checkpoints - 1) * every if checkpoints else 0)
    return TrainedStretch(steps, checkpoints, max(rest_s - tail * step_s, 0.0))
