"""Programs: ops that demand rate-limited resources. Nothing here knows what an MoE is."""

from moesim.program.program import Program, Timeline

__all__ = ["Program", "Timeline"]
