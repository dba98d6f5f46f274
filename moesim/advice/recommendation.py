"""Define what a recommendation says: the design, its alternatives, what limits it and what would
help.
"""

from dataclasses import dataclass
from typing import Any, Literal

from moesim.advice.gains import Span
from moesim.design.candidate import Candidate, Workload
from moesim.hardware import Cluster
from moesim.model.hf_config import Model
from moesim.simulation.result import Result
from moesim.units import GIB, US

Objective = Literal["throughput", "cost", "energy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One simulated design.

    Attributes:
        result: Result of the engine that its row names.
        group: 0 if no other design is better for certain; 1 if that holds among the rest; and so on
            (`moesim.advice.ties.groups`).
        loss_delta: Loss over that of the model's published format in nats: (middle, low, high).
        wall_watts_per_device: Power of a device while the layer runs, with its share of host and
            cooling; None where the cost model has no figure.
        wall_factor: That power over the power of the device and its NIC alone.
        usd_per_hour: Price of the whole cluster; None where the cost model has no figure.
        moe_layers: Number of MoE layers of one forward pass.
        cost_model: Name and digest of the cost model that power and price come from.
        event_layer_time_s: The layer's time by the event engine, chunk by chunk, for the first few
            designs and the best.
    """

    result: Result
    group: int
    loss_delta: tuple[float, float, float]
    wall_watts_per_device: float | None
    wall_factor: float
    usd_per_hour: float | None
    moe_layers: int
    cost_model: str
    event_layer_time_s: float | None = None

    @property
    def candidate(self) -> Candidate:
        """The design."""
        return self.result.candidate

    @property
    def watts_per_device(self) -> float | None:
        """The power of a device and its NIC alone; None where the cost model has no figure."""
        wall = self.wall_watts_per_device
        return None if wall is None else wall / self.wall_factor

    @property
    def pass_time_s(self) -> float:
        """The seconds of all MoE layers of one forward pass, one after the other, with nothing
        between them.
        """
        return self.moe_layers * self.result.layer_time_s

    @property
    def tokens_per_s_per_device(self) -> float:
        """The tokens per second of a device through all MoE layers: an upper bound for the model,
        since the rest of it is not simulated.
        """
        return self.result.workload.num_tokens_per_device / self.pass_time_s

    def row(self) -> dict[str, Any]:
        """Return a flat row: the columns of `Result.row`, and those of a recommendation."""
        result, found = self.result, self.result.row()
        usable = None
        if result.peak_memory_bytes is not None and result.memory_over_bytes is not None:
            usable = (result.peak_memory_bytes - result.memory_over_bytes) / GIB
        tokens = result.workload.num_tokens_per_device
        joules = (
            None
            if self.wall_watts_per_device is None
            else self.wall_watts_per_device * self.pass_time_s / tokens
        )
        usd = None
        if self.usd_per_hour is not None:
            usd = (
                self.usd_per_hour
                / 3600
                * self.pass_time_s
                * 1e6
                / (result.tokens_per_s * result.layer_time_s)
            )
        return {
            "group": self.group,
            **found,
            "event_layer_time_us": None
            if self.event_layer_time_s is None
            else self.event_layer_time_s / US,
            "moe_layers": self.moe_layers,
            "moe_layers_ms": self.pass_time_s * 1e3,
            "moe_layers_low_ms": self.moe_layers * result.layer_time_low_s * 1e3,
            "moe_layers_high_ms": self.moe_layers * result.layer_time_high_s * 1e3,
            "moe_layers_tokens_per_s_per_device": self.tokens_per_s_per_device,
            "usable_memory_gib": usable,
            "loss_delta": self.loss_delta[0],
            "loss_delta_low": self.loss_delta[1],
            "loss_delta_high": self.loss_delta[2],
            "watts_per_device": self.watts_per_device,
            "wall_watts_per_device": self.wall_watts_per_device,
            "moe_layers_joules_per_token": joules,
            "usd_per_hour": self.usd_per_hour,
            "moe_layers_usd_per_million_tokens": usd,
            "cost_model": self.cost_model,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Help:
    """What one change would bring to the recommended design, everything else equal.

    Attributes:
        change: The change in words.
        factor: Layer tokens/s after the change over those of the recommended design, with its
            interval.
    """

    change: str
    factor: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A recommended design and everything it was compared with.

    Attributes:
        model: The model that is served.
        cluster: The hardware it runs on.
        workload: Tokens and routing it was simulated on.
        objective: The quantity that is optimized.
        best: The simplest of the designs that no other beats for certain.
        choices: Simulated designs, best first; ``best`` is one of them.
        helps: Changes that would help, the most helpful first.
        num_screened: Number of designs whose bound was computed.
        num_fitting: Number of those that fit in memory.
        engines: Serving engines that launch ``best`` as simulated.
        exchange: Rows of both directions of the exchange of ``best``, see
            `moesim.simulation.run.exchange_of`.
        kv_tokens_left: Tokens of KV cache per device that would still fit.
        notes: The assumptions, in words.
    """

    model: Model
    cluster: Cluster
    workload: Workload
    objective: Objective
    best: Choice
    choices: list[Choice]
    helps: list[Help]
    num_screened: int
    num_fitting: int
    engines: tuple[str, ...]
    exchange: list[dict[str, object]]
    kv_tokens_left: int
    notes: tuple[str, ...]

    @property
    def tied(self) -> list[Choice]:
        """The designs that no other design beats for certain, ``best`` among them."""
        return [choice for choice in self.choices if choice.group == 0]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of a table: the recommended design first (``rank`` 0), then the others,
        best first.
        """
        others = [choice for choice in self.choices if choice is not self.best]
        return [
            {
                "rank": rank,
                "model": self.model.name,
                "recommended": choice is self.best,
                **choice.row(),
            }
            for rank, choice in enumerate([self.best, *others])
        ]


__all__ = ["Choice", "Help", "Objective", "Recommendation"]
