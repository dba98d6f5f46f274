"""Price the ends of a model: the embedding before the first layer, the head and the loss after the
last.

The loss reads float32 logits twice forward (largest, sum of exponentials) and reads and writes them
backward. The embedding's gradient is added to a table, row by row.
"""

from moesim.costs.dense.elementwise import embedding_bytes
from moesim.costs.steps.shares import Gemm
from moesim.costs.training.parts import Part, together
from moesim.costs.training.passes import DensePasses, Which

_LOGIT_BYTES = 4.0
_FMT = "bfloat16"


def embedding(passes: DensePasses, which: Which) -> Part:
    """Return a pass of the embedding; it has no products."""
    moved = float(embedding_bytes(passes.own_tokens, passes.pricing.hidden_size))
    return passes.moved("embedding", 0.0 if which == "dgrad" else moved)


def head(passes: DensePasses, vocab_size: int, which: Which) -> Part:
    """Return a pass of the output head, in bf16, with the loss."""
    columns = vocab_size / passes.pricing.tp
    hidden = passes.pricing.hidden_size
    product = passes.gemms("head", which, [Gemm(columns, hidden)], passes.tokens, _FMT)
    if which == "wgrad":
        return product
    logits = passes.tokens * columns * _LOGIT_BYTES
    return together("head", product, passes.moved("head", 2.0 * logits))
