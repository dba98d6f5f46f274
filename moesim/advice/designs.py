"""Generate the designs of one model on one cluster among which a recommendation chooses.

- Parallelism: every split of the devices into expert-parallel ranks of ``tp`` devices, with tp
  within a node.
- Placement: expert order, balanced, EPLB and, across nodes, its hierarchical policy, with 0, 1, 2
  and 4 copies per rank; for the best of them also a local search, which is too slow for all.
- Exchanges: those that a serving engine launches with the design's layout and whose kernels exist
  on the fabric. DeepEP runs on NVIDIA GPUs over NVLink; its low-latency mode is made for decoding
  and its normal mode for prefill (deepseek-ai/DeepEP, README). Where no engine launches any, as on
  a torus, the cluster's own.
- Kernels: for each design the fastest library that an engine launches with it
  (`moesim.simulation.kernels`).
- Formats: the published one, and narrower ones that a library has on the devices: fp8 for a model
  published in 16 bits, nvfp4 on Blackwell. A wider one adds bytes and no quality, and is tried only
  where no library has the published one. Weights published in 4 bits stay as they are.
"""

from dataclasses import replace
from itertools import product

from moesim.costs.libraries import launched
from moesim.design.candidate import Candidate, Parallelism
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import Cluster
from moesim.hardware.exchanges import EXCHANGES
from moesim.hardware.libraries import AUTO, kernel_libraries
from moesim.model import Precision
from moesim.model.hf_config import Model
from moesim.model.precision import RECIPES
from moesim.quality import layer_delta

#: formats that ``auto`` tries where no library has the published one
_USUAL = ("bf16", "fp8")
#: placement strategies, simplest first
PLACEMENTS = ("contiguous", "balanced", "eplb", "eplb_hierarchical", "local_search")
_PHASES = ("prefill", "decode")
SEARCHED = "local_search:20"
_COPIES_PER_RANK = (0, 1, 2, 4)


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
            Precision.named(name).activations in profile.peak_flops_per_s
            for profile, _ in cluster.groups
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
    found = [name for name in _narrower(model, cluster) if runs(name)]
    if not any(_had(name, model, cluster) for name in found):
        # no library has the published format here: wider ones are tried
        found += [name for name in _USUAL if runs(name) and name not in found]
    if not found:
        raise ConfigError(
            f"precision: {cluster.profile.name} has a rate for {rates} only: name a format of "
            f"{', '.join(RECIPES)} that multiplies in one of these"
        )
    return found


def _had(name: str, model: Model, cluster: Cluster) -> bool:
    """Return whether a library that an engine launches has a format on all devices of a cluster."""
    return all(
        any(
            library.launch
            and name in library.formats
            and library.refuses(profile, name, gated=model.layer.gated) is None
            for library in kernel_libraries()
        )
        for profile, _ in cluster.groups
    )


def _narrower(model: Model, cluster: Cluster) -> list[str]:
    """Return the published format, and narrower ones of its kind that libraries have."""
    published = model.published_as
    bits = Precision.named(published).weight_bytes
    others = {"mxfp4": ["mxfp4_a8"]}.get(published, []) if bits < 1.0 else ["fp8", "nvfp4"]
    return [
        published,
        *(
            name
            for name in others
            if name != published
            and (bits < 1.0 or Precision.named(name).weight_bytes < 0.99 * bits)
            and _had(name, model, cluster)
        ),
    ]


def loss_delta(model: Model, name: str) -> tuple[float, float, float]:
    """Return the loss of a format minus that of the published one, in nats: (middle, low, high).

    The published format is the zero: its loss is in the model's own. Wider weights hold the
    published ones and take nothing back; what rounding tokens to 8 bits costs is added to them.
    """
    published, precision = Precision.named(model.published_as), Precision.named(name)
    if precision == published:
        return 0.0, 0.0, 0.0
    wider = precision.weight_bytes > 1.01 * published.weight_bytes
    of = layer_delta(replace(model.layer, precision=precision))
    # the layer's other choices add the same loss and interval on both sides
    base = layer_delta(replace(model.layer, precision=Precision() if wider else published))
    return of.nats - base.nats, of.low - base.low, of.high - base.high


def exchanges(cluster: Cluster, phase: str) -> list[str]:
    """Return the exchanges to try: those that a serving engine launches on the cluster, its own
    first; where there is none, its own.
    """
    own = cluster.exchange()
    if cluster.num_devices == 1 or own.name in ("ideal", "host"):
        return [own.name]
    found = [
        e.name
        for e in (own, *(e for e in EXCHANGES.values() if e is not own))
        if e.launch
        and e.runs_on(cluster)
        # an exchange that suits no phase of itself is tried only where it is the cluster's own
        and (
            e.suits(cluster, phase) or (e is own and not any(e.suits(cluster, p) for p in _PHASES))
        )
    ]
    return found or [own.name]


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
    model: Model,
    cluster: Cluster,
    *,
    phase: str,
    names: list[str],
    tokens: int,
    kernels: str = AUTO,
) -> list[Candidate]:
    """Return every design that a serving engine launches, including those that do not fit in
    memory; where none is launched, as on a torus, every design.

    Args:
        model: The model to serve.
        cluster: The hardware it runs on.
        phase: ``prefill`` or ``decode``.
        names: Names of the recipes to try.
        tokens: Tokens of a device; a single token cannot be split into two micro-batches.
        kernels: Choice of the kernel library, see `moesim.design.candidate.Candidate`.

    Raises:
        ConfigError: An engine is named that launches no design.
    """
    several = cluster.num_nodes > 1
    parts = (1, 2) if tokens > 1 and cluster.num_devices > 1 else (1,)
    every = [
        Candidate(
            layer=replace(model.layer, precision=Precision.named(name)),
            parallelism=spread,
            placement=strategy,
            num_replicas=replicas,
            dense_part=model.dense_part,
            schedule=Schedule(exchange=exchange, num_micro_batches=part),
            kernels=kernels,
        )
        for spread in splits(cluster)
        for (strategy, replicas), part in product(
            placements(model.layer.num_experts, spread.ep, several), parts
        )
        for exchange, name in product(exchanges(cluster, phase), names)
    ]
    found = [candidate for candidate in every if _launched(candidate, cluster)]
    engine = kernels.partition(":")[2]
    if engine and not found:
        raise ConfigError(
            f"kernels: expected an engine that launches {model.name} in {', '.join(names)} on "
            f"{cluster.name}, got {engine}"
        )
    return found or every


def _launched(candidate: Candidate, cluster: Cluster) -> bool:
    if candidate.cut_block:
        return False
    exchange = cluster.exchange(candidate.schedule) if cluster.num_devices > 1 else None
    return all(launched(profile, candidate, exchange) for profile, _ in cluster.groups)
