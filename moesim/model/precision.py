"""Number formats: the bytes of a number and of its scales, and the recipes that users name."""

from dataclasses import dataclass
from typing import Literal

from moesim.errors import require, require_int


@dataclass(frozen=True, slots=True)
class Format:
    """One number format.

    Attributes:
        bytes: Bytes of one number, without scales.
        scale_bytes: Bytes of one scale if the definition of the format fixes its blocks,
            otherwise 0.
        scale_elements: Number of elements that share one scale.
    """

    bytes: float
    scale_bytes: float = 0.0
    scale_elements: int = 1


#: mxfp4: OCP Microscaling Formats 1.0, a one-byte scale for 32 elements. nvfp4: NVIDIA Blackwell, a
#: one-byte scale for 16. int4: weight-only, as stored by GPTQ and AWQ, a two-byte scale for 128.
#: int8 has one scale per column or token, which is under 0.1 % of the bytes and not counted.
#: float8_e4m3 takes its block from `Precision.scale_block`.
FORMATS = {
    "float32": Format(4.0),
    "bfloat16": Format(2.0),
    "float16": Format(2.0),
    "float8_e4m3": Format(1.0),
    "int8": Format(1.0),
    "int4": Format(0.5, 2.0, 128),
    "mxfp4": Format(0.5, 1.0, 32),
    "nvfp4": Format(0.5, 1.0, 16),
}
#: bytes of one number of each format, without scales
BYTES_PER_ELEMENT = {name: fmt.bytes for name, fmt in FORMATS.items()}
_FP8 = "float8_e4m3"
_MX_BLOCK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Number formats of one layer.

    Attributes:
        weights: Format of the expert weights.
        activations: Format of the tokens inside the experts; the grouped GEMMs run at the rate of
            this format. Narrower weights are widened inside the kernel (weight-only quantization).
        dispatch: Format of a token on its way to an expert.
        combine: Format of an expert's output on its way back.
        scale_block: Size of the blocks of float8_e4m3 that share one 4-byte scale: scale_block x
            scale_block weights, or scale_block elements of a token; 0 for one scale per tensor.
            Blocks of 32 are those of MXFP8, whose scales have one byte.

    Raises:
        ConfigError: A format is unknown, the block is below 0, or activations are narrower than the
            weights.
    """

    weights: str = "bfloat16"
    activations: str = "bfloat16"
    dispatch: str = "bfloat16"
    combine: str = "bfloat16"
    scale_block: int = 128

    def __post_init__(self) -> None:
        for name in ("weights", "activations", "dispatch", "combine"):
            require(
                getattr(self, name) in FORMATS,
                f"precision.{name}",
                f"one of {', '.join(FORMATS)}",
                getattr(self, name),
            )
        require_int("precision.scale_block", self.scale_block, 0)
        require(
            BYTES_PER_ELEMENT[self.activations] >= BYTES_PER_ELEMENT[self.weights],
            "precision.activations",
            f"a format at least as wide as the weights' {self.weights}",
            self.activations,
        )

    @classmethod
    def named(cls, name: str) -> "Precision":
        """Return a recipe of `RECIPES`, or formats written as the property `name` writes them.

        Raises:
            ConfigError: The name is neither of these.
        """
        if "/" not in name:
            require(name in RECIPES, "precision", f"one of {', '.join(RECIPES)}", name)
            return RECIPES[name]
        *formats, block = name.split("/")
        require(
            len(formats) == 4 and block.isascii() and block.isdigit(),
            "precision",
            "'WEIGHTS/ACTIVATIONS/DISPATCH/COMBINE/SCALE_BLOCK'",
            name,
        )
        weights, activations, dispatch, combine = formats
        return cls(
            weights=weights,
            activations=activations,
            dispatch=dispatch,
            combine=combine,
            scale_block=int(block),
        )

    @property
    def name(self) -> str:
        """The name of the recipe, or if no recipe matches, the formats and block as `named` reads
        them.
        """
        formats = (
            f"{self.weights}/{self.activations}/{self.dispatch}/{self.combine}/{self.scale_block}"
        )
        return next((name for name, recipe in RECIPES.items() if recipe == self), formats)

    @property
    def block_scaled(self) -> bool:
        """Whether the GEMMs apply a scale to the accumulator after every block of the depth."""
        return self.activations == _FP8 and self.scale_block > 0

    def cut_block(self, width: int, tp: int, engine: str = "") -> str:
        """Return why a serving engine may refuse experts that devices share; "" if none is known
        to.

        A scale belongs to a block of 128 x 128 weights. vLLM and SGLang refuse to load experts of
        which a device gets no whole number of blocks (vllm-project/vllm#25292 and #48173); versions
        that pad them multiply more than is priced.

        Args:
            width: Width of an expert.
            tp: Number of devices that share it.
            engine: The serving engine; "" for any. Nothing is known of ``trtllm``.
        """
        if self.weights != _FP8 or not self.scale_block or tp == 1 or engine == "trtllm":
            return ""
        share = -(-width // tp)
        if share % self.scale_block == 0:
            return ""
        blocks = width // self.scale_block
        fits = [
            n
            for n in range(1, tp)
            if tp % n == 0 and width % self.scale_block == 0 and blocks % n == 0
        ]
        hint = f"; tp {fits[-1]} divides it" if fits else ""
        return (
            f"experts of {width} over tp {tp} are {share} wide, no multiple of the fp8 blocks of "
            f"{self.scale_block}: vLLM and SGLang refuse that, or pad it{hint}"
        )

    @property
    def weight_only(self) -> bool:
        """Whether the kernel widens the weights before it multiplies."""
        return BYTES_PER_ELEMENT[self.weights] < BYTES_PER_ELEMENT[self.activations]

    def token_bytes(
        self, which: Literal["activations", "dispatch", "combine"], num_elements: int
    ) -> float:
        """Return the bytes of one token of ``num_elements`` numbers, including scales if the format
        has them.
        """
        fmt = FORMATS[getattr(self, which)]
        scales = fmt.scale_bytes * -(-num_elements // fmt.scale_elements)
        if getattr(self, which) == _FP8 and self.scale_block:
            scales = self._fp8_scale_bytes * -(-num_elements // self.scale_block)
        return num_elements * fmt.bytes + scales

    @property
    def weight_bytes(self) -> float:
        """The bytes of one weight, including its share of the scales."""
        fmt = FORMATS[self.weights]
        scale = fmt.scale_bytes / fmt.scale_elements
        if self.weights == _FP8 and self.scale_block:
            scale = self._fp8_scale_bytes / self.scale_block**2
        return fmt.bytes + scale

    @property
    def _fp8_scale_bytes(self) -> float:
        """The bytes of the scale of a block: one for the 32 elements of MXFP8 (OCP Microscaling
        Formats 1.0), otherwise a float32.
        """
        return 1.0 if self.scale_block == _MX_BLOCK else 4.0


#: bf16, fp16: throughout. fp8: weights, tokens and dispatch, 128 x 128 blocks (DeepSeek-V3, arXiv
#: 2412.19437); fp8_tensor: one scale per tensor. int8: weights and tokens. int4, mxfp4, nvfp4_a16:
#: weights only, bf16 tokens. mxfp4_a8: mxfp4 weights, mxfp8 tokens (gpt-oss on Blackwell). nvfp4:
#: weights and tokens, as NVIDIA publishes checkpoints for Blackwell.
RECIPES = {
    "bf16": Precision(),
    "fp16": Precision(
        weights="float16", activations="float16", dispatch="float16", combine="float16"
    ),
    "fp8": Precision(weights=_FP8, activations=_FP8, dispatch=_FP8),
    "fp8_tensor": Precision(weights=_FP8, activations=_FP8, dispatch=_FP8, scale_block=0),
    "int8": Precision(weights="int8", activations="int8", dispatch="int8"),
    "int4": Precision(weights="int4"),
    "mxfp4": Precision(weights="mxfp4"),
    "mxfp4_a8": Precision(weights="mxfp4", activations=_FP8, dispatch=_FP8, scale_block=32),
    "nvfp4": Precision(weights="nvfp4", activations="nvfp4", dispatch="nvfp4"),
    "nvfp4_a16": Precision(weights="nvfp4"),
}
