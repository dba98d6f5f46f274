"""Price kernels and transfers; no other package does.

Every price is a `PhaseCost`: seconds of the compute pool, seconds of memory and a latency. They are
already divided by the calibrated efficiencies. Engines never see an efficiency.
"""

from moesim.costs.phase import PhaseCost, sequence

__all__ = ["PhaseCost", "sequence"]
