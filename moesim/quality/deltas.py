"""The table of loss differences between choices, in nats, measured or assumed, that all estimates
share.

Differences are relative to a flat top-k gate over experts of one width, without shared experts,
balanced by an auxiliary loss, dropless, in bf16. If no trustworthy figure is known, the delta is an
assumption whose interval covers the worst figure known for anything similar, and it says so.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

#: largest measured step between gates in either direction (hash instead of Sinkhorn), and the worst
#: known (RL instead of Sinkhorn): 1.3B, 64 experts, from the coefficients of arXiv 2202.01169
HASH_NATS, WORST_NATS = 0.025, 0.064
#: no published step of an 8-bit or score change exceeds this
SMALL_NATS = 0.008


@dataclass(frozen=True, slots=True)
class Delta:
    """A difference in nats with its interval; ``unknown`` names the choice if no figure is known
    for it; ``source`` names the origin of the figure.
    """

    nats: float
    low: float
    high: float
    unknown: str = ""
    source: str = "assumed"


_CLARK = "coefficients of Clark et al. 2022, arXiv 2202.01169, at 1.3B, 64 experts"
_GROUPS = "arXiv 2608.27874: 13.1B total, 1.33B active, 4 seeds"
_SWITCH = "Fedus et al. 2021, arXiv 2101.03961, table 1, against capacity factor 2.0"
_ROUNDED = "DeepSeek-MoE-16B"

#: name -> difference
DELTAS = {
    "two_level": Delta(
        0.008,
        0.0,
        0.016,
        source="Shazeer et al. 2017, arXiv 1701.06538: perplexity 36.0 against 35.7 at 256 experts",
    ),
    # an equal quota per group costs +0.0090 alone and +0.0034 with limited groups; no figure was
    # found for routers that see one group only
    "local_routers": Delta(
        0.0034, 0.0, HASH_NATS, "local routers", f"equal quotas in limited groups, {_GROUPS}"
    ),
    "group_limited": Delta(0.0028, 0.0022, 0.0033, source=f"4 of 8 groups, {_GROUPS}"),
    # "at least 3 devices about as good as unrestricted" (DeepSeek-V2, arXiv 2405.04434, at second
    # hand) says nothing about fewer
    "few_groups": Delta(SMALL_NATS, 0.0, HASH_NATS, "fewer than 3 groups a token"),
    # as much as two_level, the other structured gate, in an interval from zero to the worst known
    "product_key": Delta(0.008, 0.0, WORST_NATS, "product_key gate"),
    # X-MoE (arXiv 2204.09179) gains by low-rank queries that it trains and normalizes; distilling a
    # gate into one has no figure: as much as another structured gate, likewise
    "low_rank": Delta(0.008, -SMALL_NATS, WORST_NATS, "low-rank gate"),
    "hash": Delta(
        HASH_NATS, 0.0, WORST_NATS, "hash routing against top-k", f"hash against Sinkhorn: {_CLARK}"
    ),
    "reinforce": Delta(
        WORST_NATS,
        0.0,
        2 * WORST_NATS,
        "RL routing against top-k",
        f"RL against Sinkhorn: {_CLARK}",
    ),
    # worse in OLMoE (arXiv 2409.02060), but we have its figure only at second hand
    "expert_choice": Delta(0.008, -HASH_NATS, WORST_NATS, "expert choice"),
    "sinkhorn": Delta(0.0, -HASH_NATS, HASH_NATS, "sinkhorn against top-k"),
    "noisy_top_k": Delta(0.0, -HASH_NATS, HASH_NATS, "noisy top-k"),
    "temperature": Delta(0.0, -SMALL_NATS, SMALL_NATS, "gating temperature"),
    # users of sigmoid call it better than softmax (arXiv 2408.15664 uses it on both sides of its
    # figure for bias), but give no number
    "sigmoid": Delta(0.0, -SMALL_NATS, SMALL_NATS, "sigmoid score"),
    "bias": Delta(
        -0.006,
        -0.007,
        -0.005,
        source="Wang et al. 2024, arXiv 2408.15664: perplexity 9.50 against 9.56 "
        "(1B), 7.92 against 7.97 (3B)",
    ),
    # a decision made for another token knows no more about this token than a hash does; in Mixtral
    # the next token uses the same expert in only 14-28 % of cases
    "shared_decision": Delta(HASH_NATS, 0.0, WORST_NATS, "shared gate decisions"),
    "float8_gate": Delta(0.0, 0.0, SMALL_NATS, "8-bit gate"),
    # +0.5 points of GLUE in fine-tuning (Switch, arXiv 2101.03961); there is no figure for
    # pre-training
    "expert_dropout": Delta(0.0, -HASH_NATS, HASH_NATS, "expert dropout in pre-training"),
    # one shared expert is best in arXiv 2507.17702, while OLMoE (arXiv 2409.02060, at second hand)
    # is better without: the sign is open
    "shared_experts": Delta(0.0, -SMALL_NATS, SMALL_NATS, "shared experts"),
    # HMoE, arXiv 2408.10681, claims a gain; we assume zero, in an interval of the largest measured
    # step between gates in either direction
    "widths": Delta(0.0, -HASH_NATS, HASH_NATS, "experts of different widths"),
    # log perplexity of a dense model with blocks of as many weights: ReLU 1.677, GELU 1.679, Swish
    # 1.683, against SwiGLU 1.636; squared ReLU, which is used today, closes a part of the gap for
    # which we have no figure
    "not_gated": Delta(
        0.020,
        0.0,
        0.047,
        "experts that are not gated",
        "Shazeer 2020, arXiv 2002.05202, at second hand: dense T5 base",
    ),
    # fewer weights for each expert, which the law counts; what the narrow space itself costs has no
    # figure
    "latent": Delta(0.0, -SMALL_NATS, HASH_NATS, "experts in a latent space"),
    "float8": Delta(
        0.0015,
        0.0,
        0.0050,
        source=f"8-bit rounding of {_ROUNDED}; trained in fp8, DeepSeek-V3 (arXiv "
        "2412.19437) stays within 0.25 % of bf16's loss",
    ),
    "int8": Delta(0.0015, 0.0008, 0.0030, source=f"rounding of {_ROUNDED}; Mixtral +0.0008"),
    # rounding to nearest costs +0.095; block-scaled 4-bit floats cost between zero and that
    "int4": Delta(
        0.040, 0.024, 0.095, source=f"calibrated 4-bit weights of {_ROUNDED}: +0.024 to +0.055"
    ),
    "block_float4": Delta(0.024, 0.0, 0.095, "block-scaled 4-bit floats"),
}

#: top_k -> (capacity factor, nats); the row of top-2 also serves larger top_k
CAPACITY = {
    1: ((1.0, 0.007), (1.25, -0.001), (2.0, 0.0)),
    2: ((1.0, 0.025), (1.25, 0.012), (2.0, 0.0)),
}
#: (bits of a weight, nats when rounded to nearest); with two bits the model diverges
ROUNDED_BITS = ((3.0, 0.49), (4.0, 0.095), (5.0, 0.020), (6.0, 0.006), (8.0, 0.0015))
_CAPACITY_NATS = 0.005


def capacity_delta(capacity_factor: float, top_k: int, *, reroute: bool = False) -> Delta:
    """Return the cost of dropped choices by capacity factor. Below 1.0 it is that at 1.0, with a
    wider interval, since nothing was measured there.
    """
    nats = interpolate(CAPACITY[min(top_k, 2)], capacity_factor)
    if reroute:
        # no figure was found for choices served by an expert that the token did not choose: the
        # cost lies between zero and that of dropping
        return Delta(
            nats / 2,
            min(nats, 0.0) - _CAPACITY_NATS,
            max(nats, 0.0) + _CAPACITY_NATS,
            "re-routed tokens",
        )
    if capacity_factor < 1.0:
        # the cost is about that at 1.0 or more, up to the worst known step of a gate above it
        return Delta(nats, nats - _CAPACITY_NATS, nats + WORST_NATS, "capacity factor below 1")
    return Delta(nats, nats - _CAPACITY_NATS, nats + _CAPACITY_NATS, source=_SWITCH)


def weight_bits_delta(bits: float, *, calibrated: bool = False) -> Delta:
    """Return the cost of integer weights with a given number of bits for a trained model, rounded
    to nearest or calibrated (GPTQ and similar methods).

    The logarithm of the nats is linear between the measured numbers of bits. Calibration was
    measured at 4 bits only, where it costs 0.25 to 0.58 of the rounding cost; it is assumed to save
    as much elsewhere.

    Args:
        bits: Bits of a weight, at least 3; 16 and more cost nothing.
        calibrated: Whether the weights were rounded with the help of calibration data.

    Raises:
        ValueError: There are fewer than 3 bits; with two bits the model diverges.
    """
    if bits >= 16:
        return Delta(0.0, 0.0, 0.0, source=f"rounding of {_ROUNDED}")
    if bits < ROUNDED_BITS[0][0]:
        raise ValueError(f"bits: expected at least {ROUNDED_BITS[0][0]:g}, got {bits:g}")
    nats = math.exp(interpolate(tuple((b, math.log(n)) for b, n in ROUNDED_BITS), bits))
    source = f"rounding of {_ROUNDED}"
    if not calibrated:
        return Delta(nats, nats / 2, 2 * nats, source=source)
    low, high = 0.024 / 0.095, 0.055 / 0.095
    unknown = "" if bits == 4 else f"calibrated {bits:g}-bit weights"
    return Delta((low + high) / 2 * nats, low * nats, nats, unknown, source)


def interpolate(points: tuple[tuple[float, float], ...], x: float) -> float:
    """Interpolate linearly between points; the value is constant outside of them."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y1 - (y1 - y0) * (x1 - x) / (x1 - x0)
    return points[-1][1]
