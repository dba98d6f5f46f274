"""Simulate designs with very many experts, and say which resource each of them breaks.

The width of all experts of a published model's layer is split into more and more experts, down to
one neuron each, while a token uses the same width, as far as 1 to 32 experts allow. Experts of a
few neurons are priced as padded tiles of a grouped GEMM; kernels made for them would do better. No
law covers such numbers of experts, so losses are extrapolated.

A resource is broken if memory is too small, the gate takes more than a quarter of the layer's time,
dispatch and combine take more than half of it, or the experts run below a quarter of their
roofline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.design.schedule import Schedule
from moesim.errors import MoesimError
from moesim.hardware import Cluster, load_cluster
from moesim.model import MoELayer, Precision
from moesim.model.gate import Gate
from moesim.model.presets import Preset, load_preset
from moesim.processes import Workers
from moesim.quality import estimate_loss
from moesim.simulation.memory import memory_of
from moesim.simulation.prepare import Prepared, prepare
from moesim.simulation.result import Result
from moesim.simulation.run import exchange_of, simulate_prepared
from moesim.units import GIB, US
from moesim.version import VERSION

Row = dict[str, Any]
#: largest shares of the layer's time, and least share of the roofline, that do not count as broken
GATE_SHARE, EXCHANGE_SHARE, EFFICIENCY = 0.25, 0.5, 0.25
_MOST_CHOSEN, _TRAIN_TOKENS = 32, 36e12


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitPoint:
    """One design with very many experts.

    Attributes:
        preset: Name of the published model.
        num_nodes: Number of nodes of the cluster.
        devices_per_node: Number of H100s of a node.
        where: Name to give the cluster.
        scale: Width of all experts of a layer, relative to the model's.
        num_experts: Number of experts to split it into.
        gate: Kind of gate, with options after a plus sign.
        precision: Name of the recipe of number formats.
        exchange: Name of the exchange.
        num_tokens: Tokens of a device.
        seed: Seed of the routing.
    """

    preset: str
    num_nodes: int
    devices_per_node: int
    where: str
    scale: int
    num_experts: int
    gate: str
    num_tokens: int
    precision: str = "bf16"
    exchange: str = "nccl"
    seed: int = 0


def limit_points(
    where: str,
    cluster: tuple[int, int],
    gates: Sequence[str],
    scales: Sequence[int],
    experts: Sequence[int],
    **common: Any,
) -> list[LimitPoint]:
    """Return every scale, gate and number of experts on one cluster, in this order.

    Args:
        where: Name to give the cluster.
        cluster: Number of its nodes, and of the devices of a node.
        gates: Kinds of gate.
        scales: Widths of all experts together, relative to the model's.
        experts: Numbers of experts.
        **common: Further fields of `LimitPoint`.
    """
    return [
        LimitPoint(
            where=where,
            num_nodes=cluster[0],
            devices_per_node=cluster[1],
            scale=scale,
            num_experts=count,
            gate=gate,
            **common,
        )
        for scale, gate, count in product(scales, gates, experts)
    ]


@cache
def h100_cluster(num_nodes: int, devices_per_node: int) -> Cluster:
    """Return a cluster of H100s: the real ones of 8 and 64 devices, other sizes as what-ifs.

    Args:
        num_nodes: Number of nodes; several nodes are joined by rails.
        devices_per_node: Number of devices of a node, which is one NVLink domain.
    """
    base = load_cluster("hgx-h100-8" if num_nodes == 1 else "h100-rail-8x8")
    if base.num_devices == num_nodes * devices_per_node:
        return base
    return base.with_(num_nodes=num_nodes, devices_per_node=devices_per_node)


def sized_gate(kind: str, num_experts: int) -> Gate:
    """Return a gate over a number of experts.

    Args:
        kind: ``flat``, ``two_level`` (groups of their square root) or ``product_key`` (eight
            heads), with options after a plus sign.
        num_experts: The number of experts.
    """
    name, plus, option = kind.partition("+")
    sizes = {"two_level": f":{math.isqrt(num_experts)}:4", "product_key": ":8:256"}.get(name, "")
    return Gate.parse(f"{name}{sizes}{plus}{option}")


def split_layer(point: LimitPoint) -> MoELayer | None:
    """Return the model's layer with its experts split, or None if an expert would have less than
    one neuron.

    Args:
        point: The design.

    Raises:
        MoesimError: There is no such layer.
    """
    layer = load_preset(point.preset).layer
    width = point.scale * layer.num_experts * layer.widest // point.num_experts
    if width < 1:
        return None
    top_k = min(max(round(layer.top_k * layer.widest / width), 1), _MOST_CHOSEN)
    return replace(
        layer,
        num_experts=point.num_experts,
        expert_intermediate_size=width,
        top_k=top_k,
        precision=Precision.named(point.precision),
        gate=sized_gate(point.gate, point.num_experts),
    )


def efficiency(
    layer: MoELayer, cluster: Cluster, tokens: int, experts_s: float
) -> tuple[float, float]:
    """Compare the time of the experts' phase with its roofline under uniform load.

    Args:
        layer: The layer.
        cluster: The hardware it runs on.
        tokens: Tokens of a device.
        experts_s: Seconds of the experts' phase.

    Returns:
        The share of the roofline that the phase reaches, and the mean rows of an expert that has
        any.
    """
    choices, profile = tokens * cluster.num_devices * layer.top_k, cluster.profile
    # expected number of experts that have any of the choices
    active = -layer.num_experts * math.expm1(-choices / layer.num_experts)
    flops = 2.0 * layer.params_per_expert * choices / cluster.num_devices
    read = active / cluster.num_devices * layer.bytes_per_expert
    ideal = max(
        flops / profile.peak(layer.precision.activations), read / profile.hbm_bandwidth_bytes_per_s
    )
    return ideal / experts_s, choices / active


def limit_row(point: LimitPoint) -> Row:
    """Simulate one design and say what breaks.

    Args:
        point: The design.

    Returns:
        The row of its result; if the design is invalid, only a ``reason``.
    """
    row = {
        "cluster": point.where,
        "scale": point.scale,
        "gate_kind": point.gate,
        "num_experts": point.num_experts,
        "evidence": "simulated",
        "calibration": "none",
        "engine": "flow",
        "seed": point.seed,
        "version": VERSION,
    }
    try:
        layer = split_layer(point)
        cluster = h100_cluster(point.num_nodes, point.devices_per_node)
        if layer is None:
            return row | {"reason": "experts below one neuron"}
        preset = load_preset(point.preset)
        candidate = Candidate(
            layer=layer,
            parallelism=Parallelism(ep=cluster.num_devices),
            dense_part=preset.dense_part,
            schedule=Schedule(exchange=point.exchange),
        )
        work = Workload(num_tokens_per_device=point.num_tokens, seed=point.seed)
        prepared = prepare(candidate, cluster, work)
        result = simulate_prepared(prepared, must_fit=False)
        columns = _memory(prepared) | _shares(result)
        moved = exchange_of(prepared)
    except MoesimError as error:
        return row | {"reason": str(error)}
    reached, rows = efficiency(layer, cluster, point.num_tokens, result.experts_time_s)
    broken = {
        "memory": not columns["fits"],
        "gate": columns["gate_share"] > GATE_SHARE,
        "exchange": columns["exchange_share"] > EXCHANGE_SHARE,
        "experts": reached < EFFICIENCY,
    }
    total = layer.routed_params * preset.dense_part.num_moe_layers + preset.dense_part.params
    found = row | result.row() | _loss(layer, preset) | {"cluster": point.where} | columns
    return found | {
        "experts_efficiency": reached,
        "rows_per_expert": rows,
        "experts_alone_us": result.experts_time_s / US,
        **{key: moved[0][key] for key in ("copies_per_token", "near_mb", "far_mb")},
        "total_params": total,
        "breaks": ", ".join(name for name, over in broken.items() if over) or "nothing",
        **{f"{name}_broken": over for name, over in broken.items()},
    }


def _memory(prepared: Prepared) -> Row:
    """Return the memory of the fullest device, and how many devices would hold the experts."""
    candidate, fullest = prepared.candidate, memory_of(prepared)
    assert candidate.dense_part is not None
    assert fullest is not None
    layers = candidate.dense_part.num_moe_layers
    need, usable = fullest.need, fullest.usable_bytes
    left = usable - (need.total_bytes - need.experts_bytes)
    devices = math.inf
    if left > 0:
        devices = math.ceil(need.experts_bytes * prepared.cluster.num_devices / left)
    return {
        "memory_gib": need.total_bytes / GIB,
        "experts_gib": need.experts_bytes / GIB,
        "gate_gib": candidate.layer.gate_params * 2.0 * layers / GIB,
        "fits": need.total_bytes <= usable,
        "devices_needed": devices,
    }


def _shares(result: Result) -> Row:
    """Return the shares of the layer's time that the gate, and dispatch with combine, take."""
    share = {name: s / result.layer_time_s for name, s in result.phase_time_s.items()}
    return {
        "gate_share": share["gate"],
        "exchange_share": share["dispatch"] + share["combine"],
    }


def _loss(layer: MoELayer, preset: Preset) -> Row:
    """Return the columns of the loss with product keys for every gate, so that points can be
    compared.
    """
    keyed = replace(layer, gate=sized_gate("product_key", layer.num_experts))
    return estimate_loss(keyed, preset.dense_part, train_tokens=_TRAIN_TOKENS).row()


def limit_rows(points: Sequence[LimitPoint], workers: int) -> list[Row]:
    """Simulate designs in several processes.

    Args:
        points: The designs.
        workers: Number of processes.

    Returns:
        Rows of `limit_row` in the order of the points.
    """
    with Workers(workers) as pool:
        return list(pool.map(limit_row, points))
