"""Change the experts and the depth of a model: the choices of a search over architectures.

What is not said stays as in the model. Attention, width of a token and vocabulary are the model's.
"""

from dataclasses import dataclass, fields, replace
from itertools import cycle, islice

from moesim.errors import require, require_int
from moesim.model.feedforward import MoEFeedForward
from moesim.model.spec import LayerKind, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How a model differs from a published one; None means not at all.

    Attributes:
        num_layers: Number of layers. Those before the first experts stay, those after follow again
            and again in their order.
        num_experts: Number of routed experts.
        top_k: Number of experts of a token.
        expert_width: Intermediate size of an expert.
        gated: Whether experts have two up projections (SwiGLU).
        num_shared_experts: Number of experts that every token uses, as wide as the model's, or as a
            routed one in a model without.
        latent_size: Width of the space that routed experts work in; 0 for that of the model.

    Raises:
        ConfigError: A number is out of range.
    """

    num_layers: int | None = None
    num_experts: int | None = None
    top_k: int | None = None
    expert_width: int | None = None
    gated: bool | None = None
    num_shared_experts: int | None = None
    latent_size: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("num_layers", 1),
            ("num_experts", 1),
            ("top_k", 1),
            ("expert_width", 1),
            ("num_shared_experts", 0),
            ("latent_size", 0),
        ):
            if getattr(self, name) is not None:
                require_int(f"architecture.{name}", getattr(self, name), least)

    def experts(self, moe: MoEFeedForward) -> MoEFeedForward:
        """Return a mixture of experts with these changes.

        Raises:
            ConfigError: The gate cannot choose among the experts.
        """
        width = self.expert_width or moe.width
        shared = moe.num_shared_experts
        if self.num_shared_experts is not None:
            shared = self.num_shared_experts
        latent = moe.latent_size if self.latent_size is None else self.latent_size or None
        return replace(
            moe,
            num_experts=self.num_experts or moe.num_experts,
            top_k=self.top_k or moe.top_k,
            width=width,
            gated=moe.gated if self.gated is None else self.gated,
            num_shared_experts=shared,
            shared_width=(moe.shared_width or width) if shared else 0,
            has_shared_gate=moe.has_shared_gate and shared > 0,
            latent_size=latent,
        )

    def blocks(self, spec: ModelSpec) -> tuple[LayerKind, ...]:
        """Return the blocks of a model with these changes.

        Raises:
            ConfigError: No layer with experts would be left.
        """
        found = tuple(
            block if block.moe is None else replace(block, moe=self.experts(block.moe))
            for block in spec.blocks
        )
        if self.num_layers is None:
            return found
        count = self.num_layers * spec.blocks_per_layer
        first = next(i for i, block in enumerate(found) if block.moe is not None)
        require(
            count > first,
            "architecture.num_layers",
            f"more than the {first} layers before the first experts",
            self.num_layers,
        )
        return (*found[:first], *islice(cycle(found[first:]), count - first))

    @property
    def label(self) -> str:
        """The changes in a few words; empty without any."""
        said = ((one.name, getattr(self, one.name)) for one in fields(self))
        return " ".join(f"{name} {value}" for name, value in said if value is not None)
