"""The only bridge from MoE to programs: candidate x cluster x routing -> `Program`."""

from moesim.lowering.layer import lower_layer
from moesim.lowering.traffic import Traffic, spread_tokens

__all__ = ["Traffic", "lower_layer", "spread_tokens"]
