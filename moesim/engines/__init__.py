"""Engines turn a `Program` into a `Timeline`. They know resources and ops, and nothing of MoE."""

from moesim.engines.run import ENGINES, Engine

__all__ = ["ENGINES", "Engine"]
