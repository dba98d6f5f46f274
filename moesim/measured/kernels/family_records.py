"""Say which measured rows are of which library, and what their formats are.

Rows are those of aiconfigurator-core 0.12 (extra ``silicon``): the mean latency of an expert phase
on one GPU, by the framework that called the kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moesim.errors import UnknownNameError

#: library of the frameworks' own Triton kernels, which have calibrations by framework
TRITON = "triton"
#: columns that make a layer's shape
SHAPE = ("hidden_size", "inter_size", "topk", "num_experts")
#: rows that DeepGEMM's contiguous layout pads each expert to
_DEEPGEMM_ROWS = 128


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
        table: Name of the file that its rows are in, without ``.parquet``.
        op_name: Start of the ``op_name`` of its rows; empty if the kernel alone tells.
        columns: Columns beyond `moesim.measured.kernels.table.COLUMNS` that its rows may have.
        all_enter: Whether all tokens enter the timed rank, with or without a choice there.
        uniform_block: Rows that an expert gets at a time under load ``uniform``, in turn.
        first_take_rest: Whether, with fewer choices than experts, the first experts get those that
            rounding a draw leaves over; otherwise the least loaded do.
        rules: Values to choose a format's rules from, where a library is known to follow one; see
            `moesim.costs.devices.fused_model.RULES`.
        also_serves: Format -> major compute capabilities that its parameters also serve, though no
            row of them is fitted.
        left_out: Columns of what is left out of a fit together to score it.
        fit_names: Names of its groups in ``hw_profiles/silicon/fit_families.csv``, and the
            framework of each.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    frameworks: tuple[str, ...]
    without: tuple[str, ...] = ()
    clamps: tuple[str, ...] = ()
    table: str = "moe_perf"
    op_name: str = ""
    columns: tuple[str, ...] = ()
    all_enter: bool = False
    uniform_block: int = 1
    first_take_rest: bool = False
    rules: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    also_serves: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = SHAPE
    fit_names: Mapping[str, str]

    def has(self, dataset: str, kernel_source: str, op_name: str = "") -> bool:
        """Return whether rows of this dataset, kernel and operation are the family's."""
        return (
            dataset.partition("/")[0] in self.frameworks
            and op_name.startswith(self.op_name)
            and any(part in kernel_source for part in self.sources)
            and not any(part in kernel_source for part in self.without)
        )

    def group_of(self, dataset: str) -> str:
        """Return the name that ``fit_families.csv`` gives the family's rows of a dataset."""
        framework = dataset.partition("/")[0]
        return next((name for name, of in self.fit_names.items() if of == framework), self.name)


FAMILIES = {
    family.name: family
    for family in (
        KernelFamily(
            name="trtllm-deepgemm",
            title="TensorRT-LLM's DeepGEMM grouped GEMMs",
            sources=("deepgemm",),
            frameworks=("trtllm",),
            fit_names={"trtllm_deepgemm": "trtllm"},
        ),
        KernelFamily(
            name="trtllm-cutlass",
            title="TensorRT-LLM's CUTLASS fused MoE",
            sources=("moe_torch_flow_cutlass",),
            frameworks=("trtllm",),
            rules={"by_expected": (0, 1)},
            # plain products carry over from Hopper: 13 and 14 MAPE on 800 rows of a B200 each
            also_serves={"bfloat16": (10,), "fp8": (10,)},
            fit_names={"trtllm_cutlass": "trtllm"},
        ),
        KernelFamily(
            name="trtllm-cutlass-nongated",
            title="TensorRT-LLM's CUTLASS fused MoE without a gate projection",
            sources=("moe_torch_flow_nongated",),
            frameworks=("trtllm",),
            fit_names={"trtllm_cutlass_nongated": "trtllm"},
        ),
        KernelFamily(
            name="trtllm-min-latency",
            title="TensorRT-LLM's fused MoE for few tokens",
            sources=("moe_torch_flow_min_latency",),
            frameworks=("trtllm",),
            fit_names={"trtllm_min_latency": "trtllm"},
        ),
        KernelFamily(
            name="trtllm-gen",
            title="TensorRT-LLM's generated MoE kernels",
            sources=("moe_torch_flow",),
            without=("cutlass", "nongated", "min_latency", "triton"),
            frameworks=("trtllm",),
            fit_names={"trtllm_gen": "trtllm"},
        ),
        KernelFamily(
            name="flashinfer-trtllm-sglang",
            title="FlashInfer's TensorRT-LLM MoE as SGLang calls it",
            sources=("flashinfer_trtllm",),
            frameworks=("sglang",),
            fit_names={"sglang_trtllm": "sglang"},
        ),
        KernelFamily(
            name="flashinfer-trtllm-vllm",
            title="FlashInfer's TensorRT-LLM MoE as vLLM calls it",
            sources=("flashinfer_trtllm",),
            frameworks=("vllm",),
            fit_names={"vllm_trtllm": "vllm"},
        ),
        KernelFamily(
            name="flashinfer-cutlass",
            title="FlashInfer's CUTLASS fused MoE",
            sources=("flashinfer_cutlass",),
            frameworks=("sglang", "vllm"),
            fit_names={"sglang_cutlass": "sglang", "vllm_cutlass": "vllm"},
        ),
        KernelFamily(
            name="marlin",
            title="Marlin's fused MoE with 4-bit weights",
            sources=("marlin",),
            frameworks=("sglang", "vllm"),
            clamps=("sglang/0.5.10",),
            fit_names={"sglang_marlin": "sglang", "vllm_marlin": "vllm"},
        ),
        KernelFamily(
            name="deepep-deepgemm-contiguous",
            title="SGLang's DeepEP experts for prefill: DeepGEMM's contiguous grouped GEMMs",
            sources=("deepepmoe",),
            frameworks=("sglang",),
            table="wideep_context_moe_perf",
            op_name="moe_context",
            columns=("op_name",),
            all_enter=True,
            uniform_block=_DEEPGEMM_ROWS,
            rules={
                "least_rows": (_DEEPGEMM_ROWS,),
                "most_rows": (_DEEPGEMM_ROWS,),
                "exposed": (0.0, 0.5, 1.0),
            },
            left_out=("moe_ep_size",),
            fit_names={"deepep_context": "sglang"},
        ),
        KernelFamily(
            name="deepep-deepgemm-masked",
            title="SGLang's DeepEP experts for decode: DeepGEMM's masked grouped GEMMs",
            sources=("deepepmoe",),
            frameworks=("sglang",),
            table="wideep_generation_moe_perf",
            op_name="moe_generation",
            columns=("op_name",),
            left_out=("moe_ep_size",),
            fit_names={"deepep_generation": "sglang"},
        ),
        KernelFamily(
            name="wideep-cutlass",
            title="TensorRT-LLM's CUTLASS experts for wide expert parallelism",
            sources=("wideep_compute_cutlass",),
            frameworks=("trtllm",),
            table="wideep_moe_perf",
            columns=("num_slots", "rank0_num_tokens"),
            first_take_rest=True,
            rules={"by_expected": (0, 1)},
            fit_names={"wideep_cutlass": "trtllm"},
        ),
    )
}


def family_of(dataset: str, kernel_source: str, op_name: str = "") -> KernelFamily | None:
    """Return the family of rows of this dataset, kernel and operation; None if there is none."""
    found = (one for one in FAMILIES.values() if one.has(dataset, kernel_source, op_name))
    return next(found, None)


def family_named(name: str) -> KernelFamily:
    """Return the family of a name in `FAMILIES`, or of a group's name in
    ``hw_profiles/silicon/fit_families.csv``, with that group's framework alone.

    Raises:
        UnknownNameError: There is no such family.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    of_groups = {
        group: replace(family, frameworks=(framework,))
        for family in FAMILIES.values()
        for group, framework in family.fit_names.items()
    }
    if name not in of_groups:
        raise UnknownNameError("family", name, [*FAMILIES, *of_groups])
    return of_groups[name]
