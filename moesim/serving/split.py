"""Divide a cluster into a pool of devices that computes prompts and one that decodes.

The cache of a prompt travels from the devices of its attention rank to those of another, over their
NICs, or over the links of a domain that holds both pools.
"""

import re
from dataclasses import dataclass

from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad
from moesim.errors import ConfigError, require_int
from moesim.hardware import Cluster
from moesim.hardware.sizing import sized
from moesim.serving.loop import DisaggregatedConfig, KvTransfer, RequestTraffic
from moesim.serving.pools import ServedPool, ServingKnobs, pool_of
from moesim.simulation.steps.simulate import UNEVEN
from moesim.simulation.steps.times import StepTable

#: the choice of one pool that does both
COLOCATED = "colocated"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitPools:
    """Two pools of one cluster.

    Attributes:
        pools: The pool that computes prompts, and the one that decodes.
        config: Both pools' servers, and the transfer between them.
    """

    pools: tuple[ServedPool, ServedPool]
    config: DisaggregatedConfig


def split_pools(
    prefill: ServedModel,
    decode: ServedModel,
    cluster: Cluster,
    traffic: RequestTraffic,
    *,
    prefill_copies: int = 1,
    knobs: ServingKnobs | None = None,
    load: ExpertLoad = UNEVEN,
    tables: tuple[StepTable, StepTable] | None = None,
) -> SplitPools:
    """Return so many copies of one design that compute prompts, and of another that decodes as many
    as the other devices hold.

    Args:
        prefill: The design that computes prompts.
        decode: The design that decodes.
        cluster: The hardware that both share.
        traffic: The requests.
        prefill_copies: Number of copies that compute prompts.
        knobs: What is not left to the engine.
        load: How tokens choose experts.
        tables: Times of the steps of both designs, if another run has made some.

    Raises:
        CapacityError: The weights do not fit, or leave no room for a KV cache.
        ConfigError: The pools do not fit the cluster.
    """
    require_int("prefill_copies", prefill_copies, 1)
    used = prefill_copies * prefill.layout.num_devices
    rest = cluster.num_devices - used
    if rest < decode.layout.num_devices:
        raise ConfigError(
            f"layout: expected {decode.layout.num_devices} devices to decode as {decode.layout} "
            f"beside {used} that compute prompts, got {max(rest, 0)} of {cluster.name}"
        )
    rest -= rest % decode.layout.num_devices
    before, after = (
        pool_of(
            design,
            sized(cluster, devices),
            traffic,
            knobs=knobs,
            load=load,
            table=None if tables is None else tables[place],
        )
        for place, (design, devices) in enumerate(((prefill, used), (decode, rest)))
    )
    near = cluster.num_devices <= cluster.devices_per_domain
    each = cluster.link_bytes_per_s if near else cluster.nic_bytes_per_s
    shared = min(prefill.layout.tp, decode.layout.tp)
    transfer = KvTransfer(
        latency_s=cluster.hop_s,
        # of each of the devices that share a rank's heads
        bytes_per_token=after.memory.kv_bytes_per_token * decode.layout.pp,
        bytes_per_s=each * shared / decode.layout.tp,
    )
    config = DisaggregatedConfig(prefill=before.config, decode=after.config, transfer_s=transfer)
    return SplitPools(pools=(before, after), config=config)


def ratio_of(text: str) -> tuple[int, int] | None:
    """Return the devices that compute prompts and those that decode in a text such as ``1:2``; None
    for ``colocated``.

    Raises:
        ConfigError: The text has another form.
    """
    if text == COLOCATED:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4}):([1-9]\d{0,4})", text)
    if match is None:
        raise ConfigError(
            f"pools: expected {COLOCATED}, or devices that compute prompts to those that decode, "
            f"such as 1:2, got {text!r}"
        )
    return int(match[1]), int(match[2])


def copies_of_ratio(text: str, prefill: ServedModel, decode: ServedModel, cluster: Cluster) -> int:
    """Return the number of copies that compute prompts at a ratio of devices: the nearest that
    leaves room for a copy that decodes.

    Args:
        text: The ratio, such as ``1:2``.
        prefill: The design that computes prompts.
        decode: The design that decodes.
        cluster: The hardware that both share.

    Raises:
        ConfigError: The text is no ratio, or the cluster is too small for a copy of each.
    """
    ratio = ratio_of(text)
    if ratio is None:
        raise ConfigError(f"pools: expected a ratio such as 1:2, got {text}")
    each, most = prefill.layout.num_devices, cluster.num_devices - decode.layout.num_devices
    if each > most:
        raise ConfigError(
            f"pools: expected devices for {prefill.layout} beside {decode.layout} "
            f"({each + decode.layout.num_devices}), got {cluster.num_devices} of {cluster.name}"
        )
    wanted = cluster.num_devices * ratio[0] / sum(ratio) / each
    return min(max(round(wanted), 1), most // each)


__all__ = ["COLOCATED", "SplitPools", "copies_of_ratio", "ratio_of", "split_pools"]
