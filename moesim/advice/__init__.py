"""Answer questions that take many simulations."""

from moesim.advice.recommendation import Choice, Help, Recommendation

__all__ = ["Choice", "Help", "Recommendation"]
