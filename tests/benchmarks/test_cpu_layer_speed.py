"""What the torch path adds to the grouped GEMMs it is made of: figures of
`pytest tests/benchmarks`, nothing asserted.

``extra_info`` holds the best of 15 interleaved runs by the thread's own time: the two plain
`grouped_mm` calls, and the expert phase (those calls and SwiGLU) and the whole layer (gate,
permute, experts, combine) as multiples of them.
"""

import time

import numpy as np
import pytest
import torch
from moesim_kernels.cpu.layer import CpuLayer, measuring
from torch.nn.functional import grouped_mm

from moesim.model import Gate, MoELayer
from moesim.routing import RoutingSpec, route

#: tokens, experts, top-k, hidden size, width, gate
LAYERS = (
    (256, 8, 2, 1024, 1024, "flat"),
    (1024, 64, 4, 512, 256, "flat"),
    (512, 32, 4, 768, 384, "two_level:4:2"),
    (2048, 8, 2, 1024, 512, "flat"),
    (64, 64, 8, 1024, 512, "flat"),
    (256, 1024, 8, 256, 32, "flat"),
)


@pytest.mark.parametrize("sizes", LAYERS, ids=lambda sizes: "-".join(map(str, sizes)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_torch_path_over_its_grouped_gemms(benchmark, dtype, sizes):
    tokens, experts, top_k, hidden, width, gate = sizes
    layer = MoELayer(
        hidden_size=hidden,
        expert_intermediate_size=width,
        num_experts=experts,
        top_k=top_k,
        gate=Gate.parse(gate),
    )
    ids_TK = route(
        RoutingSpec.parse("zipf:0.8"),
        layer.gate,
        num_experts=experts,
        top_k=top_k,
        num_tokens_S=np.array([tokens]),
        seed=0,
    ).expert_ids_TK
    with measuring():
        case = CpuLayer(layer, ids_TK, dtype)
        _, _, ends_E, rows_PH = case.permute()
        act_PI = torch.randn(len(rows_PH), width).to(dtype)

        def plain():
            grouped_mm(rows_PH, case.w_up_ENH.transpose(1, 2), offs=ends_E)
            grouped_mm(act_PI, case.w_down_EHI.transpose(1, 2), offs=ends_E)

        calls = {
            "plain": plain,
            "experts": lambda: case.experts(rows_PH, ends_E),
            "layer": case.forward,
        }
        best = dict.fromkeys(calls, np.inf)
        for _ in range(15):
            for name, call in calls.items():
                started = time.thread_time()
                call()
                best[name] = min(best[name], time.thread_time() - started)
        benchmark.extra_info |= {"plain_ms": round(1e3 * best["plain"], 3)} | {
            f"{name}_over_plain": round(best[name] / best["plain"], 3)
            for name in ("experts", "layer")
        }
        benchmark.pedantic(case.forward, rounds=5)
