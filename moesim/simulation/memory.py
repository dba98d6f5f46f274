"""Count the memory of a prepared design: the device with the least headroom, and how many sequences
fit in decoding.

Shape legend: D devices, L slots of a device.
"""

import math
from dataclasses import dataclass

import numpy as np

from moesim.costs.phases.experts import slot_widths
from moesim.costs.phases.memory import MemoryNeed, check_memory, memory_need
from moesim.design.candidate import Candidate, Workload
from moesim.errors import CapacityError, ConfigError
from moesim.hardware import Cluster
from moesim.simulation.prepare import Prepared, prepare
from moesim.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class FullestDevice:
    """The device with the least memory left.

    Attributes:
        device: Index of the device.
        need: What the device must hold, in bytes.
        usable_bytes: Bytes of its memory that a model may use.
    """

    device: int
    need: MemoryNeed
    usable_bytes: float

    @property
    def total_bytes(self) -> float:
        """The bytes of everything it must hold."""
        return float(self.need.total_bytes)

    @property
    def over_bytes(self) -> float:
        """The bytes by which the model exceeds the usable memory; <= 0 where it fits."""
        return float(self.need.total_bytes - self.usable_bytes)

    def check(self) -> None:
        """Refuse a model that does not fit.

        Raises:
            CapacityError: The model does not fit; the message names the device and how many GiB it
                is over.
        """
        check_memory(self.need, self.usable_bytes, self.device)


def memory_of(prepared: Prepared) -> FullestDevice | None:
    """Return the memory needed on the device with the least headroom; None for a design without a
    dense part.
    """
    candidate, traffic = prepared.built, prepared.traffic
    if candidate.dense_part is None:
        return None
    widths_DL = slot_widths(candidate.layer, prepared.placement, candidate.parallelism.tp)
    counts_DL, held_D = traffic.counts_DL, widths_DL.sum(axis=1)
    if prepared.stored is not None:
        # what is fetched lies in buffers that all layers share
        layers, stored = candidate.dense_part.num_moe_layers, prepared.stored
        held_bytes_D = stored.held_bytes_D + stored.staged_bytes_D / layers
        held_D = held_bytes_D / candidate.layer.bytes_per_width
    needs = memory_need(
        candidate.layer,
        candidate.dense_part,
        held_width=held_D,
        kv_tokens=prepared.workload.kv_tokens,
        rows=counts_DL.sum(axis=1),
        row_widths=(counts_DL * widths_DL).sum(axis=1),
        tokens=np.asarray(traffic.tokens_D),
    )
    usable_D = prepared.cluster.usable_bytes_D()
    device = int((needs.total_bytes - usable_D).argmax())
    return FullestDevice(
        device=device, need=needs.of_device(device), usable_bytes=float(usable_D[device])
    )


def check_least_memory(candidate: Candidate, cluster: Cluster, workload: Workload) -> None:
    """Refuse a model that fits by no placement that a strategy plans and by no routing, before any
    is made.

    Raises:
        CapacityError: All devices together are too small for it.
    """
    dense, layer = candidate.dense_part, candidate.layer
    # `prepare` says what is wrong with other sizes
    if dense is None or candidate.parallelism.num_devices != cluster.num_devices:
        return
    stored_whole = candidate.compression.is_nothing and candidate.offload.is_nothing
    widths, least = float(layer.width_E().sum()), float(layer.width_E().min())
    # full experts drop tokens
    tokens = float(workload.num_tokens_per_device) if layer.capacity_factor is None else 0.0
    need = memory_need(
        layer,
        dense,
        held_width=(widths + candidate.num_replicas * least) / cluster.num_devices
        if stored_whole
        else 0.0,
        kv_tokens=workload.kv_tokens,
        rows=tokens * layer.top_k,
        row_widths=tokens * layer.top_k * least,
        tokens=tokens,
    )
    check_memory(need, float(cluster.usable_bytes_D().mean()), None)


def decode_workload(
    candidate: Candidate, cluster: Cluster, context: int, *, routing: str, seed: int = 0
) -> Workload:
    """Return a decode workload: one token of each of the sequences whose KV cache fits on a device.

    Args:
        candidate: A design with a dense part, whose layers keep the cache.
        cluster: The hardware it runs on.
        context: Tokens of a sequence.
        routing: Distribution of the experts' load.
        seed: Seed of the routing.

    Raises:
        CapacityError: Not even one sequence fits; the message says how many GiB are missing.
        ConfigError: The model has no dense part or no KV cache.
    """
    dense = candidate.dense_part
    each = context * dense.num_layers * dense.kv_bytes_per_token_per_layer if dense else 0.0
    if not each:
        raise ConfigError(f"decode: expected a model with a KV cache, got {candidate.label}")

    def work(sequences: int) -> Workload:
        return Workload(
            num_tokens_per_device=sequences,
            phase="decode",
            routing=routing,
            seed=seed,
            kv_tokens_per_device=sequences * context,
        )

    def over(sequences: int) -> float:
        found = memory_of(prepare(candidate, cluster, work(sequences)))
        assert found is not None, "the candidate has a dense part"
        return found.over_bytes

    least = over(1)
    if least > 0:
        raise CapacityError(
            f"decode: expected room for one sequence of {context} tokens, got {least / GIB:.1f} "
            "GiB too few"
        )
    # start from the room that one sequence leaves; buffers grow too, so step down until it fits
    sequences = 1 + int(-least / each)
    while sequences > 1 and (more := over(sequences)) > 0:
        sequences = max(sequences - math.ceil(more / each), 1)
    return work(sequences)
