"""Programs consist of ops that demand rate-limited resources. Nothing here depends on MoE."""

from moesim.program.program import Program, Timeline

__all__ = ["Program", "Timeline"]
