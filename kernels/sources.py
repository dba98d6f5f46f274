"""Measurement sources for moesim: this project's Triton kernels on a GPU, the same through the interpreter, this CPU.

Found by `moesim.measured.sources.installed_sources` through entry points. None of them imports triton when it is
imported; what cannot run here says why.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from moesim_kernels.scaling import scaled_down

from moesim.candidate import Candidate, Workload
from moesim.costs.experts import ExpertShape, price_experts
from moesim.costs.load import Load
from moesim.costs.primitives import kernels_for
from moesim.errors import MeasurementError
from moesim.measured.sources import CheckRow
from moesim.model import MoELayer
from moesim.simulate import traffic_of
from moesim.topology import Cluster
from moesim.units import US

_SMALL = {"hidden_size": 64, "expert_intermediate_size": 64, "num_experts": 32, "num_tokens": 40}
_TIMEOUT_S = 240


class TritonInterpreter:
    """The winner's gate and experts, scaled down, through Triton's interpreter against torch: are the kernels right?

    Runs in a process of its own, since triton must be imported under ``TRITON_INTERPRET=1``.
    """

    name = "triton_interpreter"

    def unavailable_because(self) -> str | None:
        """Without Triton there is no interpreter."""
        missing = [name for name in ("torch", "triton") if find_spec(name) is None]
        return f"{' and '.join(missing)} not installed (Triton exists for Linux only)" if missing else None

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> CheckRow:
        """Compare gate choices exactly and outputs within bf16 rounding.

        Raises:
            MeasurementError: The interpreting process failed; with its last line.
        """
        small = scaled_down(
            candidate.layer,
            num_experts=_SMALL["num_experts"],
            hidden_size=_SMALL["hidden_size"],
            width=_SMALL["expert_intermediate_size"],
        )
        if small.gate.kind == "product_key" and small.top_k % small.gate.query_heads:
            return CheckRow(
                candidate=candidate.label, source=self.name, quantity="max_abs_error", status="not_measured",
                detail=f"the kernels' heads find equal shares: not {small.top_k} with {small.gate.query_heads} heads",
                seed=workload.seed,
            )
        request = {
            "num_experts": small.num_experts,
            "top_k": small.top_k,
            "gate": str(small.gate),
            "hidden_size": small.hidden_size,
            "expert_intermediate_size": small.expert_intermediate_size,
            "num_tokens": _SMALL["num_tokens"],
            "seed": workload.seed,
        }
        done = subprocess.run(
            [sys.executable, "-m", "moesim_kernels.interpreted"],
            input=json.dumps(request),
            text=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=os.environ | {"TRITON_INTERPRET": "1"},
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise MeasurementError(f"triton_interpreter: {last}")
        found = json.loads(done.stdout)
        note = (
            ""
            if candidate.layer.precision.name == "bf16"
            else f"; in bf16, the candidate's {candidate.layer.precision.name} is not computed"
        )
        note += "; experts of equal width" if candidate.layer.uneven else ""
        return CheckRow(
            candidate=candidate.label,
            source=self.name,
            quantity="max_abs_error",
            status="checked",
            measured=found["max_abs_error"],
            limit=found["limit"],
            seed=workload.seed,
            engine="triton_interpreter",
            detail=f"scaled down to E{small.num_experts} k{small.top_k} H{small.hidden_size} "
            f"I{small.expert_intermediate_size} {small.gate}, {request['num_tokens']} tokens: gate choices "
            f"{'equal' if found['choices_equal'] else 'DIFFER'}, layer output against torch{note}",
        )


class TritonGpu:
    """The busiest device's expert phase through this project's kernels, timed on this machine's GPU."""

    name = "triton_gpu"

    def unavailable_because(self) -> str | None:
        """Without torch, Triton or an active GPU driver there is nothing to time."""
        if missing := [name for name in ("torch", "triton") if find_spec(name) is None]:
            return f"{' and '.join(missing)} not installed"
        from moesim_kernels.runtime import triton_mode

        return None if triton_mode() == "gpu" else "no CUDA or ROCm GPU with an active Triton driver"

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> CheckRow:
        """Time exactly the rows each local expert of the busiest device gets; never another GPU's in its place."""
        import torch
        from moesim_kernels.bench import prepare_expert_phase, time_calls
        from moesim_kernels.runtime import device, limits
        from moesim_kernels.tiles import tile_config

        about: dict[str, Any] = {
            "candidate": candidate.label,
            "source": self.name,
            "quantity": "experts_time_us",
            "seed": workload.seed,
        }
        here = torch.cuda.get_device_name()
        model = cluster.profile.name.split("-")[0]
        if model not in here.lower():
            return CheckRow(status="not_measured", detail=f"this machine's GPU is {here}, not {model}", **about)
        layer = candidate.layer
        if layer.precision.name != "bf16" or not layer.gated or layer.capacity_factor is not None or layer.uneven:
            return CheckRow(status="not_measured", detail="the kernels compute dropless gated bf16 layers of one width",
                            **about)
        _, traffic = traffic_of(candidate, cluster, workload)
        counts_L = traffic.counts_DL[int(traffic.counts_DL.sum(axis=1).argmax())]
        shape = ExpertShape.of(layer, candidate.parallelism.tp)
        local = MoELayer(
            hidden_size=layer.hidden_size, expert_intermediate_size=int(shape.width), num_experts=len(counts_L), top_k=1
        )
        ids = torch.from_numpy(np.repeat(np.arange(len(counts_L), dtype=np.int32), counts_L))[:, None].to(device())
        tile = tile_config(float(counts_L.mean()), 2 * int(shape.width), num_accumulators=2, limits=limits())
        call = prepare_expert_phase(local, ids, seed=workload.seed, swiglu_tile=tile, down_tile=tile)
        timing = time_calls(call, flush_l2=True)
        rows = counts_L.sum(keepdims=True)
        load = Load.of(counts_L[None], rows, tile.block_m)
        cost = price_experts(kernels_for(cluster.profile), replace(shape, top_k=1), load, rows, tile=tile)
        return CheckRow(
            status="checked",
            simulated=float(cost.solo_s_D()[0]) / US,
            measured=timing.median_s / US,
            measured_low=timing.p10_s / US,
            measured_high=timing.p90_s / US,
            in_fit_set=False,
            engine="kernel_model",
            profile_hash=cluster.digest,
            detail=f"{here}: busiest device's {int(rows[0])} rows over {len(counts_L)} experts, top-1, L2 flushed, "
            f"median of {timing.num_calls} calls",
            **about,
        )


def __getattr__(name: str) -> Any:
    # torch is loaded by the CPU source alone, and only when that source is asked for
    if name == "TorchCpu":
        from moesim_kernels.cpu_source import TorchCpu

        return TorchCpu
    raise AttributeError(name)
