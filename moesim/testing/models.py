"""A small whole model for tests: kinds of layers with dense and sparse feed-forwards."""

from moesim.model import Gate
from moesim.model.feedforward import DenseFeedForward, MoEFeedForward
from moesim.model.mixers import GroupedAttention
from moesim.model.spec import LayerKind, ModelSpec

FULL = GroupedAttention(num_heads=32, num_kv_heads=8, head_size=128)
WINDOW = GroupedAttention(num_heads=32, num_kv_heads=8, head_size=128, window=128)
MOE = MoEFeedForward(
    num_experts=64,
    top_k=4,
    width=1024,
    gate=Gate(),
    num_shared_experts=1,
    shared_width=1024,
)
DENSE = LayerKind(mixer=FULL, dense=DenseFeedForward(width=8192))
SPARSE = LayerKind(mixer=FULL, moe=MOE)
NARROW = LayerKind(mixer=WINDOW, moe=MOE)


def spec_of(*blocks: LayerKind) -> ModelSpec:
    """Return a model with these layers."""
    return ModelSpec(hidden_size=2048, vocab_size=64000, tied_embeddings=False, blocks=blocks)
