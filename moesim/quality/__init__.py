"""Loss proxies: scaling laws and measured deltas, with the ranges they hold in."""

from moesim.quality.loss import LossEstimate, estimate_loss

__all__ = ["LossEstimate", "estimate_loss"]
