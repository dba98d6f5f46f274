"""Say how a whole model is spread over devices, and what one step of it computes."""

import re
from dataclasses import dataclass, fields, replace
from math import floor, sqrt

from moesim.errors import ConfigError, require, require_int, shown
from moesim.limits import MOST_DEVICES
from moesim.routing import RoutingSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model is spread over devices.

    Attention has ``dp`` ranks, each with sequences of its own, and a rank has ``tp`` devices that
    share its heads. The same devices hold the experts: ``ep`` ranks hold whole experts, and each
    has ``moe_tp`` devices that share their width. A pipeline has ``pp`` such sets of devices, one
    after the other.

    Attributes:
        tp: Devices of an attention rank.
        dp: Attention ranks.
        ep: Expert-parallel ranks.
        moe_tp: Devices of an expert-parallel rank.
        pp: Pipeline stages.

    Raises:
        ConfigError: A degree is below 1, or attention and experts use different numbers of devices.
    """

    tp: int = 1
    dp: int = 1
    ep: int = 1
    moe_tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            require_int(f"layout.{field.name}", getattr(self, field.name), 1, MOST_DEVICES)
        require(
            self.tp * self.dp == self.ep * self.moe_tp,
            "layout",
            f"ep x moe_tp = tp x dp = {self.tp * self.dp} devices",
            f"{self.ep} x {self.moe_tp}",
        )

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Return the layout in a text such as ``dp8 ep8``, ``tp8`` (experts like attention) or
        ``tp4 ep4 pp2``; what is left out follows from the rest.

        Raises:
            ConfigError: A word is no degree, or the degrees do not go together.
        """
        found: dict[str, int] = {}
        for word in text.replace(",", " ").split():
            match = re.fullmatch(r"(moe_tp|tp|dp|ep|pp)([1-9][0-9]*)", word)
            if match is None or match[1] in found:
                raise ConfigError(
                    f"layout: expected degrees such as 'tp8', 'dp8 ep8' or 'tp4 ep2 moe_tp2 pp2', "
                    f"got {shown(text)}"
                )
            found[match[1]] = int(match[2])
        attention = found.get("tp", 1) * found.get("dp", 1)
        if "tp" not in found and "dp" not in found:
            attention = found.get("ep", 1) * found.get("moe_tp", 1)
            found["dp"] = attention
        if "ep" not in found and "moe_tp" not in found:
            found["moe_tp"] = attention
        elif "moe_tp" not in found and attention % found["ep"] == 0:
            found["moe_tp"] = attention // found["ep"]
        elif "ep" not in found and attention % found["moe_tp"] == 0:
            found["ep"] = attention // found["moe_tp"]
        return cls(**found)

    @property
    def devices_per_stage(self) -> int:
        """The number of devices of a pipeline stage."""
        return self.tp * self.dp

    @property
    def num_devices(self) -> int:
        """The number of devices of one copy of the model."""
        return self.devices_per_stage * self.pp

    @property
    def exchanges_tokens(self) -> bool:
        """Whether tokens travel to their experts: attention ranks have tokens of their own, while
        devices that share heads all have the same.
        """
        return self.dp > 1

    def __str__(self) -> str:
        words = [f"{f.name}{n}" for f in fields(self) if (n := getattr(self, f.name)) > 1]
        return " ".join(words) or "tp1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoad:
    """How tokens choose experts.

    Attributes:
        routing: Distribution of the load, see `moesim.design.candidate.Workload`. Plans of balanced
            placements are stale by a factor of 1.06, with which 288 slots on 36 ranks have the
            imbalance that was measured after EPLB: .115 above the mean (DeepSeek-R1 served with
            expert parallelism, points of ``eplb-r1``).
        seed: Seed of the choices.
        correlation: Correlation of the loads of experts of the same number in two layers. With 0
            every layer draws hot experts of its own, with 1 the same are hot in all. Between them a
            share of sqrt(correlation) of the layers, evenly spread, has the same choices, so that
            two layers taken at random both do with this probability.

    Raises:
        ConfigError: The routing cannot be read, the seed is negative, or the correlation is outside
            0 to 1.
    """

    routing: str = "power_law:1.2+stale:0.06"
    seed: int = 0
    correlation: float = 0.0

    def __post_init__(self) -> None:
        RoutingSpec.parse(self.routing)
        require_int("load.seed", self.seed, 0)
        require(
            0.0 <= self.correlation <= 1.0,
            "load.correlation",
            "a number from 0 to 1",
            self.correlation,
        )

    def of_layer(self, index: int, own: int) -> "ExpertLoad":
        """Return the load of one layer of those that are simulated.

        Args:
            index: Its number among layers with experts, from 0.
            own: What its seed differs by where its choices are its own.
        """
        share = sqrt(self.correlation)
        joins = floor((index + 1) * share) > floor(index * share)
        return replace(self, seed=self.seed if joins else self.seed + own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What each attention rank computes in one forward pass of the model.

    Attributes:
        prefills: Sequences whose prompt is computed, or a part of it.
        new_tokens: Tokens of each of them in this step.
        cached_tokens: Tokens of each that were computed before.
        sequences: Sequences that decode.
        context: Mean number of tokens that each attends to, the new ones included.
        tokens_per_sequence: New tokens of each decoding sequence: 1, or more where drafts are
            verified.

    Raises:
        ConfigError: A number is negative, or there is nothing to compute.
    """

    prefills: float = 0.0
    new_tokens: float = 0.0
    cached_tokens: float = 0.0
    sequences: float = 0.0
    context: float = 0.0
    tokens_per_sequence: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(value >= 0, f"step.{field.name}", "a number >= 0", value)
        require(self.tokens > 0, "step", "at least one token", self.tokens)

    @property
    def prefill_tokens(self) -> float:
        """The tokens of prompts."""
        return self.prefills * self.new_tokens

    @property
    def decode_tokens(self) -> float:
        """The tokens of decoding sequences."""
        return self.sequences * self.tokens_per_sequence

    @property
    def tokens(self) -> float:
        """The tokens of an attention rank."""
        return self.prefill_tokens + self.decode_tokens
