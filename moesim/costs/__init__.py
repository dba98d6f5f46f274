"""The only place that prices a kernel or a transfer.

Every price is a `PhaseCost`: seconds of the compute pool, seconds of memory and a latency, each
already divided by the calibrated efficiency. Engines never see an efficiency.
"""

from moesim.costs.phase import PhaseCost, sequence

__all__ = ["PhaseCost", "sequence"]
