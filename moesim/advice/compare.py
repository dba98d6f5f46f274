"""Answer a buyer: what one model does on several clusters, in one table.

Every cluster is recommended for by itself, at its own number of devices or at the number that a
budget pays. Nodes that a network joins are tried as one cluster and as nodes side by side, each
with the whole model. What a dollar and a watt buy is then compared across them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from moesim.advice.recommend import recommend
from moesim.advice.recommendation import Recommendation
from moesim.errors import ConfigError, MoesimError
from moesim.hardware import Cluster, load_cluster
from moesim.hardware.economics import load_economics
from moesim.hardware.sizing import sized
from moesim.model.hf_config import Model

#: devices of a tray, the smallest part of a rack that is rented (assumed)
_TRAY = 4
#: columns of the table of clusters, in order
COLUMNS = (
    "cluster",
    "devices",
    "copies",
    "usd_per_hour",
    "precision",
    "kernels",
    "exchange",
    "moe_layers_ms",
    "moe_layers_tokens_per_s",
    "moe_layers_tokens_per_s_low",
    "moe_layers_tokens_per_s_high",
    "moe_layers_usd_per_million_tokens",
    "moe_layers_joules_per_token",
    "peak_memory_gib",
    "calibration",
    "grade",
    "candidate",
    "why_not",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a model does on one cluster.

    Attributes:
        name: Name of the cluster that was asked for.
        cluster: The cluster, at the size that the budget pays.
        copies: Number of such clusters that serve side by side.
        usd_per_hour: Their price; None where the cost model has none.
        found: The recommendation; None where there is none.
        why_not: The reason against it, in words.
    """

    name: str
    cluster: Cluster
    copies: int
    usd_per_hour: float | None
    found: Recommendation | None
    why_not: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of all devices through all MoE layers; 0 where nothing runs."""
        if self.found is None:
            return 0.0
        best = self.found.best
        return best.tokens_per_s_per_device * self.cluster.num_devices * self.copies

    def row(self) -> dict[str, Any]:
        """Return a flat row with the columns of `COLUMNS`."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {
            "cluster": self.name,
            "devices": self.cluster.num_devices * self.copies,
            "copies": self.copies,
            "usd_per_hour": self.usd_per_hour,
            "why_not": self.why_not,
        }
        if self.found is None:
            return row
        best = self.found.best
        result, table = best.result, best.row()
        row |= {name: table[name] for name in COLUMNS if name in table and row[name] is None}
        slow, fast = (
            result.layer_time_s / t for t in (result.layer_time_high_s, result.layer_time_low_s)
        )
        return row | {
            "exchange": self.cluster.exchange(best.candidate.schedule).name,
            "moe_layers_tokens_per_s": self.tokens_per_s,
            "moe_layers_tokens_per_s_low": self.tokens_per_s * slow,
            "moe_layers_tokens_per_s_high": self.tokens_per_s * fast,
        }


def compare(
    model: str | Model,
    clusters: Sequence[str],
    *,
    budget_usd_per_hour: float | None = None,
    economics: str = "default",
    **asked: Any,
) -> list[Offer]:
    """Recommend for a model on every cluster.

    Args:
        model: A model, or a preset, or the path of a ``config.json`` or its folder.
        clusters: Names of clusters.
        budget_usd_per_hour: What an hour may cost: every cluster is then the largest of its kind
            that it pays, several side by side, or a part of a node; by default its own size.
        economics: Name of the cost and power model.
        **asked: Further arguments of `moesim.advice.recommend.recommend`.

    Returns:
        Offers, the most tokens per second first; those without a design last.

    Raises:
        UnknownNameError: A cluster does not exist.
        ConfigError: A cluster has no price, although a budget is given.
    """
    costs = load_economics(economics)
    offers = []
    for name in clusters:
        cluster, copies, why_not = load_cluster(name), 1, ""
        if budget_usd_per_hour is not None:
            price = costs.usd_per_hour(cluster)
            cluster, copies, why_not = _within(cluster, budget_usd_per_hour, price)
        offer = Offer(
            name=name,
            cluster=cluster,
            copies=copies,
            usd_per_hour=(
                None if costs.unknown_price(cluster) else copies * costs.usd_per_hour(cluster)
            ),
            found=None,
            why_not=why_not,
        )
        if not why_not:
            tried = [_served(model, arranged, economics, asked) for arranged in _arranged(offer)]
            offer = max(tried, key=lambda one: one.tokens_per_s)
        offers.append(offer)
    return sorted(offers, key=lambda offer: -offer.tokens_per_s)


def _arranged(offer: Offer) -> list[Offer]:
    """Return an offer as it is, and with its nodes side by side where a network joins several."""
    cluster = offer.cluster
    if cluster.num_nodes == 1 or not cluster.has_scale_out or len(cluster.groups) > 1:
        return [offer]
    node = sized(cluster, cluster.devices_per_domain)
    return [offer, replace(offer, cluster=node, copies=offer.copies * cluster.num_nodes)]


def _served(model: str | Model, offer: Offer, economics: str, asked: dict[str, Any]) -> Offer:
    """Return an offer with its recommendation, or why there is none."""
    try:
        return replace(offer, found=recommend(model, offer.cluster, economics=economics, **asked))
    except MoesimError as error:
        return replace(offer, why_not=str(error))


def _within(cluster: Cluster, budget: float, price: float) -> tuple[Cluster, int, str]:
    """Return the largest cluster of a kind that a budget pays, how many of it, and why there is
    none.

    Nodes without a network between them serve side by side. Less than a node is a part of it, in
    fours of devices, as trays hold them.
    """
    if not 0 < budget < inf:
        raise ConfigError(f"budget_usd_per_hour: expected a number > 0, got {budget:g}")
    per_device = price / cluster.num_devices
    devices = int(budget / per_device + 1e-9)
    nodes = devices // cluster.devices_per_domain
    if nodes == cluster.num_nodes or (nodes and len(cluster.groups) > 1):
        return cluster, 1, ""
    if nodes and (cluster.has_scale_out or nodes == 1):
        return sized(cluster, nodes * cluster.devices_per_domain), 1, ""
    if nodes:
        return cluster, nodes, ""
    part = devices if devices < _TRAY else devices // _TRAY * _TRAY
    if not part:
        return cluster, 0, f"one device costs {per_device:,.2f} USD/h"
    if cluster.is_torus or len(cluster.groups) > 1:
        return cluster, 0, f"its smallest part costs {price / cluster.num_nodes:,.0f} USD/h"
    return sized(cluster, part), 1, ""


__all__ = ["COLUMNS", "Offer", "compare"]
