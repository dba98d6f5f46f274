"""Exchanges: how tokens travel to the devices of their experts and back, one record for each.

A record says everything about its exchange: the communication kernel that is priced, the pattern of
its copies, the calibration its prices rest on, the fabrics it runs on, and the flags that select it
in a serving engine. Nothing else in moesim lists exchanges. A new one is a record here, or anywhere
else with `add_exchange`: kernel and pattern are names of what moesim has, or functions of one's
own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware.profile import Profile

Pattern = Literal["direct", "two_hop", "staged", "all_gather"]


class Machine(Protocol):
    """What an exchange asks of a cluster: a part of `moesim.hardware.cluster.Cluster`."""

    @property
    def is_torus(self) -> bool:
        """Whether links to neighbours join its devices."""
        ...

    @property
    def num_nodes(self) -> int:
        """Nodes, each a domain of its own."""
        ...

    @property
    def scale_up_kind(self) -> str | None:
        """What joins the devices of a domain."""
        ...

    @property
    def groups(self) -> tuple[tuple[Profile, int], ...]:
        """Devices, and how many of each."""
        ...


def _anywhere(cluster: Machine) -> bool:
    return True


def _on_ports(cluster: Machine) -> bool:
    """GPU kernels write through ports; on a torus nothing runs them."""
    return not cluster.is_torus


def _in_one_domain(cluster: Machine) -> bool:
    return not cluster.is_torus and cluster.num_nodes == 1


def _on_torus(cluster: Machine) -> bool:
    return cluster.is_torus


def _always(cluster: Machine, phase: str) -> bool:
    return True


def _never(cluster: Machine, phase: str) -> bool:
    return False


def _across_nodes(cluster: Machine, phase: str) -> bool:
    return cluster.num_nodes > 1


def _nvlink_in(phase_of_mode: str) -> Callable[[Machine, str], bool]:
    """DeepEP needs NVIDIA GPUs behind NVSwitch, and has a mode for each phase."""

    def suits(cluster: Machine, phase: str) -> bool:
        nvidia = all(profile.compute_capability is not None for profile, _ in cluster.groups)
        return nvidia and cluster.scale_up_kind == "switch" and phase == phase_of_mode

    return suits


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One way of moving tokens between devices.

    Attributes:
        name: The name that schedules, clusters, spaces and tables use.
        about: What it does, in a line.
        kernel: The communication kernel that is priced: a name of
            `moesim.costs.comm.choose.KERNELS`, or a function of (cluster, number of SMs or None)
            that returns a `moesim.costs.comm.work.CommKernel`.
        pattern: The hops of its copies: ``direct``, straight to each device; ``two_hop``, across
            domains to the device of the own rail, which forwards, both hops side by side;
            ``staged``, inside the domain first, then across; ``all_gather``, every token to every
            device. Or a function of (traffic, devices of a domain) that returns a
            `moesim.lowering.movement.Movement`.
        every_choice: Whether each choice of a token travels as a copy of its own, instead of one
            copy per device.
        calibration: The calibration file that its prices rest on; empty for none.
        runs_on: Whether the kernel belongs on a cluster's fabric. Priced elsewhere, its prices rest
            on nothing.
        suits: Whether `moesim recommend` tries it on a cluster in a phase, where it is not the
            cluster's own.
        launch: Serving engine -> flags that select it there; no entry where the engine does not
            have it.
    """

    name: str
    about: str
    kernel: str | Callable[[Any, int | None], Any]
    pattern: Pattern | Callable[[Any, int], Any] = "direct"
    every_choice: bool = False
    calibration: str = ""
    runs_on: Callable[[Machine], bool] = _on_ports
    suits: Callable[[Machine, str], bool] = _always
    launch: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def hops_across(self) -> bool:
        """Whether copies change hands on their way across domains."""
        return self.pattern in ("two_hop", "staged")

    @property
    def follows_placement(self) -> bool:
        """Whether where experts sit decides how many copies travel."""
        return not self.every_choice and self.pattern != "all_gather"


EXCHANGES: dict[str, Exchange] = {}


def add_exchange(exchange: Exchange) -> Exchange:
    """Make an exchange known by its name, and return it.

    Raises:
        ConfigError: Another exchange has that name.
    """
    known = EXCHANGES.get(exchange.name, exchange)
    if known != exchange:
        raise ConfigError(
            f"exchange {exchange.name!r}: expected a new name, got that of {known.about!r}"
        )
    EXCHANGES[exchange.name] = exchange
    return exchange


def exchange_named(name: str) -> Exchange:
    """The exchange of a name.

    Raises:
        UnknownNameError: Nobody added one; with the near matches.
    """
    if name not in EXCHANGES:
        raise UnknownNameError("exchange", name, EXCHANGES)
    return EXCHANGES[name]


add_exchange(
    Exchange(
        name="nccl",
        about=(
            "one all-to-all: a copy for each device that holds any of a token's experts, "
            "straight to it"
        ),
        kernel="nccl",
        calibration="nccl",
    )
)
add_exchange(
    Exchange(
        name="deepep_normal",
        about="DeepEP's high-throughput mode: across domains one copy per token and domain, to "
        "the device of the same rail, which forwards it over the scale-up fabric; both hops "
        "run side by side",
        kernel="deepep_normal",
        pattern="two_hop",
        calibration="deepep-normal",
        suits=_nvlink_in("prefill"),
        launch={
            "sglang": "--moe-a2a-backend deepep --deepep-mode normal",
            "vllm": "--all2all-backend deepep_high_throughput",
        },
    )
)
add_exchange(
    Exchange(
        name="deepep_ll",
        about="DeepEP's low-latency mode: a copy per choice, straight to the expert's device",
        kernel="deepep_ll",
        every_choice=True,
        calibration="deepep-ll",
        suits=_nvlink_in("decode"),
        launch={
            "sglang": "--moe-a2a-backend deepep --deepep-mode low_latency",
            "vllm": "--all2all-backend deepep_low_latency",
        },
    )
)
add_exchange(
    Exchange(
        name="nvl72",
        about="writes into peers' memory inside one NVLink domain, a copy per device",
        kernel="nvl72",
        calibration="nvl72",
        runs_on=_in_one_domain,
        suits=_never,
    )
)
add_exchange(
    Exchange(
        name="hierarchical",
        about="first to the device of the destination's rail inside the own domain, then across, "
        "one after the other (as in Tutel's and DeepSpeed-MoE's two-dimensional all-to-all)",
        kernel="nccl",
        pattern="staged",
        calibration="nccl",
        suits=_across_nodes,
    )
)
add_exchange(
    Exchange(
        name="all_gather",
        about=(
            "every token to every device, results by reduce-scatter (what tensor-parallel stacks "
            "do)"
        ),
        kernel="all_gather",
        pattern="all_gather",
        calibration="nccl",
        launch={"sglang": "", "vllm": "--all2all-backend allgather_reducescatter"},
    )
)
add_exchange(
    Exchange(
        name="ici",
        about="straight to each device along the torus",
        kernel="ici",
        calibration="ici-assumed",
        runs_on=_on_torus,
    )
)
add_exchange(
    Exchange(
        name="host",
        about=(
            "as nccl, at the rate and start that `moesim measure` found between the ranks of one "
            "host"
        ),
        kernel="host",
        runs_on=_anywhere,
        suits=_never,
    )
)
add_exchange(
    Exchange(
        name="ideal",
        about="as nccl without any overhead: bytes over the data sheet's rate",
        kernel="ideal",
        runs_on=_anywhere,
        suits=_never,
    )
)
