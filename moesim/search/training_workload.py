"""The training run that a search plans: its budget, and the batch of a step."""

from dataclasses import asdict, dataclass
from typing import Any

from moesim.design.step import ExpertLoad
from moesim.errors import ConfigError, require, require_int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWorkload:
    """A training run.

    Attributes:
        train_tokens: Tokens of the run.
        train_flops: FLOPs of the run instead: tokens are FLOPs / (6 x active parameters), so that
            smaller models see more of them.
        sequence: Tokens of a sequence.
        global_batch: Sequences of a step.
        routing: Distribution of the experts' load; training balances it.
        seed: Seed of the routing.

    Raises:
        ConfigError: A number is out of range, the routing cannot be read, or not exactly one budget
            is given.
    """

    train_tokens: float | None = None
    train_flops: float | None = None
    sequence: int = 4096
    global_batch: int = 1024
    routing: str = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.train_tokens is None) == (self.train_flops is None):
            raise ConfigError("workload: expected exactly one of train_tokens and train_flops")
        for name in ("train_tokens", "train_flops"):
            value = getattr(self, name)
            if value is not None:
                require(0 < value < float("inf"), f"workload.{name}", "a number > 0", value)
        for name in ("sequence", "global_batch"):
            require_int(f"workload.{name}", getattr(self, name), 1)
        self.load()

    def tokens(self, active_params: float) -> float:
        """Return the tokens of the run of a model with so many active parameters."""
        if self.train_tokens is not None:
            return self.train_tokens
        return (self.train_flops or 0.0) / (6.0 * active_params)

    def load(self) -> ExpertLoad:
        """Return how tokens choose experts."""
        return ExpertLoad(routing=self.routing, seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a table."""
        return asdict(self)
