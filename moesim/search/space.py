"""What may vary, and what a point of it means.

A space lists choices; a point is one choice of each, as plain numbers and strings that a storage can hold. `decode`
makes a `Candidate` of it, or says why there is none.
"""

import re
from dataclasses import replace
from itertools import product
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from moesim.candidate import Candidate, Parallelism
from moesim.configfile import Strict, describe
from moesim.errors import ConfigError, UnknownNameError
from moesim.model import DensePart, Gate, MoELayer, Precision
from moesim.placement import REPLICATING, PlacementSpec
from moesim.presets import load_preset
from moesim.schedule import Schedule
from moesim.widths import checked_widths, parse_widths, width_text


def _width(value: object) -> object:
    """A width as it is; widths of all experts as text, from text or a list.

    Raises:
        ValueError: Neither.
    """
    if isinstance(value, list | tuple):
        value = width_text(checked_widths(value, len(value)))
    if isinstance(value, str):
        return width_text(parse_widths(value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected an integer, a list of them or text such as '64x256+64x1024', got {value!r}")
    return value


#: the exchange that the cluster names
_OWN = "cluster"


class Space(Strict):
    """Choices of a search; every list needs at least one entry.

    Attributes:
        dense_part: Preset whose dense part surrounds the experts.
        num_layers: Layers, all with experts; by default the preset's.
        hidden_size: Width of a token; must be the preset's, stated so that nobody is surprised.
        train_tokens: Training budget in tokens, or
        train_flops: in FLOPs: exactly one.
        num_experts: Choices.
        top_k: Choices.
        expert_intermediate_size: Choices: a width, or a width for each expert as a list of them or as text such as
            ``64x256+64x1024`` (64 experts of width 256, then 64 of 1024; width 0 prunes). Points hold the text.
        gate: Choices such as ``flat``, ``group_limited:8:4``, ``two_level:16:4``, ``product_key``.
        placement: Choices of strategy, such as ``eplb``, ``random:7``, ``local_search:200`` or ``eplb/nearest``; see
            `moesim.placement.strategies`.
        num_replicas: Choices; strategies that place no replicas ignore them.
        parallelism: Choices such as ``ep8``, ``ep4tp2``.
        precision: Choices of recipe, such as ``bf16``, ``fp8``, ``int4``.
        dispatch: Choices of exchange, see `moesim.schedule`; ``cluster``: the cluster's own.
        num_micro_batches: Choices.
        capacity_factor: Choices; 0: dropless.
        overflow: What becomes of choices over capacity, ``drop`` or ``reroute``.
        num_shared_experts: Shared experts of every candidate.

    Raises:
        ConfigError: A malformed space: key, rule and what came instead.
    """

    dense_part: str
    num_layers: int | None = Field(default=None, ge=1)
    hidden_size: int = Field(ge=1)
    train_tokens: float | None = Field(default=None, gt=0)
    train_flops: float | None = Field(default=None, gt=0)
    num_experts: list[int] = Field(min_length=1)
    top_k: list[int] = Field(min_length=1)
    expert_intermediate_size: list[Annotated[int | str, BeforeValidator(_width)]] = Field(min_length=1)
    gate: list[str] = Field(default=["flat"], min_length=1)
    placement: list[str] = Field(default=["contiguous"], min_length=1)
    num_replicas: list[int] = Field(default=[0], min_length=1)
    parallelism: list[str] = Field(default=["ep8"], min_length=1)
    precision: list[str] = Field(default=["bf16"], min_length=1)
    dispatch: list[str] = Field(default=[_OWN], min_length=1)
    num_micro_batches: list[int] = Field(default=[1], min_length=1)
    capacity_factor: list[float] = Field(default=[0.0], min_length=1)
    overflow: list[str] = Field(default=["drop"], min_length=1)
    num_shared_experts: int = Field(default=0, ge=0)

    def __init__(self, **choices: Any) -> None:
        try:
            super().__init__(**choices)
        except ValidationError as error:
            raise ConfigError(describe(error, "space")) from None
        for gate, spread, precision in product(self.gate, self.parallelism, self.precision):
            Gate.parse(gate)
            parse_parallelism(spread)
            Precision.named(precision)
        for dispatch, parts in product(self.dispatch, self.num_micro_batches):
            Schedule(dispatch=None if dispatch == _OWN else dispatch, num_micro_batches=parts)
        for strategy in self.placement:
            PlacementSpec.parse(strategy)
        hidden = load_preset(self.dense_part).dense_part.hidden_size
        if hidden != self.hidden_size:
            raise ConfigError(f"space: hidden_size: expected {hidden}, that of dense_part {self.dense_part!r}, "
                              f"got {self.hidden_size}")

    @model_validator(mode="after")
    def _one_budget(self) -> "Space":
        if (self.train_tokens is None) == (self.train_flops is None):
            raise ValueError("@train_tokens@exactly one of train_tokens and train_flops@"
                             + ("neither" if self.train_tokens is None else "both"))
        return self

    def choices(self) -> dict[str, list]:
        """Name -> choices of everything that may vary, in a fixed order."""
        varied = [name for name in OPTIONAL if len(getattr(self, name)) > 1]
        return {name: getattr(self, name) for name in (*PARAMETERS, *varied)}

    def check_point(self, params: dict[str, Any]) -> None:
        """Refuse a point, or a part of one, that is not in the space.

        Raises:
            UnknownNameError: A parameter nobody defined.
            ConfigError: A choice that is not listed.
        """
        choices = self.choices()
        for name, value in params.items():
            if name not in choices:
                raise UnknownNameError("parameter", name, choices)
            if value not in choices[name]:
                raise ConfigError(f"space: {name}: expected one of {', '.join(map(str, choices[name]))}, got {value!r}")

    def dense(self) -> DensePart:
        """The dense part around every candidate."""
        dense = load_preset(self.dense_part).dense_part
        layers = self.num_layers or dense.num_layers
        return replace(dense, num_layers=layers, num_moe_layers=layers)

    def decode(self, params: dict[str, Any]) -> Candidate:
        """The candidate at a point.

        Raises:
            ConfigError: The choices do not go together (top_k > num_experts, experts not divisible into groups).
        """
        plain = {name: getattr(self, name)[0] for name in OPTIONAL}
        params = plain | params
        width = params["expert_intermediate_size"]
        replicates = PlacementSpec.parse(params["placement"]).strategy in REPLICATING
        layer = MoELayer(
            hidden_size=self.hidden_size,
            expert_intermediate_size=parse_widths(width) if isinstance(width, str) else width,
            num_experts=params["num_experts"],
            top_k=params["top_k"],
            num_shared_experts=self.num_shared_experts,
            capacity_factor=params["capacity_factor"] or None,
            overflow=params["overflow"],
            precision=Precision.named(params["precision"]),
            gate=Gate.parse(params["gate"]),
        )
        return Candidate(
            layer=layer,
            parallelism=parse_parallelism(params["parallelism"]),
            placement=params["placement"],
            num_replicas=params["num_replicas"] if replicates else 0,
            dense_part=self.dense(),
            schedule=Schedule(dispatch=None if params["dispatch"] == _OWN else params["dispatch"],
                              num_micro_batches=params["num_micro_batches"]),
        )


PARAMETERS = ("num_experts", "top_k", "expert_intermediate_size", "gate", "placement", "num_replicas", "parallelism",
              "precision")
#: parameters only where a space lists more than one choice
OPTIONAL = ("dispatch", "num_micro_batches", "capacity_factor", "overflow")


def parse_parallelism(text: str) -> Parallelism:
    """Read ``ep8`` or ``ep4tp2``.

    Raises:
        ConfigError: Not of that form.
    """
    match = re.fullmatch(r"ep(\d+)(?:tp(\d+))?", text)
    if match is None:
        raise ConfigError(f"parallelism: expected 'epN' or 'epNtpM' such as 'ep4tp2', got {text!r}")
    return Parallelism(ep=int(match[1]), tp=int(match[2] or 1))
