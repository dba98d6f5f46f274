"""Loss proxies: scaling laws and measured deltas, with the ranges they hold in."""

from moesim.quality.layers import layer_delta
from moesim.quality.loss import LossBand, LossEstimate, estimate_loss, estimate_losses, loss_mid
from moesim.quality.loss_law import PUBLISHED, LossLaw

__all__ = ["PUBLISHED", "LossBand", "LossEstimate", "LossLaw", "estimate_loss", "estimate_losses", "layer_delta",
           "loss_mid"]
