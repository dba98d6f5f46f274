"""Say which measured rows are of which library, and what their formats are.

Rows are those of aiconfigurator-core 0.12 (extra ``silicon``): the mean latency of an expert phase
on one GPU, by the framework that called the kernels.
"""

from dataclasses import dataclass

from moesim.model import Precision

_FP8 = "float8_e4m3"
#: format of a row -> recipe; nvfp4 and w4a8 multiply tokens in the narrow format, too
FORMATS = {
    "bfloat16": Precision.named("bf16"),
    "fp8": Precision.named("fp8_tensor"),
    "fp8_block": Precision.named("fp8"),
    "nvfp4": Precision(weights="nvfp4", activations="nvfp4"),
    "int4_wo": Precision.named("int4"),
    "w4a16_mxfp4": Precision.named("mxfp4"),
    "w4a8_mxfp4_mxfp8": Precision(weights="mxfp4", activations=_FP8, dispatch=_FP8, scale_block=32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFamily:
    """A library's kernels, as measured rows name them.

    Attributes:
        name: Name of the library.
        title: What it is, in words.
        sources: Parts of the ``kernel_source`` of its rows; one of them occurs.
        without: Parts that do not occur.
        frameworks: Frameworks whose rows are its.
        clamps: Datasets in which choices of other ranks are computed by a local expert.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    frameworks: tuple[str, ...]
    without: tuple[str, ...] = ()
    clamps: tuple[str, ...] = ()

    def has(self, dataset: str, kernel_source: str) -> bool:
        """Return whether rows of this dataset and kernel are the family's."""
        return (
            dataset.partition("/")[0] in self.frameworks
            and any(part in kernel_source for part in self.sources)
            and not any(part in kernel_source for part in self.without)
        )


FAMILIES = {
    family.name: family
    for family in (
        KernelFamily(
            name="trtllm-deepgemm",
            title="TensorRT-LLM's DeepGEMM grouped GEMMs",
            sources=("deepgemm",),
            frameworks=("trtllm",),
        ),
        KernelFamily(
            name="trtllm-cutlass",
            title="TensorRT-LLM's CUTLASS fused MoE",
            sources=("moe_torch_flow_cutlass",),
            frameworks=("trtllm",),
        ),
        KernelFamily(
            name="trtllm-cutlass-nongated",
            title="TensorRT-LLM's CUTLASS fused MoE without a gate projection",
            sources=("moe_torch_flow_nongated",),
            frameworks=("trtllm",),
        ),
        KernelFamily(
            name="trtllm-min-latency",
            title="TensorRT-LLM's fused MoE for few tokens",
            sources=("moe_torch_flow_min_latency",),
            frameworks=("trtllm",),
        ),
        KernelFamily(
            name="trtllm-gen",
            title="TensorRT-LLM's generated MoE kernels",
            sources=("moe_torch_flow",),
            without=("cutlass", "nongated", "min_latency"),
            frameworks=("trtllm",),
        ),
        KernelFamily(
            name="flashinfer-trtllm-sglang",
            title="FlashInfer's TensorRT-LLM MoE as SGLang calls it",
            sources=("flashinfer_trtllm",),
            frameworks=("sglang",),
        ),
        KernelFamily(
            name="flashinfer-trtllm-vllm",
            title="FlashInfer's TensorRT-LLM MoE as vLLM calls it",
            sources=("flashinfer_trtllm",),
            frameworks=("vllm",),
        ),
        KernelFamily(
            name="flashinfer-cutlass",
            title="FlashInfer's CUTLASS fused MoE",
            sources=("flashinfer_cutlass",),
            frameworks=("sglang", "vllm"),
        ),
        KernelFamily(
            name="marlin",
            title="Marlin's fused MoE with 4-bit weights",
            sources=("marlin",),
            frameworks=("sglang", "vllm"),
            clamps=("sglang/0.5.10",),
        ),
    )
}


def family_of(dataset: str, kernel_source: str) -> KernelFamily | None:
    """Return the family of rows of this dataset and kernel; None if there is none."""
    return next((one for one in FAMILIES.values() if one.has(dataset, kernel_source)), None)
