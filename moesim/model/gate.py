"""How tokens choose experts: the kinds of gates, and the sizes each needs.

As text a gate is its kind, then options: ``flat+sigmoid+bias``,
``group_limited:8:4+noisy_top_k:1``, ``two_level:16:4+local``,
``flat+share_tokens:4+share_layers:2``; see `Gate.parse`.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from moesim.errors import ConfigError, require, require_int
from moesim.model.gate_kinds import GATE_KINDS, gate_kind
from moesim.units import short_number

Score = Literal["softmax", "sigmoid"]
Selection = Literal["top_k", "noisy_top_k", "expert_choice", "hash", "sinkhorn"]
Balancing = Literal["none", "aux_loss", "bias"]
#: formats a gate multiplies in: coarser ones change which experts are chosen
GATE_FORMATS = ("float32", "bfloat16", "float16", "float8_e4m3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How tokens choose experts.

    Attributes:
        kind: One of `moesim.model.gate_kinds`: ``flat``, ``group_limited``, ``two_level``,
            ``product_key``, or one added there.
        num_expert_groups: Groups of consecutive experts; 1 for a gate without groups.
        num_limited_groups: Groups a token may use.
        query_heads: Queries a product-key gate projects a token to; each retrieves an equal share
            of its top_k (the best of all heads' finds where top_k is no multiple). All heads share
            the keys. PEER's main model: 8.
        query_size: Width of a query, half of it for each set of keys; PEER's: 256.
        score: How logits become weights.
        selection: ``top_k``; ``noisy_top_k``, with noise of a learnt scale on the logits (Shazeer
            et al. 2017); ``expert_choice``, each expert takes its best tokens (Zhou et al. 2022,
            arXiv 2202.09368); ``hash``, a token's word decides (Roller et al. 2021, arXiv
            2106.04426); ``sinkhorn``, balanced assignment (BASE, arXiv 2103.16716; S-BASE, arXiv
            2202.01169).
        noise_std: Deviation of the noise on logits, as learnt: for noisy_top_k only.
        temperature: Logits are divided by it, a learnt scalar.
        balancing: What training does about load: nothing, an auxiliary loss, or a bias on each
            expert's score that only selection sees (auxiliary-loss-free, arXiv 2408.15664).
        local_routers: Of a two-level gate: each group's experts are scored where the group lives,
            after dispatch, and each kept group gives an equal share of a token's experts.
        share_tokens: Consecutive tokens that share one decision: the gate runs on the first of
            them.
        share_layers: Consecutive layers that share one decision: the gate runs in the first of
            them.
        precision: Format of the gate's GEMMs; its logits are float32.

    Raises:
        ConfigError: More kept groups than groups, groups on a gate without them, or a query of an
            odd width.
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
        require(self.score in get_args(Score), "gate.score", "softmax or sigmoid", self.score)
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
        """Read a gate.

        Args:
            text: ``flat``; ``group_limited:8:4`` or ``two_level:16:4`` (groups, then groups kept);
                ``product_key`` or ``product_key:8:256`` (heads, then width of a query); then
                options, each after a plus sign: ``sigmoid``, ``noisy_top_k:STD``,
                ``expert_choice``, ``hash``, ``sinkhorn``, ``temperature:T``, ``aux_loss``,
                ``bias``, ``local``, ``share_tokens:N``, ``share_layers:N``, ``query_heads:N``,
                ``query_size:N``, ``precision:FORMAT``.

        Raises:
            ConfigError: Not of that form.
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
        """Options as `parse` reads them: those that are not the usual ones."""
        selection: str = self.selection
        if selection == "noisy_top_k":
            selection += ":" + short_number(self.noise_std)
        usual = type(self)()
        beside = gate_kind(self.kind).numbers  # they stand beside the kind already
        named = (
            (self.score == "sigmoid", "sigmoid"),
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
        """Share of a token's decisions, over layers, that were taken for another token or an
        earlier layer.
        """
        return 1.0 - 1.0 / (self.share_tokens * self.share_layers)

    def check_experts(self, num_experts: int, top_k: int) -> None:
        """Refuse a number of experts this gate cannot choose among.

        Raises:
            ConfigError: Experts that do not divide into groups or make no square, or too few of
                them in kept groups.
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
        """Weights: none to hash; else those of its kind, such as H x E for a flat one."""
        return (
            0
            if self.selection == "hash"
            else gate_kind(self.kind).params(self, hidden_size, num_experts)
        )

    def active_params(self, hidden_size: int, num_experts: int) -> int:
        """Weights one token multiplies with: those of the kept groups only for two levels, else
        all.
        """
        active = gate_kind(self.kind).active_params
        return (
            self.params(hidden_size, num_experts)
            if active is None
            else active(self, hidden_size, num_experts)
        )


#: option -> field, its value, and how its number is read
_FLAGS: dict[str, tuple[str, object]] = {
    "softmax": ("score", "softmax"),
    "sigmoid": ("score", "sigmoid"),
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
    """Fields of the options of a gate's text.

    Raises:
        ConfigError: An unknown option, one twice, or one whose number is none.
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
