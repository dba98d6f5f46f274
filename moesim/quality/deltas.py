"""Differences in loss of one choice against another, measured or assumed, in nats: the table that
all estimates share.

Against a flat top-k gate over experts of one width, without shared ones, balanced by an auxiliary
loss, dropless, bf16. Where no trustworthy figure is known, the delta is an assumption with an
interval wide enough for the worst figure known of anything like it, and says so.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

#: largest step of a gate that is measured either way (hash instead of Sinkhorn), and the worst
#: known (RL instead of Sinkhorn): 1.3B, 64 experts, from the coefficients of arXiv 2202.01169
HASH_NATS, WORST_NATS = 0.025, 0.064
#: what no published step of an 8-bit or score change exceeds
SMALL_NATS = 0.008


@dataclass(frozen=True, slots=True)
class Delta:
    """Nats and their interval; ``unknown`` says what has no figure, where that is so; ``source``
    whose figure it is.
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
    # an equal quota for each group costs +0.0090 by itself and +0.0034 with limited groups; of
    # routers that see one group no figure was found
    "local_routers": Delta(
        0.0034, 0.0, HASH_NATS, "local routers", f"equal quotas in limited groups, {_GROUPS}"
    ),
    "group_limited": Delta(0.0028, 0.0022, 0.0033, source=f"4 of 8 groups, {_GROUPS}"),
    # "at least 3 devices about as good as unrestricted" (DeepSeek-V2, arXiv 2405.04434, at second
    # hand) says nothing of fewer
    "few_groups": Delta(SMALL_NATS, 0.0, HASH_NATS, "fewer than 3 groups a token"),
    # as much as the other gate with structure, two_level, within nothing and the worst known
    "product_key": Delta(0.008, 0.0, WORST_NATS, "product_key gate"),
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
    # worse in OLMoE (arXiv 2409.02060), whose figure we have at second hand only
    "expert_choice": Delta(0.008, -HASH_NATS, WORST_NATS, "expert choice"),
    "sinkhorn": Delta(0.0, -HASH_NATS, HASH_NATS, "sinkhorn against top-k"),
    "noisy_top_k": Delta(0.0, -HASH_NATS, HASH_NATS, "noisy top-k"),
    "temperature": Delta(0.0, -SMALL_NATS, SMALL_NATS, "gating temperature"),
    # better than softmax to those who use it (arXiv 2408.15664, both sides of its figure for bias):
    # no number
    "sigmoid": Delta(0.0, -SMALL_NATS, SMALL_NATS, "sigmoid score"),
    "bias": Delta(
        -0.006,
        -0.007,
        -0.005,
        source="Wang et al. 2024, arXiv 2408.15664: perplexity 9.50 against 9.56 "
        "(1B), 7.92 against 7.97 (3B)",
    ),
    # a decision taken for another token knows of this one no more than a hash does, and in Mixtral
    # a token's expert is the next one's in only 14-28 % of cases
    "shared_decision": Delta(HASH_NATS, 0.0, WORST_NATS, "shared gate decisions"),
    "float8_gate": Delta(0.0, 0.0, SMALL_NATS, "8-bit gate"),
    # +0.5 points of GLUE in fine-tuning (Switch, arXiv 2101.03961); pre-training has no figure
    "expert_dropout": Delta(0.0, -HASH_NATS, HASH_NATS, "expert dropout in pre-training"),
    # one is best in arXiv 2507.17702, OLMoE (arXiv 2409.02060, at second hand) is better without:
    # the sign is open
    "shared_experts": Delta(0.0, -SMALL_NATS, SMALL_NATS, "shared experts"),
    # HMoE, arXiv 2408.10681, claims a gain: nothing, within the largest step of a gate that is
    # measured either way
    "widths": Delta(0.0, -HASH_NATS, HASH_NATS, "experts of different widths"),
    "float8": Delta(
        0.0015,
        0.0,
        0.0050,
        source=f"8-bit rounding of {_ROUNDED}; trained in fp8, DeepSeek-V3 (arXiv "
        "2412.19437) stays within 0.25 % of bf16's loss",
    ),
    "int8": Delta(0.0015, 0.0008, 0.0030, source=f"rounding of {_ROUNDED}; Mixtral +0.0008"),
    # rounding to nearest +0.095; block-scaled 4-bit floats: between nothing and that
    "int4": Delta(
        0.040, 0.024, 0.095, source=f"calibrated 4-bit weights of {_ROUNDED}: +0.024 to +0.055"
    ),
    "block_float4": Delta(0.024, 0.0, 0.095, "block-scaled 4-bit floats"),
}

#: capacity factor, nats: top-1, and top-2 for more
CAPACITY = {
    1: ((1.0, 0.007), (1.25, -0.001), (2.0, 0.0)),
    2: ((1.0, 0.025), (1.25, 0.012), (2.0, 0.0)),
}
#: bits of a weight, nats when rounded to nearest; two bits diverge
ROUNDED_BITS = ((3.0, 0.49), (4.0, 0.095), (5.0, 0.020), (6.0, 0.006), (8.0, 0.0015))
_CAPACITY_NATS = 0.005


def capacity_delta(capacity_factor: float, top_k: int, *, reroute: bool = False) -> Delta:
    """What dropped choices cost, by capacity factor; below 1.0 as at 1.0, and more than that is not
    measured.
    """
    nats = interpolate(CAPACITY[min(top_k, 2)], capacity_factor)
    if reroute:
        # no figure found for choices served by an expert nobody chose: between all and nothing of
        # what drops cost
        return Delta(
            nats / 2,
            min(nats, 0.0) - _CAPACITY_NATS,
            max(nats, 0.0) + _CAPACITY_NATS,
            "re-routed tokens",
        )
    if capacity_factor < 1.0:
        # each doubling of the places missing at least as bad as the step from 1.25 to 1.0, or up to
        # hashing's worst
        return Delta(nats, nats - _CAPACITY_NATS, nats + WORST_NATS, "capacity factor below 1")
    return Delta(nats, nats - _CAPACITY_NATS, nats + _CAPACITY_NATS, source=_SWITCH)


def weight_bits_delta(bits: float, *, calibrated: bool = False) -> Delta:
    """What integer weights of so many bits cost a trained model: rounded to nearest, or calibrated
    (GPTQ and the like).

    The logarithm of the nats is linear between the measured numbers of bits. Calibration has a
    figure at 4 bits only: 0.25 to 0.58 of rounding's; elsewhere it is assumed to save as much.

    Args:
        bits: 3 to 16; 16 and more cost nothing.
        calibrated: Rounded with data in mind.

    Raises:
        ValueError: Fewer than 3 bits: rounded to two, the model diverges.
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
    """Piecewise linear, constant outside."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y1 - (y1 - y0) * (x1 - x) / (x1 - x0)
    return points[-1][1]
