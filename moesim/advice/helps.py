"""Find what would help a design, and how many devices would hold a model that does not fit."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from moesim.advice.gains import Outcome, gain
from moesim.advice.recommendation import Help
from moesim.costs.phases.memory import MemoryNeed, memory_need
from moesim.design.candidate import Candidate, Workload
from moesim.hardware import Cluster
from moesim.model import Precision
from moesim.model.hf_config import Model
from moesim.simulation.prepare import draw
from moesim.simulation.result import Result
from moesim.simulation.run import simulate
from moesim.units import GIB

#: key of `Cluster.with_` -> the change in words
_LARGER = {
    "scale_up_gb_per_s": "links of twice the bandwidth",
    "scale_out_gb_per_s": "NICs of twice the bandwidth",
    "hbm_gb_per_s": "memory of twice the bandwidth",
    "bf16_tflops": "twice the FLOP/s",
}
#: tokens of all devices up to which twice the batch is tried; more would take seconds
_MOST_TOKENS = 1 << 20
#: number of devices up to which a larger cluster is searched for
_MOST_DEVICES = 4096


def helps(
    best: Result,
    cluster: Cluster,
    workload: Workload,
    engine: str = "flow",
    *,
    most_s: float | None = None,
) -> list[Help]:
    """Return what each change brings to a simulated design, everything else equal.

    Changes of less than 1 % are left out.

    Args:
        best: The simulated design.
        cluster: The hardware it ran on.
        workload: The tokens it was given.
        engine: Name of the engine that simulated it.
        most_s: Time that a layer may take; changes that take longer are left out.
    """
    found = []
    candidate = best.candidate
    before = Outcome(result=best, cluster=cluster)

    def tried(change: str, where: Cluster, work: Workload) -> None:
        result = simulate(candidate, where, work, engine=engine, must_fit=False)
        if result.memory_over_bytes is not None and result.memory_over_bytes > 0:
            return
        if most_s is not None and result.layer_time_s > most_s:
            return
        factor = gain(before, Outcome(result=result, cluster=where))
        if factor.mid > 1.01:
            found.append(Help(change=change, factor=factor))

    if cluster.profile.execution != "serial":
        for key, words in _LARGER.items():
            there = {
                "scale_up_gb_per_s": cluster.scale_up_kind is not None and cluster.num_devices > 1,
                "scale_out_gb_per_s": cluster.has_scale_out and cluster.num_nodes > 1,
            }
            if there.get(key, True):
                tried(words, cluster.with_(**{key: "2x"}), workload)
    for change, work in _other_work(cluster, workload):
        tried(change, cluster, work)
    return sorted(found, key=lambda h: -h.factor.mid)


def _other_work(cluster: Cluster, workload: Workload) -> list[tuple[str, Workload]]:
    """Return the workloads that are tried besides the given one, with the change in words."""
    found = []
    if workload.routing != "uniform" and not workload.routing.startswith("trace:"):
        found.append(("experts chosen equally often", replace(workload, routing="uniform")))
    twice = 2 * workload.num_tokens_per_device
    if twice * cluster.num_devices <= _MOST_TOKENS:
        more = replace(workload, num_tokens_per_device=twice)
        found.append((f"batches of {twice:,} tokens per device", more))
    return found


@contextmanager
def drawn_ahead(candidate: Candidate, cluster: Cluster, workload: Workload) -> Iterator[None]:
    """Draw the tokens that `helps` will need in a thread beside other work."""
    with ThreadPoolExecutor(1) as beside:
        for _, work in _other_work(cluster, workload):
            # an error is met again, and told, where the tokens are needed
            beside.submit(draw, candidate, cluster, work)
        yield


def room_for_kv(best: Result, candidate: Candidate) -> int:
    """Return the tokens of KV cache per device that would still fit in addition to
    those counted.
    """
    dense, over = candidate.dense_part, best.memory_over_bytes
    assert dense is not None
    assert over is not None, "it has a dense part"
    per_token = dense.num_layers * dense.kv_bytes_per_token_per_layer
    return int(max(-over, 0.0) / per_token) if per_token else 0


def least_need(model: Model, devices: int, name: str, workload: Workload) -> MemoryNeed:
    """Return the memory of a device where experts are spread evenly, with only the copies that fill
    every rank.

    Args:
        model: The model that is held.
        devices: Number of expert-parallel ranks.
        name: Name of the recipe of its weights.
        workload: Tokens and KV cache; rows are assumed to be spread evenly.
    """
    layer = replace(model.layer, precision=Precision.named(name))
    rows = float(workload.num_tokens_per_device * layer.top_k)
    return memory_need(
        layer,
        model.dense_part,
        held_width=-(-layer.num_experts // devices) * layer.widest,
        kv_tokens=workload.kv_tokens,
        rows=rows,
        row_widths=rows * layer.widest,
        tokens=rows,
    )


def would_hold(model: Model, cluster: Cluster, names: Iterable[str], workload: Workload) -> str:
    """Say in words how many devices of a cluster's kind would hold a model."""
    usable = min(profile.usable_bytes for profile, _ in cluster.groups)
    per_node = cluster.devices_per_domain
    best: tuple[int, str] | None = None
    for name in names:
        sizes = [*range(1, per_node + 1), *range(2 * per_node, _MOST_DEVICES + 1, per_node)]
        fitting = [
            d for d in sizes if np.all(least_need(model, d, name, workload).total_bytes <= usable)
        ]
        if fitting and (best is None or fitting[0] < best[0]):
            best = fitting[0], name
    if best is None:
        dense = model.dense_part.num_bytes / GIB
        return (
            f"no number of {cluster.profile.name} up to {_MOST_DEVICES:,} would: every device "
            f"holds the {dense:.0f} GiB of attention, embeddings and dense layers, and its KV "
            "cache"
        )
    return f"{best[0]} of {cluster.profile.name} would hold it in {best[1]}"
