"""Advice: answers that are made of many simulations."""

from moesim.advice.recommendation import Choice, Help, Recommendation

__all__ = ["Choice", "Help", "Recommendation"]
