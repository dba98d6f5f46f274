"""Count the memory of one device in training, by kind.

Weights are kept in bf16. Gradients are summed up in a format of their own. AdamW keeps float32
master weights and two moments, Muon one moment of each matrix (Jordan et al. 2024; embedding, head
and gates stay with AdamW, which is neglected for gates). ZeRO divides optimizer states, gradients
and parameters over data-parallel devices (arXiv 1910.02054).

Activations that a backward pass needs are counted tensor by tensor, as flash attention and fused
activations keep them (Korthikanti et al. 2022, arXiv 2205.05198, without the scores): inputs of
norms and of GEMMs, queries, keys, values, the attention's output, both halves of a gated product.
Inputs of GEMMs have the format of the products, what `TrainingPlan.kept_format` names has that, all
others bf16. A selective recomputation keeps
neither norms' outputs nor activations' outputs nor what latent attention projects up; a full one
keeps inputs of layers only.
"""

from dataclasses import dataclass, fields

from moesim.costs.steps.shares import Gemm, kv_heads_of, products_of
from moesim.design.training.model import TrainedModel
from moesim.errors import CapacityError
from moesim.model.latent import LatentAttention
from moesim.model.mixers import GroupedAttention, Mixer
from moesim.model.precision import BYTES_PER_ELEMENT
from moesim.model.spec import LayerKind
from moesim.model.weights import total
from moesim.units import GIB

_BF16, _FLOAT32 = 2.0, 4.0
#: bytes that the head keeps for each logit: float32 logits, and their gradient in bf16
_LOGIT_BYTES = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainMemory:
    """The memory of one device.

    Attributes:
        weights_bytes: Parameters.
        gradients_bytes: Sums of gradients.
        optimizer_bytes: Master weights and moments.
        activations_bytes: What passes keep for their backward.
        buffers_bytes: Parameters that are gathered for use, logits, and tokens that travel.
    """

    weights_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    buffers_bytes: float

    @property
    def total_bytes(self) -> float:
        """The bytes of all kinds."""
        return sum(getattr(self, field.name) for field in fields(self))

    def check(self, name: str, device: str, usable_bytes: float) -> None:
        """Refuse a run that does not fit.

        Raises:
            CapacityError: It does not; the text says by how many GiB.
        """
        over = self.total_bytes - usable_bytes
        if over > 0:
            raise CapacityError(
                f"{name} does not fit on {device} in training: {self.total_bytes / GIB:.1f} GiB of "
                f"{usable_bytes / GIB:.1f} usable, {over / GIB:.1f} GiB over (weights "
                f"{self.weights_bytes / GIB:.1f}, gradients {self.gradients_bytes / GIB:.1f}, "
                f"optimizer {self.optimizer_bytes / GIB:.1f}, activations "
                f"{self.activations_bytes / GIB:.1f}, buffers {self.buffers_bytes / GIB:.1f})"
            )


@dataclass(frozen=True, slots=True)
class Params:
    """Parameters of a device by who holds copies of them: all data-parallel devices, or those of
    the same experts; and those among the dense ones that AdamW updates in any case.
    """

    dense: float
    experts: float
    tables: float = 0.0


def params_of(
    trained: TrainedModel, layers: tuple[LayerKind, ...], *, first: bool, last: bool
) -> Params:
    """Return the parameters that a device of a stage holds before they are divided.

    Args:
        trained: The design.
        layers: The layers of the stage.
        first: Whether it has the embedding.
        last: Whether it has the head.
    """
    layout, hidden = trained.layout, trained.spec.hidden_size
    dense = experts = 0.0
    for kind in layers:
        routed = 0.0
        if kind.moe is not None:
            routed = total(kind.moe.expert_weights(hidden))
            experts += routed / layout.devices_per_exchange
            # gate and shared experts are whole: tokens are a device's own there
            dense += total(kind.moe.weights(hidden)) - routed
        for mixer in kind.mixers:
            dense += sum(n * k for n, k in products_of(mixer, hidden, layout.tp))
        if kind.dense is not None:
            dense += kind.dense.params(hidden) / layout.tp
        dense += total(kind.extra)
    table = trained.spec.vocab_size * hidden / layout.tp
    tables = table * (first + last)
    if first:
        dense += total(trained.spec.extra)
    return Params(dense + tables, experts, tables)


def state_bytes_per_param(trained: TrainedModel, *, table: bool = False) -> float:
    """Return the bytes of optimizer states of a parameter, master weight included.

    Args:
        trained: The design.
        table: Whether it belongs to embedding or head, which Muon leaves to AdamW.
    """
    moment = _FLOAT32 if trained.plan.state_format == "float32" else _BF16
    return _FLOAT32 + moment * (1 if trained.plan.optimizer == "muon" and not table else 2)


def activation_bytes_of(trained: TrainedModel, kind: LayerKind) -> float:
    """Return the bytes that a micro-batch keeps of a layer on a device."""
    plan, hidden = trained.plan, float(trained.spec.hidden_size)
    own = trained.tokens_per_device
    wide = own * trained.layout.tp
    input_bytes = BYTES_PER_ELEMENT[trained.precision.activations]
    kept = own * hidden * _BF16
    if plan.recompute == "full":
        return kept * (1.0 - plan.offload)
    whole, later = plan.recompute == "none", BYTES_PER_ELEMENT[plan.kept_format]
    for place, mixer in enumerate(kind.mixers):
        kept += _mixer_bytes(mixer, trained, wide, input_bytes, whole=whole)
        # the norm's output, and the input of a further norm
        kept += own * hidden * (whole * input_bytes + (place > 0) * _BF16)
    if kind.dense is not None or kind.moe is not None:
        # the input of the second norm, and its output
        kept += own * hidden * (_BF16 + whole * input_bytes)
    if kind.dense is not None:
        width = kind.dense.width / trained.layout.tp
        ups = 2.0 if kind.dense.gated else 1.0
        kept += wide * width * (ups * later + whole * input_bytes)
    if kind.moe is not None:
        moe = kind.moe
        ups = 2.0 if moe.gated else 1.0
        rows = own * min(moe.computed_experts, moe.top_k) * trained.layout.etp
        width = moe.width / trained.layout.etp
        kept += rows * (
            (moe.latent_size or hidden) * input_bytes + width * (ups * later + whole * input_bytes)
        )
        shared = moe.num_shared_experts * moe.shared_width
        kept += own * shared * (ups * later + whole * input_bytes)
    return kept * (1.0 - plan.offload)


def _mixer_bytes(
    mixer: Mixer, trained: TrainedModel, tokens: float, input_bytes: float, *, whole: bool
) -> float:
    tp, later = trained.layout.tp, BYTES_PER_ELEMENT[trained.plan.kept_format]
    # the next GEMM's input is the same tensor where formats agree
    output_bytes = later if later == input_bytes else later + input_bytes
    if isinstance(mixer, GroupedAttention):
        value = mixer.value_size or mixer.head_size
        heads, groups = mixer.num_heads / tp, kv_heads_of(mixer, tp)
        made = heads * mixer.head_size + groups * (mixer.head_size + value)
        return tokens * (made * _BF16 + heads * value * output_bytes)
    if isinstance(mixer, LatentAttention):
        heads = mixer.num_heads / tp
        made = heads * (2.0 * (mixer.head_size + mixer.rope_size) + mixer.value_size) * whole
        ranks = mixer.q_rank + mixer.kv_rank + mixer.rope_size
        output = heads * mixer.value_size * output_bytes
        return tokens * ((made + ranks) * _BF16 + output)
    # results of all projections: states are made again chunk by chunk
    products: list[Gemm] = products_of(mixer, trained.spec.hidden_size, tp)
    return tokens * sum(product.n for product in products) * _BF16


def memory_of(
    trained: TrainedModel,
    params: Params,
    groups: tuple[int, int],
    *,
    activations_bytes: float,
    last: bool,
) -> TrainMemory:
    """Return the memory of a device.

    Args:
        trained: The design.
        params: Parameters of all its parts.
        groups: Number of devices that dense parameters, and that experts are divided over.
        activations_bytes: What its micro-batches keep at the fullest moment.
        last: Whether it has the head.
    """
    plan, layout = trained.plan, trained.layout
    gradient = _FLOAT32 if plan.gradient_format == "float32" else _BF16
    dense_group, expert_group = groups

    def divided(stage: int, table: bool = False) -> float:
        """Return the parameters that a device keeps of what ZeRO divides from a stage on."""
        active = plan.zero >= stage
        dense = params.tables if table else params.dense - params.tables
        held = dense / (dense_group if active else 1)
        return held + (0.0 if table else params.experts / (expert_group if active else 1))

    weights = sum(divided(3, table) for table in (False, True))
    gradients = sum(divided(2, table) for table in (False, True))
    states = sum(
        divided(1, table) * state_bytes_per_param(trained, table=table) for table in (False, True)
    )
    own = trained.tokens_per_device
    top_k = max((kind.moe.top_k for kind in trained.spec.kinds if kind.moe), default=0)
    buffers = 2.0 * own * (1 + top_k) * trained.spec.hidden_size * _BF16
    if last:
        buffers += own * trained.spec.vocab_size * _LOGIT_BYTES
    if plan.zero == 3:
        layers = max(len(part) for part in trained.stages) * layout.vp
        # the layer in use and the next one are whole
        buffers += 2.0 * _BF16 * (params.dense + params.experts) / layers
    return TrainMemory(
        weights_bytes=weights * _BF16,
        gradients_bytes=gradients * gradient,
        optimizer_bytes=states,
        activations_bytes=activations_bytes,
        buffers_bytes=buffers,
    )
