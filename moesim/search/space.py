"""The space of designs that a search explores, and the meaning of its points.

A space lists the choices of each parameter. A point has one choice of every parameter that applies,
as plain numbers and strings that a storage can hold. `decode` turns a point into a `Candidate` and
its `Cluster`, or says why there is none.

Some parameters depend on others: expert groups apply only if the gate has them, replicas only if
the strategy places them, and an overflow rule only if experts have a capacity. Samplers see every
parameter (a genetic one crosses what all points share); `applicable` removes those that do not
apply, so that no two points are the same design.
"""

from functools import cached_property, lru_cache
from itertools import product
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from moesim.design.candidate import Candidate
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError, MoesimError, UnknownNameError
from moesim.files.toml import Strict, describe
from moesim.hardware import Cluster
from moesim.hardware.libraries import AUTO, check_choice
from moesim.model import DensePart, Gate, MoELayer, Precision
from moesim.model.gate_kinds import GATE_KINDS
from moesim.model.hf_config import Model, is_file, load_model
from moesim.model.presets import load_preset
from moesim.model.widths import parse_widths
from moesim.placement import REPLICATING, PlacementSpec
from moesim.quality import PUBLISHED, LossLaw, load_law
from moesim.search.choices import Choices, Some, one_rank, parse_parallelism, width_choice
from moesim.search.forms import SAME, check_forms, forms_of, forms_without_effect
from moesim.search.parameters import GROUPS, OPTIONAL, PARAMETERS, RULING, SLOW_FIRST

#: the choice that stands for the exchange the cluster names
_OWN = "cluster"
#: maximum number of points that `Space.check` tries before it accepts the space
_TRIES = 4096


class Space(Strict):
    """The choices of a search; every list needs at least one entry, and numbers may be a range (see
    `expanded`).

    Attributes:
        dense_part: Model whose dense part surrounds the experts: a preset, or the path of a
            ``config.json`` or its folder.
        num_layers: Number of layers, all with experts; the preset's by default.
        hidden_size: Width of a token. It must equal the preset's; stating it avoids surprises.
        train_tokens: Training budget in tokens; give either this or ``train_flops``.
        train_flops: Training budget in FLOPs; give either this or ``train_tokens``.
        quality: Your own loss measurements (CSV), or a law fitted to them (TOML); see
            `moesim quality fit`.
        num_experts: Choices of the number of experts.
        top_k: Choices of the number of experts per token.
        expert_intermediate_size: Choices of the width: one for all experts, or one for each as a
            list or as text such as ``64x256+64x1024`` (64 experts of width 256, then 64 of 1024;
            width 0 prunes an expert). Points hold the text.
        gate: Choices of the gate, such as ``flat``, ``group_limited:8:4``, ``two_level:16:4``,
            ``product_key``; ``group_limited`` or ``two_level`` alone take their groups from the
            next two parameters.
        num_expert_groups: Choices of the number of groups for such gates.
        num_limited_groups: Choices of the number of groups a token may use, for such gates.
        placement: Choices of the strategy, such as ``eplb``, ``random:7``, ``local_search:200`` or
            ``eplb/nearest``; see `moesim.placement.strategies`.
        num_replicas: Choices of the number of replicas, for strategies that place them.
        parallelism: Choices of the layout, such as ``ep8``, ``ep4tp2``, or ``tp2`` for all devices
            of the cluster.
        precision: Choices of the precision recipe, such as ``bf16``, ``fp8``, ``int4``.
        exchange: Choices of the exchange, see `moesim.hardware.exchanges`; ``cluster`` stands for
            the cluster's own. Older files call this parameter ``dispatch``.
        num_micro_batches: Choices of the number of micro-batches.
        kernels: Choices of the kernel library: ``auto``, ``auto:ENGINE``, or names of
            `moesim.hardware.libraries`.
        capacity_factor: Choices of the capacity factor; 0 means dropless.
        overflow: Choices of what happens beyond the capacity: ``drop`` or ``reroute``.
        pruned_fraction: Choices of the share of experts that is removed after training; see
            `moesim.model.compression.Compression` for this and the next three.
        cold_fraction: Choices of the share of experts that is cold, the least loaded.
        cold_format: Choices of the weights' format of cold experts; ``same`` keeps the layer's.
        cold_rank_fraction: Choices of the rank of the factors of cold experts' matrices as a share
            of their smaller side; 0 means whole matrices.
        resident_fraction: Choices of the share of experts that stays in a device's memory; see
            `moesim.design.offload.Offload`.
        prefetch_recall: Choices of the share of missing experts that is guessed a layer ahead;
            ``routing`` is what the routing model predicts.
        hardware: Changes of the cluster and its devices: key of
            `moesim.hardware.cluster.Cluster.with_` -> choices, as numbers in the key's unit or
            factors such as ``2x``.
        num_shared_experts: Number of shared experts of every candidate.
        lenient: Whether the file of dense_part is read although keys contradict or are not
            understood.

    Raises:
        ConfigError: The space is malformed; the text names the key, the rule and the value.
    """

    dense_part: str
    num_layers: int | None = Field(default=None, ge=1)
    hidden_size: int = Field(ge=1)
    train_tokens: float | None = Field(default=None, gt=0)
    train_flops: float | None = Field(default=None, gt=0)
    quality: str | None = None
    num_experts: Some[int]
    top_k: Some[int]
    expert_intermediate_size: Some[Annotated[int | str, BeforeValidator(width_choice)]]
    gate: Some[str] = ["flat"]
    num_expert_groups: Choices[int] = []
    num_limited_groups: Choices[int] = []
    placement: Some[str] = ["contiguous"]
    num_replicas: Some[int] = [0]
    parallelism: Some[str] = ["tp1"]
    precision: Some[str] = ["bf16"]
    exchange: Some[str] = Field(
        default=[_OWN], validation_alias=AliasChoices("exchange", "dispatch")
    )
    num_micro_batches: Some[int] = [1]
    kernels: Some[str] = [AUTO]
    capacity_factor: Some[float] = [0.0]
    overflow: Some[str] = ["drop"]
    pruned_fraction: Some[float] = [0.0]
    cold_fraction: Some[float] = [0.0]
    cold_format: Some[str] = [SAME]
    cold_rank_fraction: Some[float] = [0.0]
    resident_fraction: Some[float] = [1.0]
    prefetch_recall: Some[float | Literal["routing"]] = [0.0]
    hardware: dict[str, Some[int | float | str | list[int]]] = {}
    num_shared_experts: int = Field(default=0, ge=0)
    lenient: bool = False
    slow_first: ClassVar[tuple[str, ...]] = SLOW_FIRST
    ruling: ClassVar[tuple[str, ...]] = RULING

    def __init__(self, **choices: Any) -> None:
        try:
            super().__init__(**choices)
        except ValidationError as error:
            raise ConfigError(describe(error, "space")) from None
        for spread, precision in product(self.parallelism, self.precision):
            parse_parallelism(spread)
            Precision.named(precision)
        for gate in self.gate:
            self._check_gate(gate)
        for exchange, parts in product(self.exchange, self.num_micro_batches):
            Schedule(exchange=None if exchange == _OWN else exchange, num_micro_batches=parts)
        for kernels in self.kernels:
            check_choice(kernels)
        check_forms(self)
        for strategy in self.placement:
            PlacementSpec.parse(strategy)
        for name in self.hardware:
            if name in type(self).model_fields:
                raise ConfigError(
                    f"space: hardware.{name}: expected a number of the cluster, {name} is a "
                    "choice of its own"
                )
        hidden = _model(self.dense_part, self.lenient).dense_part.hidden_size
        if hidden != self.hidden_size:
            raise ConfigError(
                f"space: hidden_size: expected {hidden}, that of dense_part {self.dense_part!r}, "
                f"got {self.hidden_size}"
            )

    @model_validator(mode="after")
    def _one_budget(self) -> "Space":
        if (self.train_tokens is None) == (self.train_flops is None):
            raise ValueError(
                "@train_tokens@exactly one of train_tokens and train_flops@"
                + ("neither" if self.train_tokens is None else "both")
            )
        return self

    def _check_gate(self, gate: str) -> None:
        if not _takes_groups(gate):
            Gate.parse(gate)
            return
        for name in ("num_expert_groups", "num_limited_groups"):
            if not getattr(self, name):
                raise ConfigError(
                    f"space: {name}: expected choices for the gate {gate!r} (or write its groups, "
                    f"as in '{gate.split('+')[0]}:8:4'), got none"
                )

    @cached_property
    def _choices(self) -> dict[str, list]:
        varied = [name for name in OPTIONAL if len(getattr(self, name)) > 1]
        grouped = [name for name in GROUPS if any(map(_takes_groups, self.gate))]
        hardware = {name: [_as_text(c) for c in choices] for name, choices in self.hardware.items()}
        return {name: getattr(self, name) for name in (*PARAMETERS, *grouped, *varied)} | hardware

    def choices(self) -> dict[str, list]:
        """Return name -> choices of every parameter that may vary, in a fixed order."""
        return self._choices

    @property
    def size(self) -> int:
        """The number of points; points that differ only in what does not apply count separately."""
        total = 1
        for choices in self.choices().values():
            total *= len(choices)
        return total

    def applicable(self, params: dict[str, Any]) -> dict[str, Any]:
        """Drop parameters that do not apply given the point's other choices."""
        leave = set()
        if not _takes_groups(params.get("gate", self.gate[0])):
            leave |= set(GROUPS)
        if (
            PlacementSpec.parse(params.get("placement", self.placement[0])).strategy
            not in REPLICATING
        ):
            leave.add("num_replicas")
        if one_rank(params.get("parallelism", self.parallelism[0])):
            leave |= {"placement", "num_replicas"}
        if not params.get("capacity_factor", self.capacity_factor[0]):
            leave.add("overflow")
        leave |= forms_without_effect(self, params)
        return {name: value for name, value in params.items() if name not in leave}

    def check_point(self, params: dict[str, Any]) -> None:
        """Refuse a point, or a part of one, that is not in the space.

        Raises:
            UnknownNameError: A parameter is unknown.
            ConfigError: A choice is not listed.
        """
        choices = self.choices()
        for name, value in params.items():
            if name not in choices:
                raise UnknownNameError("parameter", name, choices)
            if value not in choices[name]:
                raise ConfigError(
                    f"space: {name}: expected one of {', '.join(map(str, choices[name]))}, got "
                    f"{value!r}"
                )

    def check(self, cluster: Cluster) -> None:
        """Refuse a space without any candidate on a cluster.

        Raises:
            ConfigError: All points that can be tried are refused; the text has the reason of the
                first.
        """
        reason = ""
        ruling = [
            name
            for name in self.choices()
            if name
            not in (
                "expert_intermediate_size",
                "precision",
                "exchange",
                "num_micro_batches",
                "kernels",
                "overflow",
            )
            or isinstance(self.choices()[name][0], str)
        ]
        fixed = {name: choices[0] for name, choices in self.choices().items()}
        for tried, point in enumerate(product(*(self.choices()[name] for name in ruling))):
            if tried == _TRIES:
                return
            try:
                self._check_whole(
                    *self.decode(fixed | dict(zip(ruling, point, strict=True)), cluster)
                )
                return
            except MoesimError as error:
                reason = reason or str(error)
        raise ConfigError(
            f"space: expected at least one point that is a candidate on {cluster.name}, got none; "
            f"the first: {reason}"
        )

    @staticmethod
    def _check_whole(candidate: Candidate, cluster: Cluster) -> None:
        spread = candidate.parallelism
        if spread.num_devices != cluster.num_devices:
            raise ConfigError(
                f"parallelism: ep x tp: expected the {cluster.num_devices} devices of "
                f"{cluster.name}, got {spread.num_devices}"
            )
        if (candidate.layer.num_experts + candidate.num_replicas) % spread.ep:
            raise ConfigError(
                f"placement: expected experts + replicas divisible by the {spread.ep} "
                f"expert-parallel ranks, got {candidate.layer.num_experts} + "
                f"{candidate.num_replicas}"
            )

    def law(self) -> LossLaw:
        """Return the loss law: the published one, or the user's.

        Raises:
            ConfigError: The file is missing or malformed.
        """
        return PUBLISHED if self.quality is None else load_law(self.quality)

    def dense(self) -> DensePart:
        """Return the dense part around every candidate."""
        return _dense(self.dense_part, self.lenient, self.num_layers)

    def notes(self) -> tuple[str, ...]:
        """Return what was assumed when the model of the dense part was read, in words."""
        return _model(self.dense_part, self.lenient).notes

    def decode(self, params: dict[str, Any], cluster: Cluster) -> tuple[Candidate, Cluster]:
        """Return the candidate at a point and the cluster it runs on.

        Args:
            params: The point; parameters that it leaves out take their first choice.
            cluster: The cluster that the hardware choices change.

        Raises:
            ConfigError: The choices contradict each other (top_k > num_experts, experts not
                divisible into groups).
        """
        point = {name: getattr(self, name)[0] for name in (*PARAMETERS, *OPTIONAL)} | params
        hardware = tuple((name, params[name]) for name in self.hardware if name in params)
        if hardware:
            cluster = _changed(cluster, hardware)
        width, gate = point["expert_intermediate_size"], point["gate"]
        spread = parse_parallelism(point["parallelism"], cluster.num_devices)
        # on one rank all experts lie together, however they are placed
        placement = point["placement"] if spread.ep > 1 else "contiguous"
        replicates = PlacementSpec.parse(placement).strategy in REPLICATING
        if _takes_groups(gate):
            kind, *options = gate.split("+")
            groups, kept = (point.get(name, getattr(self, name)[0]) for name in GROUPS)
            gate = "+".join([f"{kind}:{groups}:{kept}", *options])
        layer = MoELayer(
            hidden_size=self.hidden_size,
            expert_intermediate_size=parse_widths(width) if isinstance(width, str) else width,
            num_experts=point["num_experts"],
            top_k=point["top_k"],
            num_shared_experts=self.num_shared_experts,
            capacity_factor=point["capacity_factor"] or None,
            overflow=point["overflow"] if point["capacity_factor"] else "drop",
            precision=Precision.named(point["precision"]),
            gate=_gate(gate),
        )
        candidate = Candidate(
            layer=layer,
            parallelism=spread,
            placement=placement,
            num_replicas=point["num_replicas"] if replicates else 0,
            dense_part=self.dense(),
            schedule=Schedule(
                exchange=None if point["exchange"] == _OWN else point["exchange"],
                num_micro_batches=point["num_micro_batches"],
            ),
            kernels=point["kernels"],
            **forms_of(point),
        )
        return candidate, cluster


def _takes_groups(gate: str) -> bool:
    """Return whether a gate's groups may vary separately from its text."""
    kind = gate.split("+")[0]
    return kind in GATE_KINDS and GATE_KINDS[kind].grouped


def _as_text(choice: object) -> object:
    """Return a list as text, which a storage can hold, such as ``4x4x8``."""
    return "x".join(map(str, choice)) if isinstance(choice, list) else choice


@lru_cache(maxsize=512)
def _gate(text: str) -> Gate:
    return Gate.parse(text)


@lru_cache(maxsize=64)
def _model(name: str, lenient: bool) -> Model:
    if not is_file(name):
        load_preset(name)  # says the near matches
    return load_model(name, lenient)


@lru_cache(maxsize=64)
def _dense(name: str, lenient: bool, num_layers: int | None) -> DensePart:
    dense = _model(name, lenient).dense_part
    return dense.all_moe(num_layers or dense.num_layers)


@lru_cache(maxsize=1024)
def _changed(cluster: Cluster, changes: tuple[tuple[str, Any], ...]) -> Cluster:
    """Return the cluster with the hardware choices of a point; axes are written ``4x4x8``."""
    values = {
        name: [int(n) for n in value.split("x")] if name == "axes" else value
        for name, value in changes
    }
    return cluster.with_(**values)
