"""The layouts in which engines serve a model on a cluster, from which the best is chosen."""

from collections.abc import Iterator
from dataclasses import replace

from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import ConfigError
from moesim.hardware import Cluster

#: strategy and replicas for each rank where tokens travel and devices wait for the fullest
BALANCED = "eplb"


def layouts_of(served: ServedModel, cluster: Cluster) -> list[ServedModel]:
    """Return the design in every layout to try: heads shared by 1, 2, 4 or 8 devices of a domain
    with experts cut or whole, and attention ranks of one device each over a domain or over all
    devices with whole experts.

    Raises:
        ConfigError: No layout divides the model.
    """
    found, refused = [], ""
    for layout in _layouts(cluster):
        try:
            found.append(placed(replace(served, layout=layout)))
        except ConfigError as error:
            refused = str(error)
    if not found:
        raise ConfigError(refused)
    return found


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
