"""What a gate costs in loss: measured differences to a flat top-k gate trained with an auxiliary loss, and their
intervals.

Where no trustworthy figure is known, the delta is an assumption with an interval wide enough for the worst figure known
of anything like it, and says so. Figures are in nats; sources stand beside them.
"""

from dataclasses import dataclass

from moesim.gate import Gate

#: largest step of a gate that is measured either way (hash instead of Sinkhorn), and the worst known (RL instead of
#: Sinkhorn, 1.3B, 64 experts: from the coefficients of arXiv 2202.01169)
HASH_NATS, WORST_NATS = 0.025, 0.064


@dataclass(frozen=True, slots=True)
class Delta:
    """Nats and their interval; ``unknown`` says what has no figure, where that is so."""

    nats: float
    low: float
    high: float
    unknown: str = ""


def gate_deltas(gate: Gate) -> list[Delta]:
    """Differences of a gate, one for each choice that is not the usual."""
    deltas = []
    if gate.kind == "two_level":
        # hierarchical against flat at 256 experts, perplexity 36.0 vs 35.7: Shazeer et al. 2017, arXiv 1701.06538
        deltas.append(Delta(0.008, 0.0, 0.016))
    if gate.local_routers:
        # an equal quota for each group costs +0.0090 by itself and +0.0034 with limited groups (13.1B total / 1.33B
        # active, 4 seeds: arXiv 2608.27874); of routers that see one group no figure was found
        deltas.append(Delta(0.0034, 0.0, HASH_NATS, "local routers"))
    if gate.kind == "group_limited":
        # 4 of 8 groups, 13.1B total / 1.33B active, 4 seeds: arXiv 2608.27874
        deltas.append(Delta(0.0028, 0.0022, 0.0033))
    if gate.kind == "product_key":
        # no figure found: as much as the other gate with structure, two_level, within nothing and the worst known
        deltas.append(Delta(0.008, 0.0, WORST_NATS, "product_key gate"))
    if gate.selection == "hash":
        # against Sinkhorn at 1.3B, 64 experts, from the coefficients of arXiv 2202.01169; against top-k not measured
        deltas.append(Delta(HASH_NATS, 0.0, WORST_NATS, "hash routing against top-k"))
    if gate.selection == "expert_choice":
        # worse in OLMoE, whose figure we have at second hand only
        deltas.append(Delta(0.008, -HASH_NATS, WORST_NATS, "expert choice"))
    if gate.selection == "sinkhorn":
        deltas.append(Delta(0.0, -HASH_NATS, HASH_NATS, "sinkhorn against top-k"))
    if gate.selection == "noisy_top_k":
        deltas.append(Delta(0.0, -HASH_NATS, HASH_NATS, "noisy top-k"))
    if gate.temperature != 1.0:
        deltas.append(Delta(0.0, -0.008, 0.008, "gating temperature"))
    if gate.balancing == "bias":
        # perplexity 9.50 against 9.56 (1B) and 7.92 against 7.97 (3B): Wang et al. 2024, arXiv 2408.15664
        deltas.append(Delta(-0.006, -0.007, -0.005))
    if gate.staleness:
        # no figure found; a decision taken for another token knows of this one no more than a hash does, and in
        # Mixtral a token's expert is the next one's in only 14-28 % of cases
        deltas.append(Delta(HASH_NATS * gate.staleness, 0.0, WORST_NATS, "shared gate decisions"))
    return deltas


def gate_delta(gate: Gate) -> Delta:
    """All differences of a gate together; ``unknown`` names those without a figure."""
    deltas = gate_deltas(gate)
    return Delta(sum(d.nats for d in deltas), sum(d.low for d in deltas), sum(d.high for d in deltas),
                 "; ".join(d.unknown for d in deltas if d.unknown))
