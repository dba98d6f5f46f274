"""Collect the loss differences of a gate from a flat top-k gate trained with an auxiliary loss.

Every choice of the gate contributes a row of `DELTAS`. A gate that states no balancing is assumed
to be trained with an auxiliary loss.
"""

from dataclasses import replace

from moesim.model.gate import Gate
from moesim.model.gate_kinds import gate_kind
from moesim.quality.deltas import DELTAS, WORST_NATS, Delta

__all__ = ["WORST_NATS", "Delta", "gate_delta", "gate_deltas", "together"]


def gate_deltas(gate: Gate) -> list[Delta]:
    """Return the differences of a gate, one per choice that is not the default."""
    names = [
        name
        for name, there in (
            ("two_level", gate.kind == "two_level"),
            ("local_routers", gate.local_routers),
            ("product_key", gate.kind == "product_key"),
            ("low_rank", gate.kind == "low_rank"),
            ("sigmoid", gate.score == "sigmoid"),
            ("temperature", gate.temperature != 1.0),
            ("bias", gate.balancing == "bias"),
            ("float8_gate", gate.precision == "float8_e4m3"),
            (gate.selection, gate.selection != "top_k"),
        )
        if there
    ]
    deltas = [DELTAS[name] for name in names]
    if not gate_kind(gate.kind).loss_known:
        deltas.append(replace(DELTAS["product_key"], unknown=f"gate {gate.kind}"))
    if gate.kind == "group_limited" and gate.num_limited_groups < gate.num_expert_groups:
        deltas.append(_limited(gate))
    if gate.staleness:
        worst = DELTAS["shared_decision"]
        deltas.append(replace(worst, nats=worst.nats * gate.staleness))
    return deltas


def _limited(gate: Gate) -> Delta:
    """Return the difference of a limit on groups. Only 4 of 8 groups was measured; other limits of
    3 or more groups use its value with an interval from zero to twice its upper end.
    """
    if (gate.num_expert_groups, gate.num_limited_groups) == (8, 4):
        return DELTAS["group_limited"]
    if gate.num_limited_groups < 3:
        return DELTAS["few_groups"]
    found = DELTAS["group_limited"]
    return replace(found, low=0.0, high=2 * found.high)


def together(deltas: list[Delta]) -> Delta:
    """Return the sum of differences; ``unknown`` names those without a figure."""
    return Delta(
        sum(d.nats for d in deltas),
        sum(d.low for d in deltas),
        sum(d.high for d in deltas),
        "; ".join(d.unknown for d in deltas if d.unknown),
        "; ".join(dict.fromkeys(d.source for d in deltas)),
    )


def gate_delta(gate: Gate) -> Delta:
    """Return the sum of all differences of a gate; ``unknown`` names those without a figure."""
    return together(gate_deltas(gate))
