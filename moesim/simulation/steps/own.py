"""Price what an attention rank computes on its own tokens alone, attention apart.

Ranks meet at their experts. Where one has a prompt and the others none, its norms, projections,
dense feed-forwards, gates and shared experts are those of the whole prompt, while the experts of
all ranks share its tokens: a step lasts as long as one in which each rank has the mean number of
tokens, and what the fullest has to compute of its own beyond that.
"""

from moesim.costs.phase import PhaseCost
from moesim.costs.steps import around, rest
from moesim.costs.steps.mixers import DensePricing
from moesim.design.served import ServedModel
from moesim.design.step import Step
from moesim.model.spec import LayerKind


def own_s(served: ServedModel, pricing: DensePricing, tokens: int) -> float:
    """Return the seconds that a rank computes on prompt tokens of its own, attention, experts and
    their exchange left out.

    Args:
        served: The design.
        pricing: What its dense parts are priced with.
        tokens: Tokens of the rank's prompts.
    """
    if not tokens:
        return 0.0
    step = Step(prefills=1.0, new_tokens=float(tokens))
    return sum(
        count * float(cost.solo_s_D()[0])
        for kind, count in served.spec.kinds.items()
        for cost in _parts(served, pricing, kind, step)
    )


def _parts(
    served: ServedModel, pricing: DensePricing, kind: LayerKind, step: Step
) -> list[PhaseCost]:
    """Return the prices of a layer's parts, each of one device."""
    found: list[PhaseCost] = []
    if kind.mixer is not None:
        found.append(rest.norm(pricing, step.tokens))
        found.append(around.projected(pricing, kind.mixer, step))
    if kind.dense is not None or kind.moe is not None:
        found.append(rest.norm(pricing, step.tokens))
    if kind.dense is not None:
        found.append(rest.dense(pricing, kind.dense, step))
    if kind.moe is not None:
        each = step.tokens / served.layout.tp
        found.append(rest.gate(pricing, served.layer(kind.moe), each))
        if kind.moe.num_shared_experts:
            found.append(rest.shared(pricing, kind.moe, each, 1))
    return found
