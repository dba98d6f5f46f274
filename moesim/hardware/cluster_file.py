"""The cluster file as people write it: devices, the fabric inside a node, and the network between
nodes.

*Scale-up* is the fabric of one domain (a node, an NVLink rack, a TPU slice); *scale-out* is the
network between domains.
"""

from typing import Literal

from pydantic import AliasChoices, Field, model_validator

from moesim.files.toml import Quantity, Sourced, Strict
from moesim.limits import MOST_DEVICES
from moesim.units import GB

ScaleUpKind = Literal["switch", "mesh", "pcie", "torus"]
Routing = Literal["dimension_ordered", "multi_path", "single_path"]


class ScaleUp(Strict):
    """The table ``[scale_up]``: the fabric inside a domain.

    ``switch`` has one port per device into a non-blocking switch (NVSwitch, NVLink rack). ``mesh``
    has a link between every two devices (xGMI). ``pcie`` has ports into PCIe switches of
    ``devices_per_switch``, joined by ``uplink_gb_per_s``. ``torus`` has links to the neighbors on
    each axis (TPU). On a torus, equally short routes share the traffic of a pair
    (``dimension_ordered``, or in every order of axes with ``multi_path``), or each pair uses one of
    them, like static route tables (``single_path``).
    """

    kind: ScaleUpKind
    #: rate in one direction of the port of a device (switch, pcie), of the link to one peer (mesh),
    #: or of one link (torus)
    link_gb_per_s: Quantity
    hop_us: Quantity | None = None
    devices_per_switch: int | None = Field(default=None, ge=1)
    uplink_gb_per_s: Quantity | None = None
    axes: list[int] = []
    #: an axis whose size is a multiple of this closes to a ring; with 0 none does
    wrap_multiple_of: int = Field(default=1, ge=0)
    #: whether this is a k x k x 2k torus whose short axes close with a shift of k along the long
    #: one (Camara et al. 2010)
    twisted: bool = False
    routing: Routing = "dimension_ordered"

    @property
    def bridge(self) -> tuple[float, int]:
        """The rate of the link between a PCIe switch and the host in one direction, in bytes per
        second, and the number of devices that share it; 0 and 1 without PCIe switches.
        """
        if self.kind != "pcie" or self.uplink_gb_per_s is None or self.devices_per_switch is None:
            return 0.0, 1
        return self.uplink_gb_per_s.value * GB, self.devices_per_switch

    @model_validator(mode="after")
    def _whole(self) -> "ScaleUp":
        if self.kind == "torus" and (not self.axes or min(self.axes) < 1):
            raise ValueError(f"@axes@the size of every axis, such as [4, 4, 8]@{self.axes}")
        if self.kind != "torus" and (self.axes or self.twisted):
            raise ValueError(f"@axes@none: a {self.kind} has no axes@{self.axes}")
        if self.twisted:
            short = sorted(self.axes)
            if len(short) != 3 or self.axes != short or not short[0] == short[1] == short[2] / 2:
                raise ValueError(f"@axes@k x k x 2k for a twisted torus@{self.axes}")
        if self.kind == "pcie" and (
            self.devices_per_switch is None or self.uplink_gb_per_s is None
        ):
            raise ValueError("@devices_per_switch@it and uplink_gb_per_s for pcie@nothing")
        return self


class ScaleOut(Strict):
    """The table ``[scale_out]``: the network between domains. Every device has its own NIC.

    With ``rail``, device i of every node connects to leaf switch i (rail-optimized). With
    ``fat_tree``, the devices of ``nodes_per_leaf`` nodes share a leaf. Traffic that leaves its leaf
    crosses an uplink whose rate is that of all NICs of the leaf divided by ``oversubscription``.
    """

    kind: Literal["rail", "fat_tree"] = "rail"
    nic_gb_per_s: Quantity
    oversubscription: float = Field(default=1.0, ge=1)
    nodes_per_leaf: int = Field(default=1, ge=1)


class Group(Strict):
    """The table ``[[groups]]``: nodes with one kind of device in a mixed cluster, in order, with
    their own link rates if these differ.
    """

    profile: str
    num_nodes: int = Field(ge=1)
    link_gb_per_s: Quantity | None = None
    nic_gb_per_s: Quantity | None = None


class ClusterFile(Sourced):
    """The content of ``hw_profiles/clusters/NAME.toml``."""

    title: str
    aliases: list[str] = []
    profile: str | None = None
    groups: list[Group] = []
    num_nodes: int = Field(ge=1, le=MOST_DEVICES)
    devices_per_node: int = Field(ge=1, le=MOST_DEVICES)
    #: exchange that candidates use if they name none; older files called it dispatch, and the
    #: digest still does
    exchange: str = Field(
        default="nccl",
        validation_alias=AliasChoices("exchange", "dispatch"),
        serialization_alias="dispatch",
    )
    scale_up: ScaleUp | None = None
    scale_out: ScaleOut | None = None

    @model_validator(mode="after")
    def _joined(self) -> "ClusterFile":
        if (self.profile is None) == (not self.groups):
            raise ValueError(
                "@profile@either a profile or [[groups]]@" + ("both" if self.groups else "neither")
            )
        if self.num_nodes * self.devices_per_node > MOST_DEVICES:
            raise ValueError(
                f"@num_nodes@at most {MOST_DEVICES} devices in all"
                f"@{self.num_nodes * self.devices_per_node}"
            )
        if self.groups and sum(g.num_nodes for g in self.groups) != self.num_nodes:
            raise ValueError(
                f"@num_nodes@the nodes of all groups, {sum(g.num_nodes for g in self.groups)}"
                f"@{self.num_nodes}"
            )
        if self.devices_per_node > 1 and self.scale_up is None:
            raise ValueError(
                "@scale_up@a [scale_up] table that joins the devices of a node@nothing"
            )
        if self.num_nodes > 1 and self.scale_out is None:
            raise ValueError("@scale_out@a [scale_out] table that joins the nodes@nothing")
        up = self.scale_up
        if up is not None and up.kind == "torus":
            size = 1
            for axis in up.axes:
                size *= axis
            if size != self.devices_per_node:
                raise ValueError(
                    "@scale_up.axes@axes that multiply to devices_per_node = "
                    f"{self.devices_per_node}@{'x'.join(map(str, up.axes))} = {size}"
                )
        if (
            up is not None
            and up.devices_per_switch
            and self.devices_per_node % up.devices_per_switch
        ):
            raise ValueError(
                "@scale_up.devices_per_switch@a divisor of devices_per_node = "
                f"{self.devices_per_node}@{up.devices_per_switch}"
            )
        return self
