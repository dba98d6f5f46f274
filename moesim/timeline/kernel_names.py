"""Name the slices of a timeline as a profiler names the kernels.

A phase is one slice here, and often several kernels there; the name is that of the kernel with the
most time. Phases whose kernel depends on more than library and exchange keep their own name.

The names were read in the sources of the libraries:

- ``fused_moe_kernel``: vllm/model_executor/layers/fused_moe/fused_moe.py and
  sglang/srt/layers/moe/fused_moe_triton.
- ``sm90_fp8_gemm_1d2d_impl``, ``sm100_fp8_gemm_1d1d_impl``, ``sm90_bf16_gemm_impl``: DeepGEMM,
  deep_gemm/include/deep_gemm/impls.
- ``dispatch`` and ``combine`` in the namespaces ``intranode``, ``internode``, ``internode_ll``:
  DeepEP, csrc/kernels.
- ``Marlin`` in ``marlin_moe_wna16``: vLLM, csrc/moe/marlin_moe_wna16.
- ``moeA2ADispatchKernel``, ``moeA2ACombineKernel``: TensorRT-LLM,
  cpp/tensorrt_llm/kernels/communicationKernels/moeAlltoAllKernels.cu.
- ``bmm_...``: the cubins of TensorRT-LLM's generated kernels, as FlashInfer lists them.
- ``cutlass::device_kernel``: the entry of every CUTLASS 3 kernel, cutlass/device_kernel.h.
- ``ncclDevKernel_...``: NCCL, src/device/generate.py.
- ``_swiglu_kernel``: this project, kernels/ops/grouped_swiglu.py.
"""

from moesim.costs.libraries import AND
from moesim.hardware import Cluster

_FUSED, _CUTLASS = "fused_moe_kernel", "cutlass::device_kernel<GemmGrouped>"
_TRTLLM_GEN = "bmm_<formats>_Fp32_dynBatch"
#: library -> kernel of the experts
_EXPERTS = {
    "sglang-triton": _FUSED,
    "vllm-triton": _FUSED,
    "moesim-triton": "_swiglu_kernel",
    "marlin": "marlin_moe_wna16::Marlin",
    "flashinfer-cutlass": _CUTLASS,
    "trtllm-cutlass": _CUTLASS,
    "trtllm-cutlass-nongated": _CUTLASS,
    "trtllm-min-latency": _CUTLASS,
    "wideep-cutlass": _CUTLASS,
    "flashinfer-trtllm-sglang": _TRTLLM_GEN,
    "flashinfer-trtllm-vllm": _TRTLLM_GEN,
    "trtllm-gen": _TRTLLM_GEN,
}
#: libraries whose kernel depends on the format and the generation of the GPU
_DEEPGEMM = ("deepep-deepgemm-contiguous", "deepep-deepgemm-masked", "trtllm-deepgemm")
_BLACKWELL = 10
_SEND_RECV = "ncclDevKernel_SendRecv"
#: exchange -> kernels of dispatch and of combine
_EXCHANGES = {
    "nccl": (_SEND_RECV, _SEND_RECV),
    "hierarchical": (_SEND_RECV, _SEND_RECV),
    "all_gather": (
        "ncclDevKernel_AllGather_RING_LL",
        "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL",
    ),
    "deepep_ll": ("deep_ep::internode_ll::dispatch", "deep_ep::internode_ll::combine"),
    "nvl72": ("moeA2ADispatchKernel", "moeA2ACombineKernel"),
}
_COLLECTIVES = {
    "all_reduce": "ncclDevKernel_AllReduce_Sum_bf16_RING_LL",
    "all_gather": "ncclDevKernel_AllGather_RING_LL",
    "reduce_scatter": "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL",
}


def kernel_names(cluster: Cluster, library: str, exchange: str | None, fmt: str) -> dict[str, str]:
    """Return phase -> name of its kernel, for phases whose kernel is known.

    Args:
        cluster: The devices.
        library: Name of the library that runs the experts; empty for none.
        exchange: Name of the exchange of tokens; None on one device.
        fmt: Format of the experts' products.
    """
    names = dict(_COLLECTIVES)
    if library:
        first = library.split()[0].split(AND)[0]
        names["experts"] = (
            _deepgemm(cluster, fmt) if first in _DEEPGEMM else _EXPERTS.get(first, "")
        )
    if exchange == "deepep_normal":
        inside = cluster.num_devices <= cluster.devices_per_domain
        space = "deep_ep::intranode" if inside else "deep_ep::internode"
        names |= {"dispatch": f"{space}::dispatch", "combine": f"{space}::combine"}
    elif exchange in _EXCHANGES:
        names["dispatch"], names["combine"] = _EXCHANGES[exchange]
    return {phase: name for phase, name in names.items() if name}


def _deepgemm(cluster: Cluster, fmt: str) -> str:
    generation = int(cluster.profile.compute_capability or 0)
    if not fmt.startswith("float8"):
        return f"sm{100 if generation >= _BLACKWELL else 90}_bf16_gemm_impl"
    return "sm100_fp8_gemm_1d1d_impl" if generation >= _BLACKWELL else "sm90_fp8_gemm_1d2d_impl"
