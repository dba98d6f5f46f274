"""The choices of a search over training runs, and the meaning of its points.

A point is a plan (layout, batch, order of the pipeline, what is kept and what is computed again,
optimizer, formats) and, where the space lists such choices, an architecture: depth, and number,
width, activation, shared part and latent size of the experts.
"""

from functools import cached_property, lru_cache
from math import prod
from typing import Any, ClassVar

from pydantic import ValidationError

from moesim.design.training.formats import train_formats
from moesim.design.training.layout import TrainLayout
from moesim.design.training.model import TrainedModel
from moesim.design.training.plan import (
    KEPT_FORMATS,
    OPTIMIZERS,
    PIPELINES,
    RECOMPUTE,
    STATE_FORMATS,
    TrainingPlan,
)
from moesim.errors import ConfigError, UnknownNameError, require
from moesim.files.descriptions import describe
from moesim.files.toml import Strict
from moesim.hardware.frameworks import framework
from moesim.model.architecture import Architecture
from moesim.model.hf_config import Model, load_model
from moesim.quality import PUBLISHED, LossLaw, load_law
from moesim.search.architectures import changed
from moesim.search.choices import Choices, Some
from moesim.search.training_workload import TrainingWorkload

#: parameters of the model; points name only those that the space lists
ARCHITECTURE = (
    "num_layers",
    "num_experts",
    "top_k",
    "expert_width",
    "gated",
    "num_shared_experts",
    "latent_size",
)
#: parameters of the layout, without the data-parallel ranks, which follow
_DEGREES = ("tp", "cp", "ep", "etp", "pp")
_PLAN = ("micro_batch", "recompute", "kept_format", "overlap_exchange", "pipeline", "zero")
_NAMES = {
    "pipeline": PIPELINES,
    "recompute": RECOMPUTE,
    "optimizer": OPTIMIZERS,
    "state_format": STATE_FORMATS,
    "kept_format": KEPT_FORMATS,
    "zero": (0, 1, 2, 3),
}


class TrainingSpace(Strict):
    """The choices of a search over training runs; every list needs at least one entry, except those
    of the architecture, which stays the model's without; numbers may be a range (see
    `moesim.search.choices.expanded`).

    Attributes:
        model: A preset, or the path of a ``config.json`` or its folder.
        lenient: Whether the file is read although keys contradict or are not understood.
        quality: Your own loss measurements (CSV), or a law fitted to them (TOML).
        framework: Framework whose efficiency is applied, a name or a file.
        uneven_stages: Whether stages may differ by a layer.
        tp: Choices of the devices that share dense parts.
        cp: Choices of the devices that share sequences.
        ep: Choices of the expert-parallel ranks.
        etp: Choices of the devices that share an expert.
        pp: Choices of the pipeline stages; data-parallel ranks are the rest of the cluster.
        vp: Choices of the virtual stages, in an interleaved pipeline.
        micro_batch: Choices of the sequences that a rank computes at once.
        pipeline: Choices of the order of the micro-batches, where there are stages.
        overlap_exchange: Whether the exchanges of a micro-batch travel while another computes;
            always so in DualPipe.
        recompute: Choices of what a backward pass computes again.
        zero: Choices of the stage of ZeRO.
        optimizer: Choices of the optimizer; no law says what it does to the loss.
        state_format: Choices of the format of its moments.
        kept_format: Choices of the format of kept activations.
        formats: Choices of the recipe, see `moesim.design.training.formats`.
        capacity_factor: Choices of the capacity factor; 0 drops no token.
        num_layers: Choices of the depth.
        num_experts: Choices of the number of experts.
        top_k: Choices of the experts of a token.
        expert_width: Choices of the width of an expert.
        gated: Choices of whether experts have a gated activation.
        num_shared_experts: Choices of the number of shared experts.
        latent_size: Choices of the space that experts work in; 0 for the model's width.

    Raises:
        ConfigError: The space is malformed; the text names the key, the rule and the value.
    """

    model: str
    lenient: bool = False
    quality: str | None = None
    framework: str = "megatron"
    uneven_stages: bool = True
    tp: Some[int] = [1]
    cp: Some[int] = [1]
    ep: Some[int] = [1]
    etp: Some[int] = [1]
    pp: Some[int] = [1]
    vp: Some[int] = [2]
    micro_batch: Some[int] = [1]
    pipeline: Some[str] = ["1f1b"]
    overlap_exchange: Some[bool] = [False]
    recompute: Some[str] = ["none"]
    zero: Some[int] = [1]
    optimizer: Some[str] = ["adamw"]
    state_format: Some[str] = ["float32"]
    kept_format: Some[str] = ["bfloat16"]
    formats: Some[str] = ["bf16"]
    capacity_factor: Some[float] = [0.0]
    num_layers: Choices[int] = []
    num_experts: Choices[int] = []
    top_k: Choices[int] = []
    expert_width: Choices[int] = []
    gated: Choices[bool] = []
    num_shared_experts: Choices[int] = []
    latent_size: Choices[int] = []
    slow_first: ClassVar[tuple[str, ...]] = (
        *ARCHITECTURE,
        "formats",
        "capacity_factor",
        *_DEGREES,
        *_PLAN,
        "vp",
        "optimizer",
        "state_format",
    )
    ruling: ClassVar[tuple[str, ...]] = ("ep", "etp", "pp", "pipeline")

    def __init__(self, **choices: Any) -> None:
        try:
            super().__init__(**choices)
        except ValidationError as error:
            raise ConfigError(describe(error, "space")) from None
        for name, known in _NAMES.items():
            for value in getattr(self, name):
                said = " or ".join(map(str, known))
                require(value in known, f"space: {name}", said, value)
        for name in self.formats:
            train_formats(name)
        least = dict.fromkeys((*_DEGREES, "vp", "micro_batch", *ARCHITECTURE), 1)
        least |= {"num_shared_experts": 0, "latent_size": 0, "capacity_factor": 0}
        for name, low in least.items():
            for value in getattr(self, name):
                if name != "gated":
                    require(value >= low, f"space: {name}", f"numbers >= {low}", value)
        framework(self.framework)

    @property
    def loaded(self) -> Model:
        """The model that architectures are changes of."""
        return _model(self.model, self.lenient)

    def law(self) -> LossLaw:
        """Return the loss law: the published one, or the user's.

        Raises:
            ConfigError: The file is missing or malformed.
        """
        return PUBLISHED if self.quality is None else load_law(self.quality)

    @cached_property
    def _choices(self) -> dict[str, list]:
        return {name: found for name in self.slow_first if (found := getattr(self, name))}

    def choices(self) -> dict[str, list]:
        """Return name -> choices of every parameter, in a fixed order."""
        return self._choices

    @property
    def size(self) -> int:
        """The number of points; points that differ only in what does not apply count separately."""
        return prod(len(choices) for choices in self._choices.values())

    def applicable(self, params: dict[str, Any]) -> dict[str, Any]:
        """Drop parameters that do not apply given the point's layout and pipeline."""
        point = self.completed(params)
        leave = set()
        if point["pp"] == 1:
            leave.add("pipeline")
        piped = point["pipeline"] if point["pp"] > 1 else "1f1b"
        if piped != "interleaved":
            leave.add("vp")
        if piped == "dualpipe" or point["ep"] * point["etp"] == 1:
            leave.add("overlap_exchange")
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
        """Return what was assumed when the model was read, and what the law leaves out."""
        found = list(self.loaded.notes)
        if len(self.optimizer) > 1:
            found.append("optimizers differ in time and memory only: no law gives their loss")
        return tuple(found)

    def completed(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return a point with the first choice of what does not apply to it."""
        return {name: choices[0] for name, choices in self._choices.items()} | params

    def architecture(self, params: dict[str, Any]) -> Architecture:
        """Return how the model of a point differs from the published one."""
        point = self.completed(params)
        return Architecture(**{name: point[name] for name in ARCHITECTURE if name in point})

    def trained_as(self, params: dict[str, Any]) -> Model:
        """Return the model of a point.

        Raises:
            ConfigError: The choices contradict each other.
        """
        return changed(self.loaded, self.architecture(params))

    def decode(
        self, params: dict[str, Any], num_devices: int, workload: TrainingWorkload
    ) -> TrainedModel:
        """Return the design that a point stands for.

        Args:
            params: The point.
            num_devices: Number of devices of the cluster.
            workload: The training run.

        Raises:
            ConfigError: The choices contradict each other, or divide nothing.
        """
        point = self.completed(params)
        there = self.applicable(point)
        formats, model = train_formats(point["formats"]), self.trained_as(params)
        degrees = " ".join(f"{name}{point[name]}" for name in _DEGREES)
        return TrainedModel(
            name=model.name,
            spec=model.spec,
            layout=TrainLayout.parse(f"{degrees} vp{there.get('vp', 1)}", num_devices),
            plan=TrainingPlan(
                sequence=workload.sequence,
                global_batch=workload.global_batch,
                micro_batch=point["micro_batch"],
                pipeline=there.get("pipeline", "1f1b"),
                overlap_exchange=there.get("overlap_exchange", False),
                zero=point["zero"],
                optimizer=point["optimizer"],
                state_format=point["state_format"],
                recompute=point["recompute"],
                kept_format=point["kept_format"],
            ),
            precision=formats.experts,
            dispatch_format=formats.dispatch,
            dense_format=formats.dense,
            capacity_factor=point["capacity_factor"] or None,
            uneven_stages=self.uneven_stages,
        )


@lru_cache(maxsize=64)
def _model(name: str, lenient: bool) -> Model:
    return load_model(name, lenient)
