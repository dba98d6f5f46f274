"""Check what every placement strategy must do with the experts it places.

A strategy is a function with the arguments of `moesim.placement.place` without the strategy's name:
loads of the experts, ranks, replicas, and the keywords ``setting`` and ``routing``. It returns a
`Placement`.

Shape legend: E experts, W ranks, P slots, T tokens, K choices of a token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moesim.errors import ConfigError
from moesim.model.gate import Gate
from moesim.placement import PLAIN, Placement, Setting, replica_loads
from moesim.routing import Routing, RoutingSpec, route
from moesim.testing.expect import expect, expect_close

Plan = Callable[..., Placement]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementProblem:
    """One layer to place.

    Attributes:
        routing: The choices of all tokens.
        num_ranks: Number of ranks W, which divides experts and replicas.
        num_replicas: Number of slots beyond one per expert.
        setting: Ranks per node and costs of copies.
    """

    routing: Routing
    num_ranks: int
    num_replicas: int = 0
    setting: Setting = PLAIN

    @property
    def loads_E(self) -> np.ndarray:
        """The load of each expert, in tokens."""
        return self.routing.num_tokens_E().astype(np.float64)

    @property
    def name(self) -> str:
        """The case in a few words."""
        experts = self.routing.num_experts
        return f"{experts} experts + {self.num_replicas} on {self.num_ranks} ranks"

    def placed(self, plan: Plan) -> Placement:
        """Return the plan of a strategy for this case.

        Args:
            plan: The strategy.

        Raises:
            MoesimError: The strategy refuses the case.
        """
        return plan(
            self.loads_E,
            self.num_ranks,
            self.num_replicas,
            setting=self.setting,
            routing=self.routing,
        )


def placement_case(
    seed: int, *, num_ranks: int, experts_per_rank: int, copies_per_rank: int = 0, nodes: int = 1
) -> PlacementProblem:
    """Draw a case with a skewed load.

    Args:
        seed: Seed of the routing.
        num_ranks: Number of ranks.
        experts_per_rank: Number of experts per rank.
        copies_per_rank: Number of replicas per rank.
        nodes: Number of nodes that the ranks are divided among.
    """
    experts = num_ranks * experts_per_rank
    routing = route(
        RoutingSpec.parse("zipf:0.9"),
        Gate(),
        num_experts=experts,
        top_k=min(2, experts),
        num_tokens_S=np.full(num_ranks, 16),
        seed=seed,
    )
    setting = PLAIN
    if nodes > 1:
        per_node = num_ranks // nodes
        setting = Setting(ranks_per_node=per_node, copy_work=0.1, node_copy_work=0.1)
    return PlacementProblem(
        routing=routing,
        num_ranks=num_ranks,
        num_replicas=num_ranks * copies_per_rank,
        setting=setting,
    )


def every_expert_has_a_slot(plan: Plan, case: PlacementProblem) -> None:
    """Check that all experts are placed, in as many slots as were asked for.

    Args:
        plan: The strategy.
        case: The case to place.

    Raises:
        AssertionError: An expert is missing, or there are too few or too many slots.
    """
    placed, experts = case.placed(plan), case.routing.num_experts
    held = np.unique(placed.expert_of_slot_P)
    missing = sorted(set(range(experts)) - set(held.tolist()))
    expect(not missing, f"{case.name}: a slot for every expert", missing)
    expect(held.max(initial=-1) < experts, f"{case.name}: known experts", int(held.max()))
    slots = experts + case.num_replicas
    expect(placed.num_slots == slots, f"{case.name}: {slots} slots", placed.num_slots)


def ranks_hold_equally_many(plan: Plan, case: PlacementProblem) -> None:
    """Check that equal ranks get equally many slots, in the order of the ranks.

    Args:
        plan: The strategy.
        case: The case to place.

    Raises:
        AssertionError: A rank holds more than another, or slots are out of order.
    """
    placed = case.placed(plan)
    each = placed.num_slots // case.num_ranks
    slots_W = placed.slots_of_rank().tolist()
    expect(slots_W == [each] * case.num_ranks, f"{case.name}: {each} slots on each rank", slots_W)
    ordered = (np.diff(placed.rank_of_slot_P) >= 0).all()
    expect(ordered, f"{case.name}: slots in the order of ranks")


def no_load_is_lost(plan: Plan, case: PlacementProblem) -> None:
    """Check that the slots of all ranks together carry the load of all experts.

    Args:
        plan: The strategy.
        case: The case to place.

    Raises:
        AssertionError: Load is lost or made up.
    """
    loads_P = replica_loads(case.placed(plan), case.loads_E)
    expect_close(loads_P.sum(), case.loads_E.sum(), f"{case.name}: the load of all slots")


def every_choice_finds_its_expert(plan: Plan, case: PlacementProblem) -> None:
    """Check that every choice of every token goes to a slot that holds the expert it chose.

    Args:
        plan: The strategy.
        case: The case to place.

    Raises:
        AssertionError: A choice goes to another expert.
    """
    placed, ids_TK = case.placed(plan), case.routing.expert_ids_TK
    slot_TK = placed.slot_of_choice(ids_TK)
    found = placed.expert_of_slot_P[slot_TK] == ids_TK
    expect(found.all(), f"{case.name}: every choice to reach its expert", int((~found).sum()))


def equal_cases_have_equal_plans(plan: Plan, case: PlacementProblem) -> None:
    """Check that a plan is a function of what it is planned on.

    Args:
        plan: The strategy.
        case: The case to place.

    Raises:
        AssertionError: Two plans of equal loads differ.
    """
    one, other = case.placed(plan), case.placed(plan)
    same = np.array_equal(one.expert_of_slot_P, other.expert_of_slot_P)
    same = same and np.array_equal(one.rank_of_slot_P, other.rank_of_slot_P)
    expect(same, f"{case.name}: two equal plans")


#: the checks of every case
CHECKS: tuple[Callable[[Plan, PlacementProblem], None], ...] = (
    every_expert_has_a_slot,
    ranks_hold_equally_many,
    no_load_is_lost,
    every_choice_finds_its_expert,
    equal_cases_have_equal_plans,
)


def slots_that_do_not_divide_are_refused(plan: Plan) -> None:
    """Check that experts which do not divide over equal ranks are refused in one line.

    Args:
        plan: The strategy.

    Raises:
        AssertionError: They are placed anyway, or the error is of another kind.
    """
    case = placement_case(0, num_ranks=3, experts_per_rank=2)
    odd = PlacementProblem(routing=case.routing, num_ranks=4)
    try:
        odd.placed(plan)
    except ConfigError as error:
        expect("\n" not in str(error), "a refusal of one line", str(error))
        return
    raise AssertionError(f"expected {odd.name} to be refused with a ConfigError, got a plan")


def replicas_are_refused(plan: Plan) -> None:
    """Check that a strategy without replicas refuses them instead of leaving them out.

    Args:
        plan: The strategy.

    Raises:
        AssertionError: It plans anyway.
    """
    case = placement_case(0, num_ranks=4, experts_per_rank=2, copies_per_rank=1)
    try:
        case.placed(plan)
    except ConfigError:
        return
    raise AssertionError(f"expected {case.name} to be refused with a ConfigError, got a plan")


def check_strategy(plan: Plan, *, replicates: bool) -> None:
    """Run all checks of placement strategies on a strategy.

    Args:
        plan: The strategy, such as ``functools.partial(place, "eplb")``.
        replicates: Whether it can place replicas.

    Raises:
        AssertionError: The strategy breaks a rule, which the text names with its case.
    """
    for seed, (ranks, each, nodes) in enumerate(((1, 4, 1), (2, 3, 1), (4, 4, 2), (8, 1, 2))):
        for copies in (0, 1, 2) if replicates else (0,):
            case = placement_case(
                seed,
                num_ranks=ranks,
                experts_per_rank=each,
                copies_per_rank=copies,
                nodes=nodes,
            )
            for check in CHECKS:
                check(plan, case)
    slots_that_do_not_divide_are_refused(plan)
    if not replicates:
        replicas_are_refused(plan)
