"""The designs of one model on one cluster that a recommendation chooses among.

Parallelism: every split of the devices into expert-parallel ranks of ``tp`` devices, tp within a
node. Placement: expert order, balanced, EPLB and across nodes its hierarchical policy, with 0, 1, 2
and 4 copies per rank; for the best of them also a local search, which is too slow for all.
Exchanges: the cluster's own, and those whose kernels exist on its fabric. DeepEP runs on NVIDIA
GPUs over NVLink, its low-latency mode is made for decoding and its normal mode for prefill
(deepseek-ai/DeepEP, README); NVL72's kernels belong to such racks. Formats: what the model is
published in, bf16 and fp8, as far as the device has a rate for them; those are measured
(`moesim.simulation.trust`), and cost next to nothing in loss. 4-bit weights and int8 are tried
where they are named.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from moesim.design.candidate import Candidate, Parallelism
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import Cluster
from moesim.hardware.exchanges import EXCHANGES
from moesim.model import Precision
from moesim.model.hf_config import Model
from moesim.model.precision import RECIPES
from moesim.quality import layer_delta

#: formats that ``auto`` tries beside the published one
_USUAL = ("bf16", "fp8")
#: simplest first
PLACEMENTS = ("contiguous", "balanced", "eplb", "eplb_hierarchical", "local_search")
SEARCHED = "local_search:20"
_COPIES_PER_RANK = (0, 1, 2, 4)
#: exchanges a cluster may have beside its own, in the order of a tie


def sized(cluster: Cluster, gpus: int | None) -> Cluster:
    """A cluster with another number of devices, of the same kind.

    Args:
        cluster: What it is made of.
        gpus: Devices: a part of one node, or whole nodes; None: as it is.

    Raises:
        ConfigError: A number that its nodes do not divide, or several nodes of a cluster without a
            network.
    """
    if gpus is None or gpus == cluster.num_devices:
        return cluster
    per_node = cluster.devices_per_domain
    if gpus < 1:
        raise ConfigError(f"gpus: expected a number >= 1, got {gpus}")
    if cluster.is_torus:
        raise ConfigError(
            f"gpus: expected a cluster of other axes, such as torus-4x4x8, since {cluster.name} "
            f"is a torus of {cluster.num_devices}, got {gpus}"
        )
    if len(cluster.groups) > 1:
        raise ConfigError(
            f"gpus: expected the {cluster.num_devices} devices of {cluster.name}, which mixes "
            f"devices, got {gpus}"
        )
    if gpus > per_node and gpus % per_node:
        raise ConfigError(
            f"gpus: expected a multiple of the {per_node} devices of a node of {cluster.name}, or "
            f"fewer, got {gpus}"
        )
    if gpus > per_node and not cluster.has_scale_out:
        raise ConfigError(
            f"gpus: expected at most {per_node}, since {cluster.name} is one node without a "
            f"network (name a cluster of several, such as h100-rail-8x8), got {gpus}"
        )
    if cluster.scale_up_kind is None:
        raise ConfigError(
            f"gpus: expected 1, since {cluster.name} is a device without links, got {gpus}"
        )
    return cluster.with_(num_nodes=max(gpus // per_node, 1), devices_per_node=min(gpus, per_node))


def formats(model: Model, cluster: Cluster, precision: str = "auto") -> list[str]:
    """Recipes to try.

    Args:
        model: Its published format is always one of ``auto``, where the cluster runs it.
        cluster: Whose devices must have a rate for the format of the tokens.
        precision: ``auto``, or recipes with commas between.

    Raises:
        UnknownNameError: No such recipe.
        ConfigError: A device without a rate for it.
    """

    def runs(name: str) -> bool:
        return all(
            RECIPES[name].activations in profile.peak_flops_per_s for profile, _ in cluster.groups
        )

    rates = ", ".join(cluster.profile.peak_flops_per_s)
    if precision != "auto":
        names = list(dict.fromkeys(name.strip() for name in precision.split(",")))
        for name in names:
            if name not in RECIPES:
                raise UnknownNameError("precision", name, ("auto", *RECIPES))
            if not runs(name):
                raise ConfigError(
                    f"precision: {cluster.profile.name} has no rate for "
                    f"{RECIPES[name].activations}, which {name} multiplies in: it has {rates}"
                )
        return names
    found = [name for name in dict.fromkeys((model.published_as, *_USUAL)) if runs(name)]
    if not found:
        raise ConfigError(
            f"precision: {cluster.profile.name} has a rate for {rates} only: name a format of "
            f"{', '.join(RECIPES)} that multiplies in one of these"
        )
    return found


def loss_delta(model: Model, name: str) -> tuple[float, float, float]:
    """Loss of a format over that of bf16, in nats: (middle, low, high)."""
    of = layer_delta(replace(model.layer, precision=Precision.named(name)))
    base = layer_delta(replace(model.layer, precision=Precision()))
    # what the layer's other choices add, with their interval, is the same on both sides
    return of.nats - base.nats, of.low - base.low, of.high - base.high


def exchanges(cluster: Cluster, phase: str) -> list[str]:
    """Exchanges to try, the cluster's own first."""
    own = cluster.exchange().name
    if cluster.num_devices == 1:
        return [own]
    if own in ("ideal", "host"):
        return [own]
    return [
        own,
        *(
            e.name
            for e in EXCHANGES.values()
            if e.name != own and e.runs_on(cluster) and e.suits(cluster, phase)
        ),
    ]


def splits(cluster: Cluster) -> list[Parallelism]:
    """Layouts of the devices, without tp first."""
    devices, per_node = cluster.num_devices, cluster.devices_per_domain
    return [
        Parallelism(ep=devices // tp, tp=tp)
        for tp in range(1, per_node + 1)
        if devices % tp == 0 and per_node % tp == 0
    ]


def placements(num_experts: int, ep: int, several_nodes: bool) -> list[tuple[str, int]]:
    """(strategy, replicas) that give every rank equally many slots; copies up to one of every
    expert.
    """
    least = -num_experts % ep
    found = [(name, 0) for name in PLACEMENTS[:2] if least == 0]
    if ep == 1:
        return found[:1]
    for copies in _COPIES_PER_RANK:
        replicas = least + copies * ep
        if replicas and replicas > max(num_experts, least):
            continue
        if replicas:
            found.append(("eplb", replicas))
            found += [("eplb_hierarchical", replicas)] if several_nodes else []
    return found


def candidates(
    model: Model, cluster: Cluster, *, phase: str, names: list[str], tokens: int
) -> Iterator[Candidate]:
    """Every design; those that do not fit in memory included.

    Args:
        model: What is placed.
        cluster: Where.
        phase: ``prefill`` or ``decode``.
        names: Recipes.
        tokens: Tokens of a device: one of them makes no two micro-batches.
    """
    several = cluster.num_nodes > 1
    parts = (1, 2) if tokens > 1 and cluster.num_devices > 1 else (1,)
    for spread in splits(cluster):
        for (strategy, replicas), part in product(
            placements(model.layer.num_experts, spread.ep, several), parts
        ):
            for exchange, name in product(exchanges(cluster, phase), names):
                yield Candidate(
                    layer=replace(model.layer, precision=Precision.named(name)),
                    parallelism=spread,
                    placement=strategy,
                    num_replicas=replicas,
                    dense_part=model.dense_part,
                    schedule=Schedule(exchange=exchange, num_micro_batches=part),
                )
