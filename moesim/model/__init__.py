"""Models: MoE layers, their gates and number formats, presets and Hugging Face configs."""

from moesim.model.gate import Gate
from moesim.model.layer import DensePart, MoELayer
from moesim.model.precision import Precision

__all__ = ["DensePart", "Gate", "MoELayer", "Precision"]
