"""Each exchange, a way for tokens to travel to their experts and back, is one record.

A record holds everything about its exchange: the communication kernel that is priced, the pattern
of its copies, the calibration behind its prices, the fabrics it runs on, and the flags that select
it in a serving engine. No other module of moesim lists exchanges. To add one, add a record here, or
call `add_exchange` anywhere else; kernel and pattern are names that moesim knows, or functions of
your own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware.profile import Profile

Pattern = Literal["direct", "two_hop", "staged", "all_gather"]


class Machine(Protocol):
    """The properties of a cluster that an exchange reads, a part of
    `moesim.hardware.cluster.Cluster`.
    """

    @property
    def is_torus(self) -> bool:
        """Whether links to neighbors join the devices."""
        ...

    @property
    def num_nodes(self) -> int:
        """The number of nodes, each of which is one domain."""
        ...

    @property
    def scale_up_kind(self) -> str | None:
        """The kind of fabric that joins the devices of a domain."""
        ...

    @property
    def groups(self) -> tuple[tuple[Profile, int], ...]:
        """The device profiles, each with its number of devices."""
        ...


def _anywhere(cluster: Machine) -> bool:
    return True


def _on_ports(cluster: Machine) -> bool:
    """Return whether devices have ports, through which GPU kernels write; on a torus they cannot
    run.
    """
    return not cluster.is_torus


def _behind_switches(cluster: Machine) -> bool:
    """Return whether a switch joins the devices of a node: kernels that write into peers' memory
    need every pair of a node to reach each other, which PCIe does not promise.
    """
    return cluster.scale_up_kind in (None, "switch")


def _in_one_domain(cluster: Machine) -> bool:
    return _behind_switches(cluster) and cluster.num_nodes == 1


def _on_torus(cluster: Machine) -> bool:
    return cluster.is_torus


def _always(cluster: Machine, phase: str) -> bool:
    return True


def _never(cluster: Machine, phase: str) -> bool:
    return False


def _across_nodes(cluster: Machine, phase: str) -> bool:
    return cluster.num_nodes > 1


def _nvlink_in(phase_of_mode: str) -> Callable[[Machine, str], bool]:
    """Return a test for DeepEP, which needs NVIDIA GPUs behind NVSwitch and has one mode per
    phase.
    """

    def suits(cluster: Machine, phase: str) -> bool:
        nvidia = all(profile.compute_capability is not None for profile, _ in cluster.groups)
        return nvidia and cluster.scale_up_kind == "switch" and phase == phase_of_mode

    return suits


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One way of moving tokens between devices.

    Attributes:
        name: The name that schedules, clusters, spaces and tables use.
        about: One line that says what the exchange does.
        kernel: The communication kernel that is priced: a name in
            `moesim.costs.comm.choose.KERNELS`, or a function of (cluster, number of SMs or None)
            that returns a `moesim.costs.comm.work.CommKernel`.
        pattern: The hops of the copies. ``direct`` sends them straight to each device; ``two_hop``
            sends them across domains to the device on the same rail, which forwards them, and both
            hops run at the same time; ``staged`` sends them inside the domain first, then across;
            ``all_gather`` sends every token to every device. The pattern may also be a function of
            (traffic, devices of a domain) that returns a `moesim.lowering.movement.Movement`.
        every_choice: Whether each choice of a token travels as a separate copy, instead of one copy
            per device.
        calibration: The calibration file behind its prices; empty if there is none.
        runs_on: A function of a cluster: whether the kernel runs on its fabric. On any other fabric
            its prices have no basis.
        suits: A function of (cluster, phase): whether `moesim recommend` tries the exchange there
            if it is not the exchange of the cluster.
        launch: Serving engine (``sglang``, ``vllm``, ``trtllm``) -> what selects the exchange
            there: flags of the server, for ``trtllm`` an environment variable, next to
            ``enable_attention_dp``; an empty text if the engine does so by default. An engine
            without the exchange has no entry. An empty mapping means that no serving engine
            launches the exchange, so that a recommendation to serve a model must not name it.
            Sources: the documentation of SGLang (expert parallelism, September 2026) and vLLM
            (expert-parallel deployment and ``--all2all-backend``, 0.19 and later), and
            TensorRT-LLM's choice of the communication of an MoE layer
            (``communication_factory.py``, 1.3).
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
        """Whether a device forwards copies on their route across domains."""
        return self.pattern in ("two_hop", "staged")

    @property
    def follows_placement(self) -> bool:
        """Whether the placement of experts changes the number of copies that travel."""
        return not self.every_choice and self.pattern != "all_gather"


EXCHANGES: dict[str, Exchange] = {}


def add_exchange(exchange: Exchange) -> Exchange:
    """Register an exchange under its name and return it.

    Raises:
        ConfigError: Another exchange already has that name.
    """
    known = EXCHANGES.get(exchange.name, exchange)
    if known != exchange:
        raise ConfigError(
            f"exchange {exchange.name!r}: expected a new name, got that of {known.about!r}"
        )
    EXCHANGES[exchange.name] = exchange
    return exchange


def exchange_named(name: str) -> Exchange:
    """Return the exchange with a given name.

    Raises:
        UnknownNameError: No exchange has that name; the text lists the near matches.
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
        # vLLM's naive backend broadcasts, and TensorRT-LLM's NCCL EP has kernels of its own
        launch={},
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
        runs_on=_behind_switches,
        suits=_nvlink_in("prefill"),
        launch={
            "sglang": "--moe-a2a-backend deepep --deepep-mode normal",
            "vllm": "--all2all-backend deepep_high_throughput",
            "trtllm": "TRTLLM_FORCE_COMM_METHOD=DEEPEP",
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
        runs_on=_behind_switches,
        suits=_nvlink_in("decode"),
        launch={
            "sglang": "--moe-a2a-backend deepep --deepep-mode low_latency",
            "vllm": "--all2all-backend deepep_low_latency",
            "trtllm": "TRTLLM_FORCE_COMM_METHOD=DEEPEPLOWLATENCY",
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
        launch={
            "sglang": "--moe-a2a-backend flashinfer",
            "vllm": "--all2all-backend flashinfer_nvlink_one_sided",
            "trtllm": "TRTLLM_FORCE_COMM_METHOD=NVLINK_ONE_SIDED",
        },
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
        launch={
            "sglang": "",
            "vllm": "--all2all-backend allgather_reducescatter",
            "trtllm": "TRTLLM_FORCE_COMM_METHOD=ALLGATHER",
        },
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
