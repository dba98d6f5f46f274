"""Name the recipes of formats in which models are trained."""

from dataclasses import dataclass

from moesim.errors import UnknownNameError
from moesim.model.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFormats:
    """A recipe of formats.

    Attributes:
        experts: Recipe of the experts' GEMMs.
        dense: Format of all other GEMMs, one of `moesim.costs.dense.gemm.FORMATS`.
        dispatch: Format in which tokens travel to experts.
    """

    experts: Precision
    dense: str
    dispatch: str


_BF16, _FP8 = "bfloat16", "float8_e4m3"
#: fp8: one scale per tensor ("current scaling"); fp8_block: blocks of 128 (DeepSeek-V3, arXiv
#: 2412.19437), which also sends tokens in fp8; mxfp8: blocks of 32, whose scales the tensor cores
#: of Blackwell apply, so that it computes like fp8 (arXiv 2506.08027)
_RECIPES = {
    "bf16": ("bf16", "bfloat16", _BF16),
    "fp8": ("fp8_tensor", "fp8", _BF16),
    "fp8_block": ("fp8", "fp8_block", _FP8),
    "mxfp8": ("fp8_tensor", "fp8", _BF16),
}
RECIPE_NAMES = tuple(_RECIPES)


def train_formats(name: str) -> TrainFormats:
    """Return a recipe by its name.

    Raises:
        UnknownNameError: The name is not one of `RECIPE_NAMES`.
    """
    if name not in _RECIPES:
        raise UnknownNameError("formats of training", name, RECIPE_NAMES)
    experts, dense, dispatch = _RECIPES[name]
    return TrainFormats(experts=Precision.named(experts), dense=dense, dispatch=dispatch)
