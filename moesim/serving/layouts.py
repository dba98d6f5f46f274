"""The layouts in which engines serve a model on a cluster, from which the best is chosen."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from moesim.costs.steps.memory import DeviceMemory, memory_on
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import ConfigError
from moesim.hardware import Cluster

#: devices that share heads at most
_MOST_TP = 8
#: strategy and replicas for each rank where tokens travel and devices wait for the fullest
BALANCED = "eplb"


def layouts_of(served: ServedModel, cluster: Cluster) -> list[ServedModel]:
    """Return the design in every layout to try: heads shared by 1, 2, 4 or 8 devices of a domain
    with experts cut or whole, and attention ranks of one device each over a domain or over all
    devices with whole experts.

    Raises:
        ConfigError: No layout divides the model.
    """
    return [placed(one) for one in divided(served, _layouts(cluster))]


def divided(served: ServedModel, layouts: Iterable[Layout]) -> list[ServedModel]:
    """Return the design in each of some layouts that divides the model, without those that its
    engine refuses to load for their blocks of weights, where there are others.

    Raises:
        ConfigError: None does.
    """
    whole: list[ServedModel] = []
    cut: list[ServedModel] = []
    refused = ""
    for layout in layouts:
        try:
            design = replace(served, layout=layout)
        except ConfigError as error:
            refused = str(error)
        else:
            (cut if design.cut_block else whole).append(design)
    if not whole and not cut:
        raise ConfigError(refused)
    return whole or cut


def fitting(designs: Iterable[ServedModel], cluster: Cluster) -> list[ServedModel]:
    """Return the designs whose weights fit on the devices of a cluster.

    Raises:
        CapacityError: None do; the text says by how many GiB the best one misses.
    """
    kept: list[ServedModel] = []
    best: tuple[DeviceMemory, ServedModel] | None = None
    for design in designs:
        memory = memory_on(design, cluster.profile, step_tokens=0.0)
        if memory.left_bytes > 0:
            kept.append(design)
        elif best is None or memory.left_bytes > best[0].left_bytes:
            best = memory, design
    if not kept and best is not None:
        best[0].check(best[1].name, f"{cluster.name} as {best[1].layout}")
    return kept


def placed(served: ServedModel) -> ServedModel:
    """Return the design with experts balanced by EPLB and one replica on each rank where tokens
    travel to whole experts and no placement was chosen.
    """
    if served.layout.ep == 1 or not served.layout.exchanges_tokens:
        return served
    if served.placement != "contiguous" or served.num_replicas:
        return served
    ep = served.layout.ep
    moe = served.spec.moe
    assert moe is not None, "whole experts are on several ranks"
    return replace(served, placement=BALANCED, num_replicas=-moe.num_experts % ep + ep)


def engine_layouts(cluster: Cluster) -> list[Layout]:
    """Return every layout in which engines serve models with experts on a cluster.

    An engine spreads its experts over the devices of all its attention ranks, whole or, within a
    domain, cut; attention ranks are of 1, 2, 4 or 8 devices of a domain; pipeline stages are of a
    domain each (SGLang, ``--tp-size``, ``--dp-size``, ``--ep-size``, ``--pp-size``; vLLM,
    ``--tensor-parallel-size``, ``--data-parallel-size``, ``--enable-expert-parallel``,
    ``--pipeline-parallel-size``). The number of devices is that of the cluster halved as often as
    possible.
    """
    devices = cluster.num_devices
    domain = min(cluster.devices_per_domain, devices)
    found: dict[Layout, None] = {}
    while True:
        for tp in (1, 2, 4, 8):
            if tp > min(devices, domain) or devices % tp or domain % tp:
                continue
            dp = devices // tp
            if devices <= domain:
                found[Layout(tp=tp, dp=dp, moe_tp=devices)] = None
            if devices > 1:
                found[Layout(tp=tp, dp=dp, ep=devices)] = None
        # stages of a domain, whose devices share all heads
        if devices > domain and devices % domain == 0 and domain <= _MOST_TP:
            for experts in ({"moe_tp": domain}, {"ep": domain}):
                found[Layout(tp=domain, pp=devices // domain, **experts)] = None
        if devices % 2 or devices == 1:
            return list(found)
        devices //= 2


def _layouts(cluster: Cluster) -> Iterator[Layout]:
    domain, devices = min(cluster.devices_per_domain, cluster.num_devices), cluster.num_devices
    for tp in (1, 2, 4, 8):
        if tp <= domain and domain % tp == 0:
            yield Layout(tp=tp, moe_tp=tp)
            if tp > 1:
                yield Layout(tp=tp, ep=tp)
    for ranks in dict.fromkeys((min(domain, 8), domain, devices)):
        if ranks > 1:
            yield Layout(dp=ranks, ep=ranks)
