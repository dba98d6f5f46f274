"""The requests that a search serves."""

from dataclasses import asdict, dataclass
from typing import Any

from moesim.design.step import ExpertLoad
from moesim.serving.loop import RequestTraffic


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingWorkload:
    """Requests of a closed loop, whose clients are a choice of the space.

    Attributes:
        isl: Tokens of a prompt, see `moesim.serving.loop.lengths`.
        osl: Tokens of an answer, in the same forms.
        routing: Distribution of the experts' load.
        seed: Seed of the routing, and of the requests where they are followed.

    Raises:
        ConfigError: A length or the routing cannot be read.
    """

    isl: str | int = 1024
    osl: str | int = 1024
    routing: str = "power_law:1.2"
    seed: int = 0

    def __post_init__(self) -> None:
        self.traffic(1)
        self.load()

    def traffic(self, clients: int, num_requests: int | None = None) -> RequestTraffic:
        """Return the requests of so many clients."""
        return RequestTraffic(
            concurrency=clients,
            num_requests=num_requests,
            isl=self.isl,
            osl=self.osl,
            seed=self.seed,
        )

    def load(self) -> ExpertLoad:
        """Return how tokens choose experts."""
        return ExpertLoad(routing=self.routing, seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a table."""
        return asdict(self)
