"""Several routings that belong together: layers whose choices are correlated, and steps of a
workload that drifts.

Shape legend: T tokens, K choices, E experts.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.errors import require, require_int
from moesim.model.gate import Gate
from moesim.routing.distributions import MAX_STEP, RoutingSpec
from moesim.routing.sampler import Routing, route


def route_layers(
    spec: RoutingSpec,
    gate: Gate,
    *,
    num_layers: int,
    affinity: float,
    num_experts: int,
    top_k: int,
    num_tokens_S: np.ndarray,
    seed: int,
) -> list[Routing]:
    """Choices of the same tokens in consecutive layers, correlated from layer to layer.

    Each layer is drawn by itself. Then a share of the tokens follows the layer before: each of
    their experts becomes its counterpart, a fixed expert of the next layer: that of the same rank
    by load, in a group of the same rank. So groups and different experts stay, loads lie between
    those drawn and the counterparts', and ``affinity`` from 0 to 1 sets how much a layer tells
    about the next (measured: 0.17-0.40 bit in OLMoE, 0.03-0.06 in Mixtral;
    `statistics.shared_information`).

    Args:
        spec: Distribution; of a trace, consecutive layers from ``spec.layer`` on, correlated as
            they are.
        gate: As `route`; layers that share a decision (``share_layers``) have the same choices.
        num_layers: How many.
        affinity: Share of the tokens that follow the layer before.
        num_experts: E.
        top_k: K.
        num_tokens_S: ndarray of shape (S,).
        seed: Of all layers.

    Raises:
        ConfigError: An affinity outside 0 to 1, or a trace with fewer layers.
    """
    require_int("num_layers", num_layers, 1)
    require(0.0 <= affinity <= 1.0, "affinity", "a number from 0 to 1", affinity)
    found: list[Routing] = []
    for layer in range(num_layers):
        if layer % gate.share_layers and found:
            found.append(found[-1])
            continue
        if spec.kind == "trace":
            one = replace(spec, layer=(spec.layer or 0) + layer)
            found.append(
                route(
                    one,
                    gate,
                    num_experts=num_experts,
                    top_k=top_k,
                    num_tokens_S=num_tokens_S,
                    seed=seed,
                )
            )
            continue
        own = seed + 7919 * layer
        drawn = route(
            spec, gate, num_experts=num_experts, top_k=top_k, num_tokens_S=num_tokens_S, seed=own
        )
        found.append(
            _follow(
                found[-1], drawn, affinity, gate.num_expert_groups, np.random.default_rng([own, 1])
            )
            if found
            else drawn
        )
    return found


def _follow(
    before: Routing, drawn: Routing, affinity: float, num_groups: int, rng: np.random.Generator
) -> Routing:
    """The rows drawn, but of a share of the tokens the counterparts of their experts in the layer
    before.
    """
    counterpart_E = np.empty(drawn.num_experts, dtype=np.int32)
    counterpart_E[_by_load(before, num_groups)] = _by_load(drawn, num_groups)
    rows = np.flatnonzero(rng.random(len(drawn.expert_ids_TK)) < affinity)
    ids = drawn.expert_ids_TK.copy()
    ids[rows] = counterpart_E[before.expert_ids_TK[rows]]
    return replace(drawn, expert_ids_TK=ids)


def _by_load(routing: Routing, num_groups: int) -> np.ndarray:
    """Experts by load, group by group: groups by their load, each with its experts by theirs.
    ndarray of shape (E,).
    """
    loads_GP = routing.num_tokens_E().reshape(num_groups, -1)
    groups = np.argsort(loads_GP.sum(axis=1), kind="stable")
    inside = np.argsort(loads_GP[groups], axis=1, kind="stable")
    return (groups[:, None] * loads_GP.shape[1] + inside).ravel()


def route_steps(
    spec: RoutingSpec,
    gate: Gate,
    steps: Sequence[int],
    *,
    num_experts: int,
    top_k: int,
    num_tokens_S: np.ndarray,
    seed: int,
) -> list[Routing]:
    """Choices in some steps of a workload that drifts, bursts or rotates: what a plan of one step
    meets in another.

    Args:
        spec: With ``drift`` or ``burst``, or one of W6 and W7; of a trace, consecutive windows.
        gate: As `route`.
        steps: Which, from 0.
        num_experts: E.
        top_k: K.
        num_tokens_S: ndarray of shape (S,).
        seed: Of all steps.

    Raises:
        ConfigError: A step out of range.
    """
    found = []
    for step in steps:
        require(0 <= step <= MAX_STEP, "step", f"from 0 to {MAX_STEP}", step)
        one = spec if spec.kind == "trace" else replace(spec, step=step)
        found.append(
            route(
                one,
                gate,
                num_experts=num_experts,
                top_k=top_k,
                num_tokens_S=num_tokens_S,
                seed=seed + step if spec.kind == "trace" else seed,
            )
        )
    return found
