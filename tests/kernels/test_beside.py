"""Peers beside moesim's kernels: the same inputs and result, and one line for who is missing."""

import math
import sys
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from moesim_kernels.ops.layer import expert_phase
from moesim_kernels.sources.beside import OURS, operands_of, time_beside
from moesim_kernels.timing.peers import PEERS, Operands, Peer, agrees

from moesim.design.candidate import Candidate, Workload
from moesim.model import MoELayer, Precision

LAYER = MoELayer(hidden_size=64, expert_intermediate_size=32, num_experts=8, top_k=2)
DESIGN = Candidate(layer=LAYER)
WORK = Workload(num_tokens_per_device=24, routing="zipf:0.8", seed=3)
(GROUPED,) = (peer for peer in PEERS if peer.name == "torch._grouped_mm")
ABSENT = Peer(name="no_such_library", prepare=GROUPED.prepare, package="no-such-library")


def timer(call, flush):
    assert flush, "as for one of many layers"
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * np.array([1.0, 2.0, 3.0])


def beside(device, peers=PEERS, designs=(DESIGN,), until=math.inf):
    told = []
    rows, notes = time_beside(
        designs, WORK, timer, device, until=until, tell=told.append, peers=peers
    )
    return rows, notes, told


def test_torchs_grouped_products_compute_the_same(device):
    """Torch is always here, so that one peer runs in every test."""
    operands, weights = operands_of(DESIGN, WORK, device)
    ours = expert_phase(operands.x_TH, operands.ids_TK, operands.weights_TK, weights)
    theirs = GROUPED.prepare(operands)()
    assert agrees(theirs, ours)
    assert not agrees(theirs + 0.2 * ours.abs().max(), ours)
    assert theirs.shape == ours.shape


def test_each_design_has_a_row_of_ours_and_of_every_peer_here(device):
    other = Candidate(layer=replace(LAYER, top_k=4))
    rows, notes, told = beside(device, (ABSENT, GROUPED), designs=(DESIGN, other))
    assert [row["library"] for row in rows] == [OURS, GROUPED.name] * 2
    for row in rows:
        assert 0 < row["low_us"] < row["measured_us"] < row["high_us"]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert theirs["ratio"] == pytest.approx(ours["measured_us"] / theirs["measured_us"])
        assert theirs["version"] == torch.__version__
    assert notes == ["no_such_library: not installed"]
    assert told[1].startswith("beside torch._grouped_mm: 2 of 2: E8 k4")


def test_a_peer_that_fails_or_errs_says_so_and_the_others_go_on(device):
    def broken(operands):
        raise TypeError("fused_experts() got 5 arguments\nand more")

    def wrong(operands):
        return lambda: 2.0 * GROUPED.prepare(operands)()

    peers = (
        replace(GROUPED, prepare=broken, package="numpy"),
        replace(GROUPED, prepare=wrong),
        replace(GROUPED, prepare=wrong, exact=False),
    )
    rows, notes, _ = beside(device, peers, designs=(DESIGN, DESIGN))
    assert notes == [
        f"torch._grouped_mm {np.__version__}: TypeError: fused_experts() got 5 arguments",
        f"torch._grouped_mm {torch.__version__}: computes something else",
    ]
    assert [row["library"] for row in rows] == [OURS, "torch._grouped_mm"] * 2


def test_nobody_here_times_nothing(device):
    rows, notes, told = beside(device, (ABSENT,))
    assert (rows, notes, told) == ([], ["no_such_library: not installed"], [])
    assert ABSENT.version == "unknown"


def test_no_design_is_begun_after_its_time(device):
    rows, _, _ = beside(device, until=time.monotonic() - 1.0)
    assert rows == []


def test_other_formats_are_not_compared(device):
    eight = Candidate(
        layer=replace(
            LAYER,
            hidden_size=128,
            expert_intermediate_size=128,
            precision=Precision.named("fp8"),
        )
    )
    rows, notes, _ = beside(device, (GROUPED,), designs=(eight, DESIGN))
    assert len({row["candidate"] for row in rows}) == 1
    assert any("peers are timed in bfloat16" in note for note in notes)


def installed(monkeypatch, modules):
    """Put modules, and the packages they lie in, where imports find them."""
    for name, members in modules.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
        for member, value in members.items():
            monkeypatch.setattr(sys.modules[name], member, value, raising=False)


def reference(x_TH, w_gate_up, w_down, weights_TK, ids_TK):
    operands = Operands(
        x_TH=x_TH, ids_TK=ids_TK, weights_TK=weights_TK, w_gate_up=w_gate_up, w_down=w_down
    )
    return GROUPED.prepare(operands)()


def test_vllm_is_called_as_its_0_26_wants(device, monkeypatch):
    def fused_experts(
        hidden_states, w1, w2, topk_weights, topk_ids, activation="silu", quant_config=None
    ):
        assert topk_weights.dtype == torch.float32
        return reference(hidden_states, w1, w2, topk_weights, topk_ids)

    installed(
        monkeypatch,
        {"vllm.model_executor.layers.fused_moe": {"fused_experts": fused_experts}},
    )
    operands, _ = operands_of(DESIGN, WORK, device)
    (peer,) = (peer for peer in PEERS if peer.name == "vllm")
    assert agrees(peer.prepare(operands)(), GROUPED.prepare(operands)())


def test_sglang_is_called_as_its_0_5_20_wants(device, monkeypatch):
    class Choices(NamedTuple):
        topk_weights: torch.Tensor
        topk_ids: torch.Tensor
        router_logits: torch.Tensor | None

    class Config(SimpleNamespace):
        pass

    def fused_experts(hidden_states, w1, w2, topk_output, moe_runner_config):
        weights_TK, ids_TK, _ = topk_output
        assert not moe_runner_config.inplace, "the tokens are needed again"
        assert moe_runner_config.num_experts == moe_runner_config.num_local_experts == len(w1)
        return reference(hidden_states, w1, w2, weights_TK, ids_TK)

    top = "sglang.srt.layers.moe"
    installed(
        monkeypatch,
        {
            f"{top}.moe_runner": {"MoeRunnerConfig": Config},
            f"{top}.moe_runner.triton_utils": {"fused_experts": fused_experts},
            f"{top}.topk": {"StandardTopKOutput": Choices},
        },
    )
    operands, _ = operands_of(DESIGN, WORK, device)
    (peer,) = (peer for peer in PEERS if peer.name == "sglang")
    assert agrees(peer.prepare(operands)(), GROUPED.prepare(operands)())


def test_triton_kernels_gets_its_layout_and_its_logits(device, monkeypatch):
    """Its gate and up columns alternate, and it sorts by logits whose softmax are the weights."""
    seen = {}

    def routing(logits, top_k):
        chosen = logits.softmax(dim=1).topk(top_k, dim=1)
        data = SimpleNamespace(gate_scal=chosen.values, ids=chosen.indices)
        seen["routing"] = chosen
        return data, "gather", "scatter"

    def matmul_ogs(x, w, bias, data, **options):
        assert bias is None
        seen[options.get("gather_indx") or options["scatter_indx"]] = (x, w, options)
        return x

    specs = SimpleNamespace(
        FusedActivation=lambda *parts: parts, FnSpecs=lambda *parts: parts, matmul_ogs=matmul_ogs
    )
    installed(
        monkeypatch,
        {
            "triton_kernels": {"__spec__": SimpleNamespace()},
            "triton_kernels.matmul_ogs": vars(specs),
            "triton_kernels.routing": {"routing": routing},
            "triton_kernels.swiglu": {"swiglu_fn": "swiglu"},
        },
    )
    operands, _ = operands_of(DESIGN, WORK, device)
    (peer,) = (peer for peer in PEERS if peer.name == "triton_kernels")
    peer.prepare(operands)()
    chosen = seen["routing"]
    assert torch.equal(chosen.indices.sort().values, operands.ids_TK.long().sort().values)
    torch.testing.assert_close(chosen.values, operands.weights_TK)
    _, first, options = seen["gather"]
    gate, up = operands.w_gate_up.chunk(2, dim=1)
    assert torch.equal(first[:, :, ::2], gate.mT)
    assert torch.equal(first[:, :, 1::2], up.mT)
    assert options["fused_activation"] == (("swiglu", "swiglu", ("alpha", "limit")), (1.0, None), 2)
    _, second, options = seen["scatter"]
    assert torch.equal(second, operands.w_down.mT)
    assert options["gammas"] is chosen.values
