"""A placement says which expert slots each rank has and which expert each slot holds."""

from moesim.placement.setting import PLAIN, Setting
from moesim.placement.slots import Placement, replica_loads, turn_of_choice
from moesim.placement.spec import OF_ROUTING, REPLICATING, STRATEGIES, PlacementSpec
from moesim.placement.strategies import check_plan, place

__all__ = [
    "OF_ROUTING",
    "PLAIN",
    "REPLICATING",
    "STRATEGIES",
    "Placement",
    "PlacementSpec",
    "Setting",
    "check_plan",
    "place",
    "replica_loads",
    "turn_of_choice",
]
