"""Reduce designs and workloads to what matters to a step, with the rest set to a fixed value: the
keys of the caches of `moesim.simulation.prepare`.

A new field matters until this module says otherwise, so a forgotten field costs time but never
returns the traffic of another design.
"""

from dataclasses import replace
from functools import lru_cache

from moesim.design.candidate import Candidate, Workload
from moesim.design.offload import Offload
from moesim.design.schedule import Schedule
from moesim.hardware.libraries import AUTO
from moesim.model import MoELayer, Precision
from moesim.model.compression import Compression

_WHOLE, _RESIDENT = Compression(), Offload()


@lru_cache(maxsize=4096)
def for_traffic(candidate: Candidate) -> Candidate:
    """Return the design as far as traffic depends on it.

    Sizes, formats, shared experts and the exchange do not change where a token goes. What placement
    needs of them (memory, speeds, the price of a copy) is in its `Setting`.
    """
    layer = candidate.layer
    return replace(
        candidate,
        layer=replace(
            layer,
            hidden_size=1,
            num_shared_experts=0,
            gated=True,
            precision=Precision(),
            expert_intermediate_size=layer.expert_intermediate_size if layer.uneven else 1,
        ),
        dense_part=None,
        schedule=Schedule(),
        kernels=AUTO,
        compression=_WHOLE,
        offload=_RESIDENT,
    )


@lru_cache(maxsize=4096)
def for_capacity(layer: MoELayer) -> MoELayer:
    """Return the layer as far as rerouting depends on it; widths only say which experts
    are pruned.
    """
    left = tuple((layer.width_E() > 0).astype(int).tolist()) if layer.has_pruned else 1
    plain = replace(
        layer,
        hidden_size=1,
        num_shared_experts=0,
        gated=True,
        precision=Precision(),
        padded=False,
        expert_intermediate_size=left,
    )
    # without rerouting the choices are the gate's, whatever the capacity
    return plain if layer.overflow == "reroute" else replace(plain, capacity_factor=None)


@lru_cache(maxsize=4096)
def for_routing_work(workload: Workload) -> Workload:
    """Return the workload as far as routing depends on it: neither the phase nor the KV cache moves
    a token.
    """
    return replace(workload, phase="prefill", kv_tokens_per_device=None)
