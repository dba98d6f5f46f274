"""Choose whose kernels run a design's experts: the library that is named, or the fastest.

``auto`` prices the experts of the whole batch by every library that could run them
(`moesim.costs.libraries.able`) and takes the one whose slowest device ends first. The price
is the one that the layer is then lowered with; copies that land while experts run, which slow
kernels that need the memory more than others, are left out of the comparison.

Shape legend: D devices, L local experts.
"""

from collections.abc import Sequence

import numpy as np

from moesim.costs.libraries import AND, able, has_own_kernels, own_name, priced_by
from moesim.design.candidate import Candidate
from moesim.design.launch import launching_engines
from moesim.errors import ConfigError
from moesim.hardware import Cluster
from moesim.hardware.exchanges import Exchange, exchange_named
from moesim.hardware.libraries import AUTO, known_library
from moesim.lowering.traffic import AnyTraffic
from moesim.lowering.widths import price_widths
from moesim.simulation.result import Result


def choose_kernels(
    members: Sequence[Candidate],
    cluster: Cluster,
    traffic: AnyTraffic,
    widths_DL: np.ndarray | None = None,
    *,
    exchanged: bool = True,
) -> list[str]:
    """Return the library of each design, or of each kind of device joined by ``+``.

    Args:
        members: Designs that differ at most in the width of their experts.
        cluster: The hardware they run on.
        traffic: What the whole batch moves and computes.
        widths_DL: ndarray of shape (D, L): width of the expert in every slot, of a single member
            whose experts differ; None if all have the same width.
        exchanged: Whether tokens travel to their experts, by the design's exchange; otherwise every
            device has them all.

    Returns:
        Names that `moesim.costs.libraries.running` reads, one for each member.

    Raises:
        ConfigError: The library named does not run the design on the cluster; the text says why.
    """
    first = members[0]
    exchange = exchange_before(first, cluster, exchanged)
    start, chosen = 0, []
    for profile, count in cluster.groups:
        devices = slice(start, start + count)
        start += count
        asked = first.kernels.partition(":")[0] != AUTO
        if profile.execution != "waves" and asked:
            raise ConfigError(f"kernels: {first.kernels} runs on GPUs, and {profile.name} is none")
        if has_own_kernels(profile) and not asked:
            chosen.append([own_name(profile)] * len(members))
            continue
        found = able(profile, first, exchange)
        if len(found) == 1:
            chosen.append([found[0].name] * len(members))
            continue
        slowest_s = [
            price_widths(members, priced_by(profile, one.name), traffic, devices, widths_DL).max(
                axis=1
            )
            for one in found
        ]
        chosen.append([found[int(i)].name for i in np.stack(slowest_s).argmin(axis=0)])
    # one name where all kinds of device run the same library
    return [
        AND.join(names if len(set(names)) > 1 else names[:1]) for names in zip(*chosen, strict=True)
    ]


def exchange_before(candidate: Candidate, cluster: Cluster, exchanged: bool) -> Exchange | None:
    """Return the exchange whose tokens the kernels of a design find; None on one device.

    Args:
        candidate: The design.
        cluster: The hardware it runs on.
        exchanged: Whether tokens travel to their experts; otherwise every device has them all, as
            after an all-gather.
    """
    if cluster.num_devices == 1:
        return None
    return cluster.exchange(candidate.schedule) if exchanged else exchange_named("all_gather")


def engines_of(result: Result, cluster: Cluster) -> tuple[str, ...]:
    """Return the serving engines that launch a simulated design as it was simulated.

    Args:
        result: The simulated design, which names the libraries of its kernels.
        cluster: The hardware it ran on.
    """
    candidate = result.candidate
    if not candidate.is_plain:
        # no engine compresses experts by their load, or keeps them in the host's memory
        return ()
    exchange = cluster.exchange(candidate.schedule) if cluster.num_devices > 1 else None
    found = launching_engines(candidate, exchange)
    for name in result.kernels.split(AND) if result.kernels else ():
        library = known_library(name)
        if library is None:
            return ()
        able_to = library.engines(exchange.name if exchange else None)
        found = tuple(engine for engine in found if engine in able_to)
    return found if result.kernels else ()
