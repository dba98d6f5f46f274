"""Check a simulation against this project's Triton kernels on this machine's GPU, phase by phase.

The busiest device of a candidate is run unchanged: exactly the rows each of its local experts gets,
the gate of its tokens, and, if it is the only device, the whole layer. Each is captured in a CUDA
graph (timing a single kernel would time its launch) and replayed with L2 overwritten before each
replay, as for one of many layers; the experts are replayed once more with L2 left warm. If there
are as many GPUs here as the candidate has devices, dispatch and combine are timed between them over
NCCL, byte by byte. Values are medians, with P10 and P90. Another GPU never stands for the
candidate's.

What is simulated is what runs: these kernels, with the tiles they choose, whatever library the
cluster is priced with otherwise. The calls to time are prepared separately from the timer, so that
everything but the clock runs without a GPU.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.costs.devices.primitives import kernels_for
from moesim.costs.libraries import running
from moesim.costs.load import Load
from moesim.costs.phases.experts import ExpertShape, price_experts
from moesim.costs.phases.gate import price_gate
from moesim.design.candidate import Candidate, Workload
from moesim.errors import MeasurementError
from moesim.hardware import Cluster
from moesim.lowering.traffic import Traffic
from moesim.measured.environment import lacking
from moesim.measured.sources import CheckRow
from moesim.model import MoELayer
from moesim.model.precision import BYTES_PER_ELEMENT
from moesim.simulation.prepare import prepare
from moesim.simulation.run import simulate_prepared
from moesim.simulation.trust import ASSUMED_INTERVAL
from moesim.units import US

if TYPE_CHECKING:
    import torch

Array = np.ndarray
#: (call, whether L2 is overwritten first) -> seconds of repeats, ndarray of shape (repeats,)
Timer = Callable[[Callable[[], object], bool], Array]
_TIMEOUT_S = 120.0
# Seconds of the GPU for each call.
_BUDGET_S = 0.2


def graph_seconds(call: Callable[[], object], flush: bool) -> Array:
    """Return the seconds that a call adds to a CUDA graph; this is the timer on a GPU.

    Args:
        call: Function that launches work, without waiting for the device.
        flush: Whether L2 is overwritten before each call.
    """
    from moesim_kernels.profile.gpu_profile import Gpu
    from moesim_kernels.timing.graphs import CudaClock, per_call_seconds

    return per_call_seconds(CudaClock(Gpu.here().clock_hz), call, cold=flush, budget_s=_BUDGET_S)


def is_of(gpu: str, cluster: Cluster) -> bool:
    """Return whether a cluster's device is this GPU: its profile was measured on a GPU of that
    name, or is named after it.
    """
    profile = cluster.profile
    # A measured profile names its machine; a shipped one is matched by its first word.
    if profile.machine:
        return profile.machine == gpu
    return profile.name.split("-")[0] in gpu.lower().replace(" ", "-").split("-")


class Triton:
    """Time the busiest device's phases through this project's kernels, on this machine's GPU."""

    name = "triton"

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: it needs torch, Triton, and an active GPU driver."""
        if missing := lacking("torch", "triton"):
            return missing
        from moesim_kernels.ops.runtime import triton_mode

        return (
            None if triton_mode() == "gpu" else "no CUDA or ROCm GPU with an active Triton driver"
        )

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> list[CheckRow]:
        """Time the phases this GPU, or these GPUs, can run.

        Raises:
            MeasurementError: The candidate was simulated on another GPU, or the kernels refuse its
                sizes.
            ConfigError: The kernels do not compute this layer.
        """
        import torch
        from moesim_kernels.ops.runtime import device

        here = torch.cuda.get_device_name()
        if not is_of(here, cluster):
            raise MeasurementError(f"this machine's GPU is {here}, not {cluster.profile.name}")
        try:
            rows = timed_rows(candidate, cluster, workload, graph_seconds, device(), here)
        except ValueError as error:  # the kernels' own refusals
            raise MeasurementError(str(error)) from None
        if 1 < cluster.num_devices <= torch.cuda.device_count():
            rows += exchange_rows(candidate, cluster, workload, here)
        return rows


def timed_rows(
    candidate: Candidate,
    cluster: Cluster,
    workload: Workload,
    timer: Timer,
    device: "torch.device",
    here: str,
) -> list[CheckRow]:
    """Return rows of what one GPU runs: the layer of a single device, gate, and experts cold and
    warm.

    Args:
        candidate: Design whose busiest device runs.
        cluster: Cluster on which it was simulated.
        workload: Number of tokens and their routing.
        timer: Function that times a call.
        device: Device that holds the tensors.
        here: Name of the GPU.

    Raises:
        ConfigError: The kernels do not compute this layer.
    """
    import torch
    from moesim_kernels.ops.layer import gate_tokens, moe_layer
    from moesim_kernels.ops.weights import LayerWeights, check_layer

    layer = candidate.layer
    check_layer(layer)
    cluster = running(cluster)
    prepared = prepare(candidate, cluster, workload)
    result, traffic = simulate_prepared(prepared, must_fit=False), prepared.traffic
    # The device with the most rows sets the time of the expert phase.
    busiest = int(traffic.counts_DL.sum(axis=1).argmax())
    tokens = int(np.asarray(traffic.num_tokens_S)[busiest])
    experts = result.grade_of("experts")
    low, high = experts.low, experts.high
    level = result.calibration
    about: dict[str, Any] = {
        "candidate": candidate.label,
        "source": Triton.name,
        "status": "checked",
        "in_fit_set": False,
        "seed": workload.seed,
        "profile_hash": cluster.digest,
    }

    def row(
        phase: str,
        simulated_s: float,
        factors: tuple[float, float],
        call: Callable[[], object],
        detail: str,
        cold: bool = True,
    ) -> CheckRow:
        p10, median, p90 = np.percentile(timer(call, cold), (10, 50, 90)) / US
        simulated = simulated_s / US
        return CheckRow(
            quantity=f"{phase}_time_us",
            simulated=simulated,
            simulated_low=simulated * factors[0],
            simulated_high=simulated * factors[1],
            measured=float(median),
            measured_low=float(p10),
            measured_high=float(p90),
            calibration=level if phase.startswith(("experts", "layer")) else "none",
            engine="flow" if phase == "layer" else "kernel_model",
            detail=(
                f"{here}: {detail}, in a graph, L2 {'overwritten' if cold else 'left as it is'}, "
                "median"
            ),
            **about,
        )

    rows = []
    generator = torch.Generator(device).manual_seed(workload.seed)
    # Only the keys are needed: experts of one neuron keep the memory free.
    keys_only = LayerWeights.random(
        replace(layer, num_shared_experts=0, **_ONE_NEURON), workload.seed, torch.bfloat16, device
    )
    # Tokens of 8-bit layers are bfloat16 in memory.
    dtype = (
        getattr(torch, layer.precision.activations)
        if layer.precision.activations in _WIDE
        else torch.bfloat16
    )
    x_TH = torch.empty(tokens, layer.hidden_size, dtype=dtype, device=device).normal_(
        generator=generator
    )
    if cluster.num_devices == 1:
        weights = LayerWeights.random(layer, workload.seed, None, device)
        shares = (
            result.layer_time_low_s / result.layer_time_s,
            result.layer_time_high_s / result.layer_time_s,
        )
        rows.append(
            row(
                "layer",
                result.layer_time_s,
                shares,
                lambda: moe_layer(x_TH, weights, layer, checked=False),
                f"the layer, {tokens} tokens, random keys choose the experts",
            )
        )
    # One call, replayed with two states of L2.
    experts, prices = expert_phase_of(candidate, cluster, traffic, busiest, workload.seed, device)
    count = (
        f"busiest device's {int(traffic.counts_DL[busiest].sum())} rows over "
        f"{traffic.counts_DL.shape[1]} experts"
    )
    rows.append(row("experts", prices[False], (low, high), experts, f"{count}, top-1"))
    rows.append(
        row("experts_warm", prices[True], (low, high), experts, f"{count}, top-1", cold=False)
    )
    gate_s = float(
        price_gate(kernels_for(cluster.profile), layer, np.array([tokens])).solo_s_D()[0]
    )
    rows.append(
        row(
            "gate",
            gate_s,
            ASSUMED_INTERVAL,
            lambda: gate_tokens(x_TH, layer.gate, keys_only, layer.top_k),
            f"{layer.gate} gate of {tokens} tokens",
        )
    )
    return rows


#: formats that tokens have in memory; tokens of 8-bit layers are bfloat16
_WIDE = ("float32", "float16", "bfloat16")
#: size of the experts in a layer of which only the gate runs
_ONE_NEURON: dict[str, Any] = {"expert_intermediate_size": 1}


def expert_phase_of(
    candidate: Candidate,
    cluster: Cluster,
    traffic: Traffic,
    busiest: int,
    seed: int,
    device: "torch.device",
) -> tuple[Callable[[], object], dict[bool, float]]:
    """Return the expert phase of the busiest device: the call, and its simulated seconds with L2
    cold (False) and warm (True).

    Raises:
        ConfigError: The kernels do not compute this layer.
    """
    import torch
    from moesim_kernels.ops.runtime import device_name, limits
    from moesim_kernels.tiles.choice import Shape, choose_tiles
    from moesim_kernels.timing.bench import prepare_expert_phase

    counts_L, layer = traffic.counts_DL[busiest], candidate.layer
    shape = ExpertShape.of(layer, candidate.parallelism.tp)
    # A rank's rows are pairs, so its experts run as a layer with one expert per row.
    local = MoELayer(
        hidden_size=layer.hidden_size,
        expert_intermediate_size=int(shape.width),
        num_experts=len(counts_L),
        top_k=1,
        precision=layer.precision,
    )
    ids = torch.from_numpy(np.repeat(np.arange(len(counts_L), dtype=np.int32), counts_L))[
        :, None
    ].to(device)
    rows, element_bytes = counts_L.sum(keepdims=True), BYTES_PER_ELEMENT[shape.fmt]
    # The price and the kernel must use the same tiles.
    up, down = choose_tiles(
        device_name(),
        Shape(
            num_experts=len(counts_L),
            top_k=1,
            hidden_size=layer.hidden_size,
            expert_intermediate_size=int(shape.width),
            dtype=shape.fmt,
            operand_bits=round(8 * element_bytes),
        ),
        int(rows[0]),
        limits(),
    )
    call = prepare_expert_phase(local, ids, seed=seed, swiglu_tile=up, down_tile=down)
    load = Load.of(counts_L[None], rows, up.block_m)
    # A price counts the columns of the product, gate and up together.
    tiles = (replace(up, block_n=2 * up.block_n), down)
    kernels = kernels_for(cluster.profile)
    prices = {
        warm: float(
            price_experts(
                kernels, replace(shape, top_k=1), load, rows, tiles=tiles, warm=warm
            ).solo_s_D()[0]
        )
        for warm in (False, True)
    }
    return call, prices


def exchange_rows(
    candidate: Candidate, cluster: Cluster, workload: Workload, here: str
) -> list[CheckRow]:
    """Time dispatch and combine between this machine's GPUs over NCCL, and compare them with their
    simulated times.

    Raises:
        MeasurementError: The GPUs' processes failed.
    """
    from moesim_kernels.profile.host_fabric import time_exchanges

    prepared = prepare(candidate, cluster, workload)
    result, traffic = simulate_prepared(prepared, must_fit=False), prepared.traffic
    layer, copies_SD = candidate.layer, np.asarray(traffic.copies_SD)
    # Combine moves the same copies back, hence the transpose.
    matrices = {
        way: (moved * round(layer.precision.token_bytes(way, layer.hidden_size))).astype(np.int64)
        for way, moved in (("dispatch", copies_SD), ("combine", copies_SD.T))
    }
    times = time_exchanges("nccl", list(matrices.values()), timeout_s=_TIMEOUT_S)
    rows = []
    for (way, matrix), seconds in zip(matrices.items(), times, strict=True):
        p10, median, p90 = np.percentile(seconds, (10, 50, 90)) / US
        grade = result.grade_of(way)
        low, high = grade.low, grade.high
        level = result.calibration
        simulated = result.phase_time_s[way] / US
        rows.append(
            CheckRow(
                candidate=candidate.label,
                source=Triton.name,
                quantity=f"{way}_time_us",
                status="checked",
                simulated=simulated,
                simulated_low=simulated * low,
                simulated_high=simulated * high,
                measured=float(median),
                measured_low=float(p10),
                measured_high=float(p90),
                in_fit_set=False,
                calibration=level,
                engine=result.engine,
                seed=workload.seed,
                profile_hash=result.profile_hash,
                detail=(
                    f"{cluster.num_devices} x {here}: uneven all-to-all over NCCL of "
                    f"{int(matrix.sum())} bytes, median"
                ),
            )
        )
    return rows
