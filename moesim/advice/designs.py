"""Generate the designs of one model on one cluster among which a recommendation chooses.

- Parallelism: every split of the devices into expert-parallel ranks of ``tp`` devices, with tp
  within a node.
- Placement: expert order, balanced, EPLB and, across nodes, its hierarchical policy, with 0, 1, 2
  and 4 copies per rank; for the best of them also a local search, which is too slow for all.
- Exchanges: the cluster's own, and those whose kernels exist on its fabric. DeepEP runs on NVIDIA
  GPUs over NVLink; its low-latency mode is made for decoding and its normal mode for prefill
  (deepseek-ai/DeepEP, README). NVL72's kernels run on such racks only.
- Formats: the model's published format, bf16 and fp8, as far as the device has a rate for them.
  These are measured (`moesim.simulation.trust`) and cost almost no loss. 4-bit weights and int8 are
  tried only where they are named.
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

#: formats that ``auto`` tries in addition to the published one
_USUAL = ("bf16", "fp8")
#: placement strategies, simplest first
PLACEMENTS = ("contiguous", "balanced", "eplb", "eplb_hierarchical", "local_search")
SEARCHED = "local_search:20"
_COPIES_PER_RANK = (0, 1, 2, 4)


def sized(cluster: Cluster, gpus: int | None) -> Cluster:
    """Return a cluster of the same kind with another number of devices.

    Args:
        cluster: The cluster to change.
        gpus: Number of devices, which is part of one node or whole nodes; None leaves the cluster
            unchanged.

    Raises:
        ConfigError: The number is not a whole number of nodes, or needs several nodes of a cluster
            without a network.
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
    """Return the recipes to try.

    Args:
        model: The model; ``auto`` always tries its published format where the cluster runs it.
        cluster: The hardware; its devices must have a rate for the format of the tokens.
        precision: ``auto``, or the names of recipes separated by commas.

    Raises:
        UnknownNameError: There is no such recipe.
        ConfigError: A device has no rate for a recipe.
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
    """Return the loss of a format minus that of bf16, in nats: (middle, low, high)."""
    of = layer_delta(replace(model.layer, precision=Precision.named(name)))
    base = layer_delta(replace(model.layer, precision=Precision()))
    # the layer's other choices add the same loss and interval on both sides
    return of.nats - base.nats, of.low - base.low, of.high - base.high


def exchanges(cluster: Cluster, phase: str) -> list[str]:
    """Return the exchanges to try: the cluster's own first, then others in the order of
    `EXCHANGES`.
    """
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
    """Return the layouts of the devices; the one without tp comes first."""
    devices, per_node = cluster.num_devices, cluster.devices_per_domain
    return [
        Parallelism(ep=devices // tp, tp=tp)
        for tp in range(1, per_node + 1)
        if devices % tp == 0 and per_node % tp == 0
    ]


def placements(num_experts: int, ep: int, several_nodes: bool) -> list[tuple[str, int]]:
    """Return (strategy, replicas) that give every rank equally many slots, with at most one copy of
    every expert.
    """
    # replicas that fill the ranks up to equally many slots
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
    """Yield every design, including those that do not fit in memory.

    Args:
        model: The model to serve.
        cluster: The hardware it runs on.
        phase: ``prefill`` or ``decode``.
        names: Names of the recipes to try.
        tokens: Tokens of a device; a single token cannot be split into two micro-batches.
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
