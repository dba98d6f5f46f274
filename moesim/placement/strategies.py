"""Place experts on ranks by a named strategy, with `place`.

``contiguous`` keeps expert order. ``round_robin`` deals experts out one by one. ``random:SEED``
places them at random. ``balanced`` puts the heaviest expert first onto the least loaded rank with
room (longest processing time, Graham 1969). ``eplb`` replicates the expert with the highest load
per replica, then packs like ``balanced``. ``eplb_hierarchical:GROUPS`` first packs whole groups of
the gate onto nodes (the hierarchical policy of deepseek-ai/EPLB). ``hierarchical`` does the same
with every expert as a separate group. ``affinity:TOLERANCE`` keeps experts together that are chosen
together. ``domain:TOLERANCE`` places experts near the sources of their tokens.
``local_search:STEPS`` improves the best of these by moves and swaps. ``exact:SECONDS`` solves an
integer program, for small cases.

Strategies plan on the loads they are given, so their results are optimistic if the distribution
drifts (see `moesim.placement.migration.forecast`). ``balanced`` and ``eplb`` are greedy and can
lose to ``contiguous`` (for about 1 % of random Zipf loads, by under 5 %).

Shape legend: E experts, P slots, W ranks.
"""

import hashlib
from collections import OrderedDict

import numpy as np

from moesim.errors import ConfigError
from moesim.placement.affinity import attracted, coactivation, source_pull
from moesim.placement.eplb import eplb_slots, limits
from moesim.placement.exact import exact_slots
from moesim.placement.local_search import levelled, searched
from moesim.placement.packing import pack
from moesim.placement.setting import PLAIN, Setting
from moesim.placement.slots import Placement
from moesim.placement.spec import OF_ROUTING, REPLICATING, STRATEGIES, PlacementSpec
from moesim.placement.work import check_work
from moesim.routing import Routing

Array = np.ndarray
_plans: OrderedDict[bytes, Placement] = OrderedDict()
_MOST_PLANS = 1024


def place(
    strategy: str,
    num_tokens_E: Array,
    num_ranks: int,
    num_replicas: int = 0,
    *,
    setting: Setting = PLAIN,
    routing: Routing | None = None,
) -> Placement:
    """Place E experts and ``num_replicas`` copies on ranks with the same number of slots each.

    If the ranks of the setting differ in speed, strategies that plan on loads give them different
    numbers of slots. Plans are cached by content.

    Args:
        strategy: A name in `STRATEGIES`, with a number if it takes one; those in `REPLICATING`
            place replicas.
        num_tokens_E: ndarray of shape (E,): expected load of each expert, in tokens or in any other
            unit of work.
        num_ranks: Number of ranks W, which must divide E + num_replicas unless ranks differ in
            speed.
        num_replicas: Number of slots beyond one per expert.
        setting: Nodes, speeds and memory of the ranks.
        routing: The choices behind the loads; ``affinity`` and ``domain`` require them,
            ``local_search`` uses them if given.

    Raises:
        UnknownNameError: The strategy is unknown.
        ConfigError: The slots do not divide over the ranks, or replicas are given to a strategy
            that cannot place them.
        CapacityError: The experts do not fit in memory, or planning would take too long.
    """
    spec = PlacementSpec.parse(strategy)
    load_E = np.ascontiguousarray(num_tokens_E, dtype=np.float64)
    uses_routing = routing is not None and spec.strategy in OF_ROUTING
    key = _digest(spec, load_E, num_ranks, num_replicas, setting, routing if uses_routing else None)
    if key in _plans:
        _plans.move_to_end(key)
        return _plans[key]
    wrong = ~(np.isfinite(load_E) & (load_E >= 0))
    if wrong.any():
        raise ConfigError(
            f"placement: expected loads >= 0, got {load_E[wrong][0]} for expert "
            f"{int(np.flatnonzero(wrong)[0])}"
        )
    check_plan(strategy, len(load_E), num_ranks, num_replicas, setting)
    expert_P, rank_P = _planned(spec, load_E, num_ranks, num_replicas, setting, routing)
    expert_P.flags.writeable = rank_P.flags.writeable = False
    found = Placement(
        rank_of_slot_P=rank_P,
        expert_of_slot_P=expert_P,
        num_ranks=num_ranks,
        num_experts=len(load_E),
        nearest_within=(setting.ranks_per_node or num_ranks) if spec.nearest else 0,
    )
    _plans[key] = found
    if len(_plans) > _MOST_PLANS:
        _plans.popitem(last=False)
    return found


def _digest(
    spec: PlacementSpec,
    load_E: Array,
    num_ranks: int,
    num_replicas: int,
    setting: Setting,
    routing: Routing | None,
) -> bytes:
    text = hashlib.blake2b(repr((spec, num_ranks, num_replicas, setting)).encode(), digest_size=16)
    text.update(load_E.tobytes())
    if routing is not None:
        text.update(np.ascontiguousarray(routing.num_tokens_S).tobytes())
        text.update(np.ascontiguousarray(routing.expert_ids_TK).tobytes())
    return text.digest()


def check_plan(
    strategy: str, num_experts: int, num_ranks: int, num_replicas: int, setting: Setting = PLAIN
) -> None:
    """Refuse what `place` refuses of any loads, before they are drawn.

    Raises:
        UnknownNameError: See `place`.
        ConfigError: See `place`.
        CapacityError: Planning would take too long, or more memory than there is.
    """
    spec = PlacementSpec.parse(strategy)
    if num_replicas < 0:
        raise ConfigError(f"placement.num_replicas: expected an integer >= 0, got {num_replicas}")
    if num_replicas and spec.strategy not in REPLICATING:
        raise ConfigError(
            f"placement.num_replicas: {spec.strategy} places no replicas, got {num_replicas}: use "
            f"one of {', '.join(REPLICATING)}"
        )
    setting.check(num_experts, num_ranks)
    divided = (num_experts + num_replicas) % num_ranks == 0
    if not divided and not (
        setting.unequal and spec.strategy not in ("contiguous", "round_robin", "random")
    ):
        raise ConfigError(
            f"placement: expected experts + replicas divisible by the {num_ranks} expert-parallel "
            f"ranks, got {num_experts} + {num_replicas}"
        )
    check_work(spec, num_experts, num_ranks, num_replicas)


def _planned(
    spec: PlacementSpec,
    load_E: Array,
    num_ranks: int,
    num_replicas: int,
    setting: Setting,
    routing: Routing | None,
) -> tuple[Array, Array]:
    """Return the expert and the rank of each slot, in order of ranks."""
    name, num_experts = spec.strategy, len(load_E)
    experts = np.arange(num_experts)
    if name in ("contiguous", "round_robin", "random"):
        if name == "random":
            experts = np.random.default_rng(int(spec.number)).permutation(num_experts)
        rank_P = np.arange(num_experts) // (num_experts // num_ranks)
        if name == "round_robin":
            experts = experts.reshape(-1, num_ranks).T.ravel()
        return experts, rank_P
    if name == "balanced":
        rank_P, place_P = pack(
            load_E, setting.rooms(num_experts, num_ranks), **limits(setting, experts)
        )
        order = np.lexsort((place_P, rank_P))
        return experts[order], rank_P[order]
    if name == "eplb":
        return eplb_slots(load_E, num_ranks, num_replicas, setting.one_node(), 1)
    if name == "eplb_hierarchical":
        groups = int(spec.number) or setting.num_expert_groups
        return eplb_slots(load_E, num_ranks, num_replicas, setting, groups)
    if name == "hierarchical":
        one = setting.nodes(num_ranks) == 1
        return eplb_slots(load_E, num_ranks, num_replicas, setting, 1 if one else num_experts)
    if name == "local_search":
        return searched(load_E, num_ranks, num_replicas, setting, routing, steps=int(spec.number))
    if name == "exact":
        found = exact_slots(load_E, num_ranks, num_replicas, setting, seconds=spec.number)
        return found.expert_P, found.rank_P
    if routing is None:
        raise ConfigError(f"placement: {name} needs a routing, got loads alone")
    pair = coactivation(routing.expert_ids_TK, num_experts) if name == "affinity" else None
    pull = source_pull(routing.num_tokens_SE(), num_ranks, setting.tp) if name == "domain" else None
    expert_P, rank_P = attracted(
        load_E, num_ranks, num_replicas, setting, tolerance=spec.number, pair_EE=pair, pull_EW=pull
    )
    return levelled(load_E, expert_P, rank_P, setting, num_ranks, spec.number)


__all__ = ["REPLICATING", "STRATEGIES", "place"]
