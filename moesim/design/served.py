"""A design of a whole model as it is served: the model, its formats, its layout, its kernels."""

from dataclasses import dataclass, field, fields
from typing import Literal

from moesim.design.candidate import Candidate, Parallelism
from moesim.design.identity import digest
from moesim.design.offload import Offload
from moesim.design.schedule import STEP_ORDERS, Schedule, StepOrder
from moesim.design.step import Layout
from moesim.errors import ConfigError, require, require_int
from moesim.hardware.libraries import AUTO
from moesim.limits import MOST_EXPERTS
from moesim.model.compression import Compression
from moesim.model.feedforward import MoEFeedForward
from moesim.model.layer import MoELayer
from moesim.model.mixers import GroupedAttention
from moesim.model.precision import Precision
from moesim.model.spec import ModelSpec
from moesim.placement.spec import PlacementSpec

#: serving engines whose kernels and host are priced
ENGINES = ("sglang", "vllm", "trtllm")
KV_FORMATS = ("bfloat16", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A whole model on a layout of devices.

    Attributes:
        name: Name of the model.
        spec: Its architecture.
        layout: How it is spread over devices.
        precision: Formats of its experts.
        dense_format: Format of its other GEMMs, one of `moesim.costs.dense.gemm.FORMATS`.
        kv_format: Format of its KV cache, ``bfloat16`` or ``fp8``.
        placement: Strategy that places its experts, see `moesim.placement.strategies`.
        num_replicas: Slots beyond one per expert.
        schedule: Exchange and micro-batches.
        order: Order of a step's pieces, see `moesim.lowering.orders`: ``serial``,
            ``shared_under_dispatch``, ``two_batch`` or ``chunked``; empty for ``two_batch`` with
            several micro-batches and ``shared_under_dispatch`` with one.
        kernels: Library of the experts, see `moesim.design.candidate.Candidate`; ``auto`` takes
            the fastest of the engine's.
        engine: Serving engine whose dense kernels and host are priced.
        compression: How its routed experts are compressed; by default none is.
        offload: Which of its routed experts lie in the memory of the host; by default none does.

    Raises:
        ConfigError: The layout does not divide the model, a format or engine is unknown, or experts
            are compressed or offloaded in a model without any.
    """

    name: str
    spec: ModelSpec
    layout: Layout = field(default_factory=Layout)
    precision: Precision = field(default_factory=Precision)
    dense_format: str = "bfloat16"
    kv_format: str = "bfloat16"
    placement: str = "contiguous"
    num_replicas: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    order: StepOrder | Literal[""] = ""
    kernels: str = AUTO
    engine: str = "sglang"
    compression: Compression = field(default_factory=Compression)
    offload: Offload = field(default_factory=Offload)

    def __post_init__(self) -> None:
        require(self.engine in ENGINES, "engine", " or ".join(ENGINES), self.engine)
        require(self.kv_format in KV_FORMATS, "kv_format", "bfloat16 or fp8", self.kv_format)
        PlacementSpec.parse(self.placement)
        require_int("num_replicas", self.num_replicas, 0, MOST_EXPERTS)
        self._check_forms()
        require(
            self.layout.pp <= self.spec.num_layers,
            "layout.pp",
            f"at most the {self.spec.num_layers} layers of {self.name}",
            self.layout.pp,
        )
        tp = self.layout.tp
        for block in self.spec.kinds:
            mixer = block.mixer
            heads: int = getattr(mixer, "num_heads", getattr(mixer, "num_value_heads", tp))
            if heads % tp:
                raise ConfigError(
                    f"layout: expected tp that divides the {heads} heads of {self.name}, got tp{tp}"
                )
            if isinstance(mixer, GroupedAttention):
                groups = mixer.num_kv_heads
                if groups % tp and tp % groups:
                    raise ConfigError(
                        f"layout: expected tp that divides or is a multiple of the {groups} KV "
                        f"heads of {self.name}, got tp{tp}"
                    )
        parts = self.schedule.num_micro_batches
        require(
            not self.order or self.order in STEP_ORDERS,
            "order",
            " or ".join(STEP_ORDERS),
            self.order,
        )
        if self.order and STEP_ORDERS[self.order] != (parts > 1):
            expected = "2 or more" if parts == 1 else "1"
            raise ConfigError(
                f"schedule.num_micro_batches: expected {expected} with {self.order}, got {parts}"
            )
        if parts > 1 and not self.layout.exchanges_tokens:
            raise ConfigError(
                "schedule.num_micro_batches: expected attention ranks with tokens of their own "
                f"(dp > 1), whose exchanges overlap, got {self.layout}"
            )

    def _check_forms(self) -> None:
        """Check that experts are compressed and offloaded only where there are some."""
        self.compression.cold_precision(self.precision)
        for name in ("compression", "offload"):
            form: Compression | Offload = getattr(self, name)
            require(
                form.is_nothing or self.spec.moe is not None,
                name,
                "a model with routed experts, or nothing",
                self.name,
            )

    @property
    def step_order(self) -> StepOrder:
        """The order of a step's pieces."""
        usual: StepOrder = (
            "two_batch" if self.schedule.num_micro_batches > 1 else "shared_under_dispatch"
        )
        return self.order or usual

    @property
    def cut_block(self) -> str:
        """Why the engine may refuse to load the experts' parts, see `Precision.cut_block`; "" if
        not.
        """
        moe = self.spec.moe
        if moe is None:
            return ""
        return self.precision.cut_block(self.layer(moe).widest, self.layout.moe_tp, self.engine)

    def layer(self, moe: MoEFeedForward) -> MoELayer:
        """Return the routed experts of a kind of layer, see `ModelSpec.routed`."""
        return self.spec.routed(moe, self.precision)

    def candidate(self, moe: MoEFeedForward) -> Candidate:
        """Return the design of the experts of a kind of layer."""
        return Candidate(
            layer=self.layer(moe),
            parallelism=Parallelism(ep=self.layout.ep, tp=self.layout.moe_tp),
            placement=self.placement,
            num_replicas=self.num_replicas,
            schedule=self.schedule,
            kernels=f"{AUTO}:{self.engine}" if self.kernels == AUTO else self.kernels,
            compression=self.compression,
            offload=self.offload,
        )

    @property
    def form_words(self) -> list[str]:
        """How experts are stored, a word for each value that is not the default."""
        return [
            f"{leaf.name}={'routing' if value is None else value}"
            for form in (self.compression, self.offload)
            for leaf in fields(form)
            if (value := getattr(form, leaf.name)) != leaf.default
        ]

    @property
    def key(self) -> str:
        """The hash over every field, equal for equal designs in every process."""
        return digest({one.name: repr(getattr(self, one.name)) for one in fields(self)})

    @property
    def label(self) -> str:
        """A short name of the design."""
        words = [self.name, str(self.layout), self.precision.name, f"dense {self.dense_format}"]
        words += [
            f"kv {self.kv_format}",
            self.placement + (f"+{self.num_replicas}" * bool(self.num_replicas)),
        ]
        words += [str(self.schedule), self.order, self.engine, *self.form_words]
        return " ".join(word for word in words if word)
