"""Loss proxies: scaling laws and measured deltas with the ranges in which they hold, and refits to
the points of a user.
"""

from moesim.quality.law_file import save_law
from moesim.quality.layers import layer_delta
from moesim.quality.loss import LossBand, LossEstimate, estimate_loss, estimate_losses, loss_mid
from moesim.quality.loss_law import PUBLISHED, LossLaw
from moesim.quality.points import Points, read_points
from moesim.quality.refitting import Refit, load_law, refit

__all__ = [
    "PUBLISHED",
    "LossBand",
    "LossEstimate",
    "LossLaw",
    "Points",
    "Refit",
    "estimate_loss",
    "estimate_losses",
    "layer_delta",
    "load_law",
    "loss_mid",
    "read_points",
    "refit",
    "save_law",
]
