"""Draw routings that belong together: correlated layers, and the steps of a drifting workload.

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
    """Draw the choices of the same tokens in consecutive layers, correlated from layer to layer.

    Each layer is first drawn independently. Then a share of the tokens follows the layer before:
    each of their experts is replaced by its counterpart, a fixed expert of the next layer, which
    has the same rank by load in a group of the same rank. So the limits on groups hold and the
    experts of a token stay distinct, loads lie between the drawn ones and those of the
    counterparts, and ``affinity`` from 0 to 1 sets how much one layer reveals about the next
    (measured: 0.17-0.40 bit in OLMoE, 0.03-0.06 in Mixtral; `statistics.shared_information`).

    Args:
        spec: The distribution of load. A trace gives its consecutive layers from ``spec.layer`` on,
            with their own correlation.
        gate: The gate, used as in `route`; layers that share a decision (``share_layers``) have the
            same choices.
        num_layers: Number of layers.
        affinity: Share of the tokens that follow the layer before.
        num_experts: Number of experts E.
        top_k: Number of choices per token K.
        num_tokens_S: ndarray of shape (S,): number of tokens of each source.
        seed: Seed of all layers.

    Raises:
        ConfigError: The affinity is outside 0 to 1, or a trace has fewer layers.
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
    """Return the drawn rows, with a share of the tokens replaced by the counterparts of their
    experts in the layer before.
    """
    counterpart_E = np.empty(drawn.num_experts, dtype=np.int32)
    counterpart_E[_by_load(before, num_groups)] = _by_load(drawn, num_groups)
    rows = np.flatnonzero(rng.random(len(drawn.expert_ids_TK)) < affinity)
    ids = drawn.expert_ids_TK.copy()
    ids[rows] = counterpart_E[before.expert_ids_TK[rows]]
    return replace(drawn, expert_ids_TK=ids)


def _by_load(routing: Routing, num_groups: int) -> np.ndarray:
    """Return the experts group by group: groups sorted by load, and the experts of each group
    sorted by load. ndarray of shape (E,).
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
    """Draw the choices in some steps of a workload that drifts, bursts or rotates, to test the plan
    of one step in another.

    Args:
        spec: A distribution with ``drift`` or ``burst``, or W6 or W7; a trace gives consecutive
            windows.
        gate: The gate, used as in `route`.
        steps: Indices of the steps, from 0.
        num_experts: Number of experts E.
        top_k: Number of choices per token K.
        num_tokens_S: ndarray of shape (S,): number of tokens of each source.
        seed: Seed of all steps.

    Raises:
        ConfigError: A step is out of range.
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
