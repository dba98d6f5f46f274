"""Run the expert phase through other people's kernels, where they are installed.

Each peer gets the tokens, ids, router weights and expert weights that moesim's own kernels get, and
does what its users call: sort the choices by expert, both grouped GEMMs with SwiGLU between them,
and the weighted sum. Nothing is tuned here, so that a peer runs as it ships: vLLM and SGLang choose
their tiles from the tables of their package.

Their interfaces change; a peer that is installed but cannot be called this way says so in one line,
and a result that is not that of the others is not taken for a time (`agrees`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.functional import silu

Call = Callable[[], torch.Tensor]
#: largest difference of two results, as a share of the larger one's largest element, in bfloat16
_CLOSE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """What an expert phase computes with; all tensors lie on one device and are contiguous.

    Attributes:
        x_TH: Tokens, bfloat16 of shape (T, H).
        ids_TK: Expert ids, int32 of shape (T, K).
        weights_TK: Router weights, float32 of shape (T, K).
        w_gate_up: Gate rows followed by up rows of every expert, bfloat16 of shape (E, 2I, H).
        w_down: Down projections, bfloat16 of shape (E, H, I).
    """

    x_TH: torch.Tensor
    ids_TK: torch.Tensor
    weights_TK: torch.Tensor
    w_gate_up: torch.Tensor
    w_down: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A library whose expert phase can be timed.

    Attributes:
        name: Name of the library.
        prepare: Function that returns the call for these operands; it may raise whatever the
            library raises.
        package: Package that tells the version.
        exact: Whether it computes the same function; otherwise only its time is comparable.
    """

    name: str
    prepare: Callable[[Operands], Call]
    package: str
    exact: bool = True

    @property
    def version(self) -> str:
        """The version of the package, or "unknown" where its files lie in another one's."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return "unknown"


def _vllm(operands: Operands) -> Call:
    fused_experts = import_module("vllm.model_executor.layers.fused_moe").fused_experts
    o = operands
    return lambda: fused_experts(o.x_TH, o.w_gate_up, o.w_down, o.weights_TK, o.ids_TK)


def _sglang(operands: Operands) -> Call:
    moe = import_module("sglang.srt.layers.moe.moe_runner.triton_utils")
    config = import_module("sglang.srt.layers.moe.moe_runner").MoeRunnerConfig(
        num_experts=len(operands.w_down), num_local_experts=len(operands.w_down), inplace=False
    )
    choices = import_module("sglang.srt.layers.moe.topk").StandardTopKOutput(
        topk_weights=operands.weights_TK, topk_ids=operands.ids_TK, router_logits=None
    )
    o = operands
    return lambda: moe.fused_experts(o.x_TH, o.w_gate_up, o.w_down, choices, config)


def _triton_kernels(operands: Operands) -> Call:
    # Under its own name, or in vLLM's package, which then makes it known under that name.
    if find_spec("triton_kernels") is None:
        import_module("vllm.utils.import_utils").import_triton_kernels()
    ogs = import_module("triton_kernels.matmul_ogs")
    routing = import_module("triton_kernels.routing").routing
    swiglu_fn = import_module("triton_kernels.swiglu").swiglu_fn
    o = operands
    experts, top_k = len(o.w_down), o.ids_TK.shape[1]
    # It sorts by logits: the chosen experts get the logarithms of their weights.
    logits = torch.full((len(o.x_TH), experts), -1e4, device=o.x_TH.device)
    logits.scatter_(1, o.ids_TK.long(), o.weights_TK.log())
    # Its gate and up columns alternate, and lie along the last dimension.
    gate, up = o.w_gate_up.chunk(2, dim=1)
    first = torch.stack([gate, up], dim=2).reshape(o.w_gate_up.shape).mT
    second = o.w_down.mT
    activation = ogs.FusedActivation(
        ogs.FnSpecs("swiglu", swiglu_fn, ("alpha", "limit")), (1.0, None), 2
    )

    def call() -> torch.Tensor:
        data, gather, scatter = routing(logits, top_k)
        inner = ogs.matmul_ogs(
            o.x_TH, first, None, data, gather_indx=gather, fused_activation=activation
        )
        return ogs.matmul_ogs(
            inner, second, None, data, scatter_indx=scatter, gammas=data.gate_scal
        )

    return call


def _grouped_mm(operands: Operands) -> Call:
    o = operands
    experts, top_k = len(o.w_down), o.ids_TK.shape[1]
    product: Any = torch._grouped_mm
    ones = torch.ones(o.ids_TK.numel(), dtype=torch.int32, device=o.ids_TK.device)

    def call() -> torch.Tensor:
        pairs = o.ids_TK.flatten().long()
        order = pairs.argsort(stable=True)
        # torch.bincount waits for the device, which a graph does not allow.
        counts = torch.zeros(experts, dtype=torch.int32, device=pairs.device)
        ends = counts.scatter_add_(0, pairs, ones).cumsum(0).int()
        tokens = order // top_k
        inner = product(o.x_TH[tokens], o.w_gate_up.mT, offs=ends)
        gate, up = inner.chunk(2, dim=1)
        out = product(silu(gate) * up, o.w_down.mT, offs=ends)
        out = out * o.weights_TK.flatten()[order, None].to(out.dtype)
        return torch.zeros_like(o.x_TH).index_add_(0, tokens, out)

    return call


PEERS = (
    Peer(name="vllm", prepare=_vllm, package="vllm"),
    Peer(name="sglang", prepare=_sglang, package="sglang"),
    # Its SwiGLU is gate sigmoid(gate) (up + 1), as gpt-oss has it.
    Peer(name="triton_kernels", prepare=_triton_kernels, package="triton_kernels", exact=False),
    Peer(name="torch._grouped_mm", prepare=_grouped_mm, package="torch"),
)


def missing_because(peer: Peer) -> str | None:
    """Return in one line why a peer is not here, or None if it is."""
    if peer.name == "torch._grouped_mm":
        return None if hasattr(torch, "_grouped_mm") else "this torch has no _grouped_mm"
    found = find_spec(peer.name) is not None
    if peer.name == "triton_kernels":
        # A package of that name on PyPI is another one.
        found = any(
            find_spec(top) is not None and find_spec(f"{top}.matmul_ogs") is not None
            for top in ("triton_kernels", "vllm.third_party.triton_kernels")
            if find_spec(top.split(".")[0]) is not None
        )
    return None if found else "not installed"


def agrees(found_TH: torch.Tensor, expected_TH: torch.Tensor) -> bool:
    """Return whether two results of shape (T, H) differ by rounding only."""
    difference = (found_TH.float() - expected_TH.float()).abs().max()
    return bool(difference <= _CLOSE * expected_TH.float().abs().max())
