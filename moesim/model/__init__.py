"""Models consist of MoE layers, their gates and number formats; they come from presets or Hugging
Face configs.
"""

from moesim.model.dense import DensePart
from moesim.model.gate import Gate
from moesim.model.layer import MoELayer
from moesim.model.precision import Precision

__all__ = ["DensePart", "Gate", "MoELayer", "Precision"]
