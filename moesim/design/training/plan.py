"""State what a training step computes and what its devices keep meanwhile."""

from dataclasses import dataclass, fields
from typing import Literal

from moesim.errors import require, require_int

Pipeline = Literal["1f1b", "interleaved", "zero_bubble", "dualpipe"]
Recompute = Literal["none", "selective", "full"]
Optimizer = Literal["adamw", "muon"]
StateFormat = Literal["float32", "bfloat16"]
KeptFormat = Literal["bfloat16", "float8_e4m3"]
PIPELINES: tuple[Pipeline, ...] = ("1f1b", "interleaved", "zero_bubble", "dualpipe")
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "muon")
STATE_FORMATS: tuple[StateFormat, ...] = ("float32", "bfloat16")
KEPT_FORMATS: tuple[KeptFormat, ...] = ("bfloat16", "float8_e4m3")

#: sequences of a step; a pipeline lists its micro-batches
_MOST_SEQUENCES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """The batch of a step, and how memory is traded for time.

    Attributes:
        sequence: Tokens of a sequence.
        global_batch: Sequences of a step.
        micro_batch: Sequences that a data-parallel rank computes at once.
        pipeline: Order of the micro-batches in a pipeline: ``1f1b`` (arXiv 2006.09503),
            ``interleaved`` (several parts of the model on a stage, arXiv 2104.04473),
            ``zero_bubble`` (ZB-H1, arXiv 2401.10241) or ``dualpipe`` (arXiv 2412.19437).
        overlap_exchange: Whether the exchanges of one micro-batch travel while another computes,
            forward beside backward; always so in DualPipe.
        overlap_reduce: Whether gradients are reduced under the last backward pass, and parameters
            gathered under the first forward pass.
        zero: Stage of ZeRO (arXiv 1910.02054): 0 nothing, 1 optimizer states, 2 gradients, too, 3
            parameters, too, are divided over data-parallel ranks.
        shard_group: Data-parallel ranks over which they are divided, with copies beyond (HSDP);
            None for all of them.
        optimizer: ``adamw``, or ``muon`` for matrices with AdamW for the rest.
        state_format: Format of the optimizer's moments; master weights are float32.
        gradient_format: Format in which gradients are summed up and reduced.
        recompute: What a backward pass computes again: ``none``; ``selective`` (norms, activation
            functions and up-projections of latent attention); ``full`` (layers from their input).
        kept_format: Format in which inputs of activation functions and outputs of attention wait
            for the backward pass (float8 in DeepSeek-V3, arXiv 2412.19437, section 3.3.3).
        offload: Fraction of the activations that travel to the host's memory and back.

    Raises:
        ConfigError: A number is out of range, or a choice does not exist.
    """

    sequence: int = 4096
    global_batch: int = 1024
    micro_batch: int = 1
    pipeline: Pipeline = "1f1b"
    overlap_exchange: bool = False
    overlap_reduce: bool = True
    zero: int = 1
    shard_group: int | None = None
    optimizer: Optimizer = "adamw"
    state_format: StateFormat = "float32"
    gradient_format: StateFormat = "float32"
    recompute: Recompute = "none"
    kept_format: KeptFormat = "bfloat16"
    offload: float = 0.0

    def __post_init__(self) -> None:
        require_int("plan.global_batch", self.global_batch, 1, _MOST_SEQUENCES)
        for name in ("sequence", "global_batch", "micro_batch"):
            require_int(f"plan.{name}", getattr(self, name), 1)
        require(self.zero in (0, 1, 2, 3), "plan.zero", "a stage 0, 1, 2 or 3", self.zero)
        if self.shard_group is not None:
            require_int("plan.shard_group", self.shard_group, 1)
        for name, known in (
            ("pipeline", PIPELINES),
            ("recompute", RECOMPUTE),
            ("optimizer", OPTIMIZERS),
            ("state_format", STATE_FORMATS),
            ("gradient_format", STATE_FORMATS),
            ("kept_format", KEPT_FORMATS),
        ):
            value = getattr(self, name)
            require(value in known, f"plan.{name}", " or ".join(known), value)
        require(0 <= self.offload < 1, "plan.offload", "a fraction >= 0 and < 1", self.offload)

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.global_batch * self.sequence

    @property
    def overlaps(self) -> bool:
        """Whether a forward pass runs beside the backward pass of another micro-batch."""
        return self.overlap_exchange or self.pipeline == "dualpipe"

    def __str__(self) -> str:
        words = [f"gbs{self.global_batch} mbs{self.micro_batch} seq{self.sequence}", self.pipeline]
        words += ["overlap"] * self.overlap_exchange + [f"zero{self.zero}"]
        words += [f"group{self.shard_group}"] * (self.shard_group is not None)
        words += [self.optimizer] * (self.optimizer != "adamw")
        words += [f"recompute {self.recompute}"] * (self.recompute != "none")
        words += ["kept fp8"] * (self.kept_format != "bfloat16")
        words += [f"offload {self.offload:g}"] * (self.offload > 0)
        return " ".join(words)


def plan_of(given: object) -> TrainingPlan:
    """Return the plan in an object that has its fields, such as the options of a command.

    Raises:
        ConfigError: A number is out of range, or a choice does not exist.
    """
    return TrainingPlan(
        **{field.name: getattr(given, field.name) for field in fields(TrainingPlan)}
    )
