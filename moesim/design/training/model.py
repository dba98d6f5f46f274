"""A design of a whole model in training: the model, its formats, its layout, its plan."""

from dataclasses import dataclass, field, fields

from moesim.design.candidate import Candidate, Parallelism
from moesim.design.identity import digest
from moesim.design.schedule import Schedule
from moesim.design.training.layout import TrainLayout
from moesim.design.training.plan import TrainingPlan
from moesim.design.training.stages import stages_of
from moesim.errors import ConfigError, require
from moesim.hardware.libraries import AUTO
from moesim.model.feedforward import MoEFeedForward
from moesim.model.layer import MoELayer
from moesim.model.mixers import GroupedAttention
from moesim.model.precision import Precision
from moesim.model.spec import LayerKind, ModelSpec
from moesim.placement.spec import PlacementSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A whole model in training on a layout of devices.

    Attributes:
        name: Name of the model.
        spec: Its architecture.
        layout: How it is spread over devices.
        plan: What a step computes.
        precision: Formats of its experts' GEMMs.
        dispatch_format: Format in which tokens travel to experts.
        dense_format: Format of its other GEMMs, one of `moesim.costs.dense.gemm.FORMATS`.
        capacity_factor: Rows of an expert over the mean, beyond which tokens are dropped; None
            drops none.
        placement: Strategy that places its experts, see `moesim.placement.strategies`.
        exchange: Exchange of tokens; None for that of the cluster.
        every_choice: Whether a token is sent once for each expert that it chose, as the all-to-all
            dispatcher of Megatron-Core does, not once for each device.
        kernels: Library of the experts, see `moesim.design.candidate.Candidate`.
        uneven_stages: Whether stages may differ by a layer; the first and the last, with embedding
            and head, get fewer.

    Raises:
        ConfigError: The layout does not divide heads, experts, layers or batches.
    """

    name: str
    spec: ModelSpec
    layout: TrainLayout = field(default_factory=TrainLayout)
    plan: TrainingPlan = field(default_factory=TrainingPlan)
    precision: Precision = field(default_factory=Precision)
    dispatch_format: str = "bfloat16"
    dense_format: str = "bfloat16"
    capacity_factor: float | None = None
    placement: str = "contiguous"
    exchange: str | None = None
    every_choice: bool = False
    kernels: str = AUTO
    uneven_stages: bool = False

    def __post_init__(self) -> None:
        PlacementSpec.parse(self.placement)
        Schedule(exchange=self.exchange)
        self._check_heads()
        self._check_experts()
        self._check_batches()
        self._check_pipeline()
        _ = self.stages

    def _check_heads(self) -> None:
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

    def _check_experts(self) -> None:
        for block in self.spec.kinds:
            if block.moe is not None and block.moe.num_experts % self.layout.ep:
                raise ConfigError(
                    f"layout: expected ep that divides the {block.moe.num_experts} experts of "
                    f"{self.name}, got ep{self.layout.ep}"
                )

    def _check_batches(self) -> None:
        plan, layout = self.plan, self.layout
        each = layout.dp * plan.micro_batch
        require(
            plan.global_batch % each == 0,
            "plan.global_batch",
            f"a multiple of dp x micro_batch = {layout.dp} x {plan.micro_batch}",
            plan.global_batch,
        )
        parts = layout.cp * layout.tp
        require(
            plan.sequence % parts == 0,
            "plan.sequence",
            f"a multiple of cp x tp = {layout.cp} x {layout.tp}",
            plan.sequence,
        )
        group = plan.shard_group
        require(
            group is None or layout.dense_copies % group == 0,
            "plan.shard_group",
            f"a divisor of dp x cp = {layout.dense_copies}",
            group,
        )

    def _check_pipeline(self) -> None:
        plan, layout, count = self.plan, self.layout, self.num_micro_batches
        if plan.pipeline == "interleaved":
            require(layout.vp > 1, "layout.vp", "at least 2 in an interleaved pipeline", layout.vp)
            require(
                count % layout.pp == 0,
                "plan.global_batch",
                f"micro-batches in multiples of pp = {layout.pp} in an interleaved pipeline",
                count,
            )
        else:
            require(
                layout.vp == 1,
                "layout.vp",
                f"1 unless interleaved, here {plan.pipeline}",
                layout.vp,
            )
        if plan.pipeline == "dualpipe":
            require(layout.pp % 2 == 0, "layout.pp", "an even number in DualPipe", layout.pp)
            require(
                count % 2 == 0 and count >= 2 * layout.pp,
                "plan.global_batch",
                f"an even number of at least 2 pp = {2 * layout.pp} micro-batches in DualPipe",
                count,
            )

    @property
    def num_micro_batches(self) -> int:
        """The micro-batches of a data-parallel rank in a step."""
        return self.plan.global_batch // (self.layout.dp * self.plan.micro_batch)

    @property
    def stages(self) -> list[tuple[LayerKind, ...]]:
        """The layers of every part of the pipeline, in order; part c on stage c modulo pp."""
        return stages_of(
            self.name,
            self.spec.blocks,
            self.layout.pp * self.layout.vp,
            uneven=self.uneven_stages,
        )

    @property
    def tokens_per_device(self) -> float:
        """The tokens of a micro-batch on a device outside of tensor-parallel parts."""
        return self.plan.micro_batch * self.plan.sequence / (self.layout.cp * self.layout.tp)

    def layer(self, moe: MoEFeedForward) -> MoELayer:
        """Return the routed experts of a kind of layer, see `ModelSpec.routed`."""
        return self.spec.routed(moe, self.precision, self.capacity_factor)

    def candidate(self, moe: MoEFeedForward) -> Candidate:
        """Return the design of the experts of a kind of layer."""
        return Candidate(
            layer=self.layer(moe),
            parallelism=Parallelism(ep=self.layout.ep, tp=self.layout.etp),
            placement=self.placement,
            schedule=Schedule(exchange=self.exchange),
            kernels=self.kernels,
        )

    @property
    def label(self) -> str:
        """A short name of the design."""
        words = [self.name, str(self.layout), self.precision.name, f"dense {self.dense_format}"]
        words += [] if self.capacity_factor is None else [f"cf{self.capacity_factor:g}"]
        words += [str(self.plan), self.placement, self.exchange or ""]
        return " ".join(word for word in [*words, "every choice" * self.every_choice] if word)

    @property
    def key(self) -> str:
        """The hash over every field, equal for equal designs in every process."""
        return digest({one.name: repr(getattr(self, one.name)) for one in fields(self)})
