"""The choices of a search over whole models, and the meaning of its points."""

from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from moesim.costs.dense.gemm import GemmFormat
from moesim.design.schedule import Schedule
from moesim.design.served import ENGINES, KV_FORMATS, ServedModel
from moesim.design.step import Layout
from moesim.errors import ConfigError, UnknownNameError, require
from moesim.files.descriptions import describe
from moesim.files.toml import Strict
from moesim.hardware import Cluster
from moesim.hardware.libraries import AUTO, check_choice
from moesim.model import Precision
from moesim.model.hf_config import Model, load_model
from moesim.placement import REPLICATING, PlacementSpec
from moesim.search.choices import Some
from moesim.search.forms import (
    SAME,
    check_forms,
    forms_of,
    forms_without_effect,
    possible_forms,
)
from moesim.search.serving_point import DESIGN, ServingPoint
from moesim.serving.formats import dense_format_of, precision_on
from moesim.serving.layouts import divided, engine_layouts, fitting
from moesim.serving.pools import ServingKnobs
from moesim.serving.split import COLOCATED, ratio_of

#: the choice that stands for what an engine, a model's file or a cluster says
_AUTO = "auto"
#: the choice that stands for the layout that decodes
_SAME = "same"


class ServingSpace(Strict):
    """The choices of a search over whole models; every list needs at least one entry, and numbers
    may be a range (see `moesim.search.choices.expanded`).

    Attributes:
        model: A preset, or the path of a ``config.json`` or its folder.
        lenient: Whether the file is read although keys contradict or are not understood.
        concurrency: Choices of the number of clients, of all copies together.
        layout: Choices of the layout, such as ``dp64 ep64`` or ``tp8 pp2``; ``auto`` stands for all
            in which engines serve the model on the cluster and in which its weights fit. As many
            copies serve as the cluster holds.
        engine: Choices of the serving engine.
        precision: Choices of the experts' format; ``auto`` is that of the model.
        dense_format: Choices of the format of other GEMMs, likewise.
        kv_format: Choices of the format of the KV cache.
        placement: Choices of the strategy that places experts, where ranks hold whole ones.
        redundant_per_rank: Choices of the number of redundant experts of each rank, for strategies
            that place them, beside those that make ranks equal.
        exchange: Choices of the exchange, where tokens travel; ``auto`` is the engine's.
        num_micro_batches: Choices of the schedule, where tokens travel: 1 is serial, and with 2 a
            half computes while the other's tokens travel.
        kernel_library: Choices of the library of the experts, see
            `moesim.design.served.ServedModel`.
        pruned_fraction: Choices of the share of experts that are pruned, see
            `moesim.model.compression.Compression` for this and the next three.
        cold_fraction: Choices of the share of experts that is cold.
        cold_format: Choices of the format of cold experts; ``same`` keeps the others'.
        cold_rank_fraction: Choices of the rank of their factors; 0 keeps whole matrices.
        resident_fraction: Choices of the share of experts that stays on the device, see
            `moesim.design.offload.Offload`.
        prefetch_recall: Choices of the share of missing experts that is guessed a layer ahead;
            ``routing`` is what the routing model predicts.
        acceptance: Probability that each drafted token is accepted if all before it were.
        draft_length: Choices of the number of drafted tokens, up to that of probabilities.
        chunk: Choices of the most prompt tokens of a step; 0 is the engine's.

    Raises:
        ConfigError: The space is malformed; the text names the key, the rule and the value.
    """

    model: str
    lenient: bool = False
    concurrency: Some[int]
    layout: Some[str] = [_AUTO]
    pools: Some[str] = [COLOCATED]
    prefill_layout: Some[str] = [_SAME]
    engine: Some[str] = ["sglang"]
    precision: Some[str] = [_AUTO]
    dense_format: Some[str] = [_AUTO]
    kv_format: Some[str] = ["bfloat16"]
    placement: Some[str] = ["eplb"]
    redundant_per_rank: Some[int] = [1]
    exchange: Some[str] = [_AUTO]
    num_micro_batches: Some[int] = [1]
    kernel_library: Some[str] = [AUTO]
    pruned_fraction: Some[float] = [0.0]
    cold_fraction: Some[float] = [0.0]
    cold_format: Some[str] = [SAME]
    cold_rank_fraction: Some[float] = [0.0]
    resident_fraction: Some[float] = [1.0]
    prefetch_recall: Some[float | Literal["routing"]] = [0.0]
    acceptance: list[float] = []
    draft_length: Some[int] = [0]
    chunk: Some[int] = [0]
    slow_first: ClassVar[tuple[str, ...]] = (
        *DESIGN,
        "prefill_layout",
        "pools",
        "draft_length",
        "chunk",
        "concurrency",
    )
    ruling: ClassVar[tuple[str, ...]] = (
        "layout",
        "placement",
        "pools",
        "prefill_layout",
        "cold_fraction",
        "resident_fraction",
    )

    def __init__(self, **choices: Any) -> None:
        try:
            super().__init__(**choices)
        except ValidationError as error:
            raise ConfigError(describe(error, "space")) from None
        self._check_names()
        ServingKnobs(acceptance=tuple(self.acceptance))
        for name, least in (
            ("concurrency", 1),
            ("redundant_per_rank", 0),
            ("draft_length", 0),
            ("chunk", 0),
        ):
            for value in getattr(self, name):
                require(value >= least, f"space: {name}", f"numbers >= {least}", value)
        most = len(self.acceptance)
        require(
            max(self.draft_length) <= most,
            "space: draft_length",
            f"at most {most}, the probabilities of acceptance",
            max(self.draft_length),
        )

    def _check_names(self) -> None:
        for engine in self.engine:
            require(engine in ENGINES, "space: engine", " or ".join(ENGINES), engine)
        for kv in self.kv_format:
            require(kv in KV_FORMATS, "space: kv_format", " or ".join(KV_FORMATS), kv)
        for precision in self.precision:
            if precision != _AUTO:
                Precision.named(precision)
        for dense in self.dense_format:
            if dense != _AUTO:
                GemmFormat.named(dense)
        named = (*self.layout, *(each for each in self.prefill_layout if each != _SAME))
        for layout in named:
            if layout != _AUTO:
                Layout.parse(layout)
        for pools in self.pools:
            ratio_of(pools)
        for exchange, parts in product(self.exchange, self.num_micro_batches):
            Schedule(exchange=None if exchange == _AUTO else exchange, num_micro_batches=parts)
        for kernels in self.kernel_library:
            check_choice(kernels)
        for strategy in self.placement:
            PlacementSpec.parse(strategy)
        check_forms(self)

    def on(self, cluster: Cluster) -> "ServingSpace":
        """Return the space with what ``auto`` stands for on a cluster.

        Raises:
            CapacityError: The weights fit in no layout.
            ConfigError: The device has no rate for a format, or no layout divides the model.
        """
        model = self.loaded
        formats = {
            "precision": [precision_on(model, cluster.profile, name) for name in self.precision],
            "dense_format": [
                dense_format_of(model) if name == _AUTO else name for name in self.dense_format
            ],
        }
        found = self.model_copy(
            update={name: list(dict.fromkeys(values)) for name, values in formats.items()}
        )
        layouts: dict[str, list[str]] = {}
        for name in ("layout", "prefill_layout"):
            texts = [
                each
                for text in getattr(self, name)
                for each in ([text] if text != _AUTO else found._fitting(cluster))
            ]
            layouts[name] = list(dict.fromkeys(texts))
        return found.model_copy(update=layouts)

    def _fitting(self, cluster: Cluster) -> list[str]:
        """Return the layouts of engines that divide the model, and in which its weights fit in some
        format.
        """
        designs = [
            design
            for precision, dense in product(self.precision, self.dense_format)
            for form in possible_forms(self, Precision.named(precision))
            for design in divided(
                ServedModel(
                    name=self.loaded.name,
                    spec=self.loaded.spec,
                    precision=Precision.named(precision),
                    dense_format=dense,
                    **form,
                ),
                engine_layouts(cluster),
            )
        ]
        return [str(design.layout) for design in fitting(designs, cluster)]

    @property
    def loaded(self) -> Model:
        """The model."""
        return _model(self.model, self.lenient)

    @cached_property
    def _choices(self) -> dict[str, list]:
        return {name: getattr(self, name) for name in self.slow_first}

    def choices(self) -> dict[str, list]:
        """Return name -> choices of every parameter, in a fixed order."""
        return self._choices

    @property
    def size(self) -> int:
        """The number of points; points that differ only in what does not apply count separately."""
        return prod(len(choices) for choices in self._choices.values())

    def applicable(self, params: dict[str, Any]) -> dict[str, Any]:
        """Drop parameters that do not apply given the point's pools, layouts and placement."""
        layouts = [_layout(params.get("layout", self.layout[0]))]
        leave = forms_without_effect(self, params)
        if params.get("pools", self.pools[0]) == COLOCATED:
            leave.add("prefill_layout")
        elif (other := params.get("prefill_layout", self.prefill_layout[0])) != _SAME:
            layouts.append(_layout(other))
        if all(layout.ep == 1 for layout in layouts):
            leave |= {"placement", "redundant_per_rank"}
        elif not _replicates(params.get("placement", self.placement[0])):
            leave.add("redundant_per_rank")
        if not any(layout.exchanges_tokens for layout in layouts):
            leave |= {"exchange", "num_micro_batches"}
        return {name: value for name, value in params.items() if name not in leave}

    def check_point(self, params: dict[str, Any]) -> None:
        """Refuse a point, or a part of one, that is not in the space.

        Raises:
            UnknownNameError: A parameter is unknown.
            ConfigError: A choice is not listed.
        """
        for name, value in params.items():
            if name not in self._choices:
                raise UnknownNameError("parameter", name, self._choices)
            if value not in self._choices[name]:
                raise ConfigError(
                    f"space: {name}: expected one of "
                    f"{', '.join(map(str, self._choices[name]))}, got {value!r}"
                )

    def notes(self) -> tuple[str, ...]:
        """Return what was assumed when the model was read, in words."""
        return self.loaded.notes

    def completed(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return a point with the first choice of what does not apply to it."""
        return {name: choices[0] for name, choices in self._choices.items()} | params

    def served(self, design: tuple[Any, ...]) -> ServedModel:
        """Return the design that choices of `DESIGN` make.

        Raises:
            ConfigError: The choices contradict each other.
        """
        point = dict(zip(DESIGN, design, strict=True))
        layout, moe = Layout.parse(point["layout"]), self.loaded.spec.moe
        placement, replicas = "contiguous", 0
        if layout.ep > 1 and moe is not None:
            placement = point["placement"]
            if _replicates(placement):
                replicas = -moe.num_experts % layout.ep + layout.ep * point["redundant_per_rank"]
        schedule = Schedule()
        if layout.exchanges_tokens:
            schedule = Schedule(
                exchange=None if point["exchange"] == _AUTO else point["exchange"],
                num_micro_batches=point["num_micro_batches"],
            )
        return ServedModel(
            name=self.loaded.name,
            spec=self.loaded.spec,
            layout=layout,
            precision=Precision.named(point["precision"]),
            dense_format=point["dense_format"],
            kv_format=point["kv_format"],
            placement=placement,
            num_replicas=replicas,
            schedule=schedule,
            kernels=point["kernel_library"],
            engine=point["engine"],
            **forms_of(point),
        )

    def decode(self, params: dict[str, Any]) -> ServingPoint:
        """Return what a point stands for.

        Raises:
            ConfigError: The choices contradict each other.
        """
        point = self.completed(params)
        designs = [self.served(design) for design in self.designs(point)]
        return ServingPoint(
            served=designs[-1],
            knobs=self.knobs(point),
            concurrency=point["concurrency"],
            pools=point["pools"],
            prefill=designs[0] if len(designs) > 1 else None,
        )

    def designs(self, point: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the choices of `DESIGN` of a completed point: those of the pool that computes
        prompts, if it has one, and those of the one that decodes.
        """
        decode = {name: point[name] for name in DESIGN}
        if point["pools"] == COLOCATED:
            return [tuple(decode.values())]
        layout = point["prefill_layout"]
        prefill = decode | {"layout": decode["layout"] if layout == _SAME else layout}
        return [tuple(prefill.values()), tuple(decode.values())]

    def knobs(self, point: dict[str, Any]) -> ServingKnobs:
        """Return what a point sets of its engine."""
        return ServingKnobs(
            chunk=point["chunk"] or None,
            acceptance=tuple(self.acceptance[: point["draft_length"]]),
        )


@lru_cache(maxsize=64)
def _model(name: str, lenient: bool) -> Model:
    return load_model(name, lenient)


@lru_cache(maxsize=1024)
def _layout(text: str) -> Layout:
    return Layout.parse(text)


@lru_cache(maxsize=256)
def _replicates(placement: str) -> bool:
    return PlacementSpec.parse(placement).strategy in REPLICATING
