"""Engines: `Program` in, `Timeline` out. They know resources and ops, and nothing of MoE."""

from moesim.engines.run import ENGINES, Engine

__all__ = ["ENGINES", "Engine"]
