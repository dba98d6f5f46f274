"""A gate decides how tokens choose experts. This module holds its options and sizes.

A gate is written as its kind, then its options: ``flat+sigmoid+bias``,
``group_limited:8:4+noisy_top_k:1``, ``two_level:16:4+local``,
``flat+share_tokens:4+share_layers:2``; see `Gate.parse`.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from moesim.errors import ConfigError, require, require_int
from moesim.model.gate_kinds import GATE_KINDS, gate_kind
from moesim.units import short_number

Score = Literal["softmax", "sigmoid", "sqrtsoftplus"]
Selection = Literal["top_k", "noisy_top_k", "expert_choice", "hash", "sinkhorn"]
Balancing = Literal["none", "aux_loss", "bias"]
#: formats that a gate may multiply in; the coarser ones change which experts are chosen
GATE_FORMATS = ("float32", "bfloat16", "float16", "float8_e4m3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A gate: how tokens choose experts.

    Attributes:
        kind: Name of a kind in `moesim.model.gate_kinds`: ``flat``, ``group_limited``,
            ``two_level``, ``product_key``, ``low_rank``, or a kind added there.
        num_expert_groups: Number of groups of consecutive experts; 1 for a gate without groups.
        num_limited_groups: Number of groups that a token may use.
        query_heads: Number of queries that a product-key gate projects a token to. Each retrieves
            an equal share of the top_k experts (the best found by all heads together if top_k is
            not a multiple). All heads share the keys. The main model of PEER has 8.
        query_size: Width of a query. Each of the two sets of a product-key gate uses half of it; it
            is 256 in PEER. Of a low-rank gate it is the rank.
        score: The function that turns logits into weights: ``softmax``, ``sigmoid`` or
            ``sqrtsoftplus``, the square root of softplus (DeepSeek-V4).
        selection: The rule that selects experts: ``top_k``; ``noisy_top_k``, which adds noise of a
            learned scale to the logits (Shazeer et al. 2017); ``expert_choice``, where each expert
            takes its best tokens (Zhou et al. 2022, arXiv 2202.09368); ``hash``, where the word of
            a token decides (Roller et al. 2021, arXiv 2106.04426); ``sinkhorn``, a balanced
            assignment (BASE, arXiv 2103.16716; S-BASE, arXiv 2202.01169).
        noise_std: Learned standard deviation of the noise on the logits, for noisy_top_k only.
        temperature: Learned scalar that the logits are divided by.
        balancing: The way training balances the load: not at all, by an auxiliary loss, or by a
            bias on the score of each expert that only selection sees (auxiliary-loss-free, arXiv
            2408.15664).
        local_routers: Whether a two-level gate scores the experts of each group on the devices of
            that group, after dispatch. Each kept group then gives an equal share of the experts of
            a token.
        share_tokens: Number of consecutive tokens that share one decision; the gate runs on the
            first.
        share_layers: Number of consecutive layers that share one decision; the gate runs in the
            first.
        precision: Number format of the GEMMs of the gate; its logits are float32.

    Raises:
        ConfigError: There are more kept groups than groups, the kind has no groups but some are
            given, or the width of a query is odd.
    """

    kind: str = "flat"
    num_expert_groups: int = 1
    num_limited_groups: int = 1
    query_heads: int = 8
    query_size: int = 256
    score: Score = "softmax"
    precision: str = "bfloat16"
    selection: Selection = "top_k"
    noise_std: float = 0.0
    temperature: float = 1.0
    balancing: Balancing = "none"
    local_routers: bool = False
    share_tokens: int = 1
    share_layers: int = 1

    def __post_init__(self) -> None:
        require(self.kind in GATE_KINDS, "gate.kind", f"one of {', '.join(GATE_KINDS)}", self.kind)
        require(
            self.score in get_args(Score),
            "gate.score",
            "softmax, sigmoid or sqrtsoftplus",
            self.score,
        )
        require(
            self.precision in GATE_FORMATS,
            "gate.precision",
            f"one of {', '.join(GATE_FORMATS)}",
            self.precision,
        )
        for name in ("num_expert_groups", "query_heads", "query_size"):
            require_int(f"gate.{name}", getattr(self, name), 1)
        require(self.query_size % 2 == 0, "gate.query_size", "an even number", self.query_size)
        require(
            1 <= self.num_limited_groups <= self.num_expert_groups,
            "gate.num_limited_groups",
            f"between 1 and num_expert_groups = {self.num_expert_groups}",
            self.num_limited_groups,
        )
        if not gate_kind(self.kind).grouped:
            require(
                self.num_expert_groups == 1,
                "gate.num_expert_groups",
                f"1 for a {self.kind} gate",
                self.num_expert_groups,
            )
        self._check_selection()

    def _check_selection(self) -> None:
        known = get_args(Selection)
        require(
            self.selection in known, "gate.selection", f"one of {', '.join(known)}", self.selection
        )
        require(
            gate_kind(self.kind).any_selection or self.selection in ("top_k", "noisy_top_k"),
            "gate.selection",
            f"top_k or noisy_top_k for a {self.kind} gate",
            self.selection,
        )
        noisy = self.selection == "noisy_top_k"
        require(
            0 < self.noise_std < math.inf if noisy else self.noise_std == 0,
            "gate.noise_std",
            "a number > 0" if noisy else f"0 for selection {self.selection}",
            self.noise_std,
        )
        require(
            0 < self.temperature < math.inf, "gate.temperature", "a number > 0", self.temperature
        )
        require(
            self.balancing in get_args(Balancing),
            "gate.balancing",
            f"one of {', '.join(get_args(Balancing))}",
            self.balancing,
        )
        require(
            self.balancing == "none" or self.selection in ("top_k", "noisy_top_k"),
            "gate.balancing",
            f"none for selection {self.selection}",
            self.balancing,
        )
        require(
            not self.local_routers or gate_kind(self.kind).local_routers,
            "gate.local_routers",
            "a two_level gate",
            self.kind,
        )
        for name in ("share_tokens", "share_layers"):
            require_int(f"gate.{name}", getattr(self, name), 1)

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read a gate from its text.

        Args:
            text: The kind, ``flat``, ``group_limited:8:4`` or ``two_level:16:4`` (groups, then
                groups kept), ``product_key`` or ``product_key:8:256`` (heads, then width of a
                query), or ``low_rank`` (its rank is ``query_size``), followed by options, each
                after a plus sign: ``sigmoid``, ``sqrtsoftplus``,
                ``noisy_top_k:STD``, ``expert_choice``, ``hash``, ``sinkhorn``, ``temperature:T``,
                ``aux_loss``, ``bias``, ``local``, ``share_tokens:N``, ``share_layers:N``,
                ``query_heads:N``, ``query_size:N``, ``precision:FORMAT``.

        Raises:
            ConfigError: The text does not have that form.
        """
        base, *options = text.split("+")
        fields = _read_options(options, text)
        kind, *numbers = base.split(":")
        named = (GATE_KINDS[kind].numbers if kind in GATE_KINDS else ()) or (
            "num_expert_groups",
            "num_limited_groups",
        )
        if kind in GATE_KINDS and not numbers and not GATE_KINDS[kind].needs_numbers:
            return cls(kind=kind, **fields)  # type: ignore[arg-type]
        if len(numbers) != 2 or not all(n.isascii() and n.isdigit() for n in numbers):
            raise ConfigError(
                "gate: expected 'flat', 'product_key' or 'KIND:GROUPS:KEPT' such as "
                f"'group_limited:8:4', got {text!r}"
            )
        return cls(kind=kind, **dict(zip(named, map(int, numbers), strict=True)), **fields)  # type: ignore[arg-type]

    def __str__(self) -> str:
        base = ":".join(
            [self.kind, *(str(getattr(self, name)) for name in gate_kind(self.kind).numbers)]
        )
        return "+".join([base, *self._options()])

    def _options(self) -> list[str]:
        """Return the options that differ from the default, as `parse` reads them."""
        selection: str = self.selection
        if selection == "noisy_top_k":
            selection += ":" + short_number(self.noise_std)
        usual = type(self)()
        beside = gate_kind(self.kind).numbers  # these numbers follow the name of the kind
        named = (
            (self.score != "softmax", self.score),
            (self.selection != "top_k", selection),
            (self.temperature != 1.0, f"temperature:{short_number(self.temperature)}"),
            (self.balancing != "none", self.balancing),
            (self.local_routers, "local"),
            (self.share_tokens > 1, f"share_tokens:{self.share_tokens}"),
            (self.share_layers > 1, f"share_layers:{self.share_layers}"),
            (
                self.query_heads != usual.query_heads and "query_heads" not in beside,
                f"query_heads:{self.query_heads}",
            ),
            (
                self.query_size != usual.query_size and "query_size" not in beside,
                f"query_size:{self.query_size}",
            ),
            (self.precision != usual.precision, f"precision:{self.precision}"),
        )
        return [text for there, text in named if there]

    @property
    def staleness(self) -> float:
        """The share of the decisions of a token, over all layers, that were made for another token
        or in an earlier layer.
        """
        return 1.0 - 1.0 / (self.share_tokens * self.share_layers)

    def check_experts(self, num_experts: int, top_k: int) -> None:
        """Raise an error if this gate cannot choose among this number of experts.

        Raises:
            ConfigError: The experts do not divide into groups, their number is not a square where
                it must be one, or the kept groups have fewer than top_k experts.
        """
        gate_kind(self.kind).check_experts(self, num_experts)
        groups, kept = self.num_expert_groups, self.num_limited_groups
        if self.local_routers:
            require(
                top_k % min(kept, top_k) == 0,
                "layer.top_k",
                f"a multiple of the {kept} groups kept, since each local router gives as many",
                top_k,
            )
        require(
            num_experts % groups == 0,
            "layer.gate.num_expert_groups",
            f"a divisor of num_experts = {num_experts}",
            groups,
        )
        require(
            kept * (num_experts // groups) >= top_k,
            "layer.gate.num_limited_groups",
            f"enough groups of {num_experts // groups} experts for top_k = {top_k}",
            kept,
        )

    def params(self, hidden_size: int, num_experts: int) -> int:
        """Return the number of weights: 0 for hash selection, otherwise that of the kind, such as H
        x E for a flat gate.
        """
        return (
            0
            if self.selection == "hash"
            else gate_kind(self.kind).params(self, hidden_size, num_experts)
        )

    def active_params(self, hidden_size: int, num_experts: int) -> int:
        """Return the number of weights that one token multiplies with: for two levels only those of
        the kept groups, otherwise all.
        """
        active = gate_kind(self.kind).active_params
        return (
            self.params(hidden_size, num_experts)
            if active is None
            else active(self, hidden_size, num_experts)
        )


#: option -> (field, its value) here, and option -> (field, the type of its value) in `_VALUES`
_FLAGS: dict[str, tuple[str, object]] = {
    "softmax": ("score", "softmax"),
    "sigmoid": ("score", "sigmoid"),
    "sqrtsoftplus": ("score", "sqrtsoftplus"),
    "top_k": ("selection", "top_k"),
    "expert_choice": ("selection", "expert_choice"),
    "hash": ("selection", "hash"),
    "sinkhorn": ("selection", "sinkhorn"),
    "aux_loss": ("balancing", "aux_loss"),
    "bias": ("balancing", "bias"),
    "local": ("local_routers", True),
}
_VALUES: dict[str, tuple[str, type]] = {
    "noisy_top_k": ("noise_std", float),
    "temperature": ("temperature", float),
    "share_tokens": ("share_tokens", int),
    "share_layers": ("share_layers", int),
    "query_heads": ("query_heads", int),
    "query_size": ("query_size", int),
    "precision": ("precision", str),
}


def _read_options(options: list[str], text: str) -> dict[str, object]:
    """Return the fields that the options of a gate's text set.

    Raises:
        ConfigError: An option is unknown, appears twice, or its value cannot be read.
    """
    fields: dict[str, object] = {}
    for option in options:
        name, colon, number = option.partition(":")
        found: dict[str, object] = {}
        if name in _FLAGS and not colon:
            found = dict([_FLAGS[name]])
        elif name in _VALUES:
            field, kind = _VALUES[name]
            try:
                found = {field: kind(number)}
            except ValueError:
                found = {}
            if name == "noisy_top_k" and found:
                found["selection"] = "noisy_top_k"
        if not found or found.keys() & fields.keys():
            raise ConfigError(
                f"gate: expected options once each of {', '.join([*_FLAGS, *_VALUES])} (the last "
                f"{len(_VALUES)} with a value after a colon), got {option!r} in {text!r}"
            )
        fields |= found
    return fields
