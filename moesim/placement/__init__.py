"""Experts on ranks: which slots there are, where, and which expert each holds."""

from moesim.placement.slots import Placement, replica_loads, turn_of_choice
from moesim.placement.strategies import STRATEGIES, place

__all__ = ["STRATEGIES", "Placement", "place", "replica_loads", "turn_of_choice"]
