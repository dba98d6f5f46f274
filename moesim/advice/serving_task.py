"""What is asked about serving a whole model."""

from dataclasses import dataclass, field
from typing import get_args

from moesim.advice.recommendation import Objective
from moesim.design.served import ENGINES, ServedModel
from moesim.design.step import ExpertLoad
from moesim.errors import require
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.serving.limits import Limit
from moesim.serving.loop import RequestTraffic
from moesim.serving.pools import ServingKnobs
from moesim.serving.whole import WholeResult

#: objective -> column of a row, and whether more is better
_COLUMNS = {
    "throughput": ("output_tokens_per_s_per_device", True),
    "cost": ("usd_per_million_tokens", False),
    "energy": ("joules_per_million_tokens", False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingTask:
    """What is asked.

    Attributes:
        served: The model with its formats, in any layout.
        cluster: The hardware.
        traffic: The requests; its number of clients counts if ``clients`` says so.
        limits: Limits on latency.
        engines: Serving engines to choose from.
        economics: Power and prices.
        objective: What is best: ``throughput`` of a device, ``cost`` or ``energy`` of a token.
        clients: Whether the number of clients is given; otherwise it is sought.
        load: How tokens choose experts.
        knobs: What is not left to the engine.

    Raises:
        ConfigError: An objective or an engine is unknown.
    """

    served: ServedModel
    cluster: Cluster
    traffic: RequestTraffic
    limits: tuple[Limit, ...]
    engines: tuple[str, ...]
    economics: Economics
    objective: Objective = "throughput"
    clients: bool = False
    load: ExpertLoad = field(default_factory=ExpertLoad)
    knobs: ServingKnobs = field(default_factory=ServingKnobs)

    def __post_init__(self) -> None:
        names = get_args(Objective)
        require(self.objective in names, "objective", " or ".join(names), self.objective)
        for engine in self.engines:
            require(engine in ENGINES, "engine", " or ".join(ENGINES), engine)

    def keeps(self, result: WholeResult) -> bool:
        """Return whether a result keeps all limits."""
        return all(limit.keeps(result) for limit in self.limits)

    def worth(self, row: dict[str, object]) -> float:
        """Return how good a row is; more is better."""
        column, more = _COLUMNS[self.objective]
        value = float(str(row[column]))
        return value if more else -value


__all__ = ["ServingTask"]
