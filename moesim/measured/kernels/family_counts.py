"""Say what the timed rank of a family's row computes: the rows of each local expert.

The rank with the most load is timed (`moesim.measured.kernels.table`). Where a dataset clamps
choices of other ranks, a local expert computes them; where experts have replicas or are placed by
load, slots take the place of experts.

Shape legend: E experts, P slots, L local experts or slots.
"""

from typing import Any

import numpy as np

from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.family_records import KernelFamily
from moesim.placement.packing import pack, replicate, shared
from moesim.routing.distributions import RoutingSpec

Array = np.ndarray
#: end of a distribution whose experts are placed by load (DeepSeek's EPLB)
PLACED = "_eplb"


def timed_counts(
    row: dict[str, Any], draw: int, family: KernelFamily
) -> tuple[Array, float, float]:
    """Return what the timed rank of a row computes.

    Args:
        row: One row as a dict with `moesim.measured.kernels.table.COLUMNS`, and of
            `moesim.measured.kernels.table.EXTRAS` what its family knows.
        draw: Number of the Monte-Carlo draw.
        family: The row's family.

    Returns:
        Rows of each local expert, ndarray of shape (L,); distinct tokens that enter; and tokens
        whose choices are looked through.
    """
    tokens, top_k, ranks = (row[name] for name in ("num_tokens", "topk", "moe_ep_size"))
    if row["distribution"] == "uniform" and family.uniform_block > 1:
        local = _in_blocks(tokens * top_k // ranks, row["num_experts"] // ranks, family)
    else:
        local = silicon.hottest_rank(_slot_loads(row, draw, family), ranks)
    entering = silicon.entering_tokens(local, tokens, top_k, ranks)
    present = float(tokens)
    if known := _known(row, "rank0_num_tokens", family):
        # draws are not reproducible, but this tells how hot the timed rank was
        scaled = np.minimum(local * known / max(entering, 1.0), tokens)
        local, entering, present = np.rint(scaled).astype(np.int64), known, known
    if ranks > 1 and row["dataset"] in family.clamps:
        clamped = local.copy()
        clamped[0] += max(round(entering) * top_k - int(local.sum()), 0)
        return clamped, entering, entering
    return local, float(tokens) if family.all_enter else entering, present


def _known(row: dict[str, Any], column: str, family: KernelFamily) -> float:
    """Return a row's value of a column that its family may have; 0 if it is not known."""
    value = row.get(column) if column in family.columns else None
    return 0.0 if value is None or not value > 0 else float(value)


def _slot_loads(row: dict[str, Any], draw: int, family: KernelFamily) -> Array:
    """Return the loads of all slots in order of ranks: ndarray of shape (P,), int64."""
    experts, ranks = row["num_experts"], row["moe_ep_size"]
    kind = row["distribution"].removesuffix(PLACED).replace("uniform", "balanced")
    loads_E = silicon.loads(kind, row["num_tokens"], experts, row["topk"], draw)
    if family.first_take_rest and row["num_tokens"] * row["topk"] <= experts:
        loads_E = _first_take_rest(kind, row, draw)
    slots = int(_known(row, "num_slots", family)) or experts
    if slots == experts and not row["distribution"].endswith(PLACED):
        return loads_E
    expert_P = replicate(loads_E, slots - experts)
    load_P = shared(loads_E, expert_P)
    rank_P, place_P = pack(load_P, np.full(ranks, slots // ranks))
    return np.ceil(load_P[np.lexsort((place_P, rank_P))]).astype(np.int64)


def _first_take_rest(kind: str, row: dict[str, Any], draw: int) -> Array:
    """Return the loads of all experts if choices that rounding leaves over go to the first experts,
    one each: shape (E,), int64.
    """
    tokens, experts, top_k = (row[name] for name in ("num_tokens", "num_experts", "topk"))
    spec = RoutingSpec(kind="power_law", alpha=float(kind.removeprefix("power_law_")))
    rng = np.random.default_rng([draw, experts, top_k, tokens])
    weight_E = spec.weights_NE(experts, top_k, tokens, rng)[0]
    loads_E = np.rint(weight_E / weight_E.sum() * tokens * top_k).astype(np.int64)
    rest = tokens * top_k - int(loads_E.sum())
    loads_E[: max(rest, 0)] += 1
    for expert in np.argsort(-loads_E, kind="stable")[: max(-rest, 0)]:
        loads_E[expert] -= 1
    return loads_E


def _in_blocks(rows: int, local: int, family: KernelFamily) -> Array:
    """Return ``rows`` handed to ``local`` experts in whole blocks, in turn: shape (L,), int64."""
    block = family.uniform_block
    whole, rest = divmod(rows, block)
    counts = np.full(local, whole // local * block)
    counts[: whole % local] += block
    counts[whole % local] += rest
    return counts
