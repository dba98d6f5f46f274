"""Double numbers of the hardware and of the design, one at a time, and run each changed design.

`System` runs a changed design. Its two workloads are ``prefill``, a fixed number of tokens per
device, and ``decode``, one token of each sequence whose KV cache fits on the device, which is what
HBM capacity buys. Only the MoE layer is simulated. Attention, which reads that cache, is not, so
decode undervalues HBM bandwidth.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from moesim.advice.gains import Outcome, outcome
from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError, MoesimError
from moesim.hardware import Cluster
from moesim.hardware.exchanges import exchange_named
from moesim.model import Precision
from moesim.simulation.memory import decode_workload

#: tokens of a device in prefill, and the load distribution of both workloads
PREFILL, SKEW = 4096, "zipf:0.8"
NUMBERS = (
    "hbm_gb_per_s",
    "hbm_gib",
    "num_sms",
    "bf16_tflops",
    "l2_mib",
    "nvlink_gb_per_s",
    "nic_gb_per_s",
)
#: names of the changes that answers refer to
HBM, EQUAL_LOSS = "2x HBM bandwidth and GiB", "2x experts at equal loss"
NVLINK = "2x nvlink_gb_per_s"
_EXCHANGES = ("nccl", "deepep_normal", "deepep_ll")
_PLACEMENTS = ("eplb", "eplb_hierarchical")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """How changed designs are run.

    Attributes:
        cluster: The unchanged cluster.
        context: Tokens of a decoded sequence; 0 means prefill.
        seed: Seed of the routing.
        replan: Whether every change gets the placement and exchange that suit it best.
    """

    cluster: Cluster
    context: int
    seed: int
    replan: bool

    def workload(self, candidate: Candidate, cluster: Cluster) -> Workload:
        """Return the tokens of a device: a fixed number, or the sequences whose KV cache fits.

        Args:
            candidate: The design, whose weights compete with the cache.
            cluster: The hardware it runs on.

        Raises:
            CapacityError: Not even one sequence fits in addition to the weights.
        """
        if self.context:
            return decode_workload(candidate, cluster, self.context, routing=SKEW, seed=self.seed)
        return Workload(num_tokens_per_device=PREFILL, routing=SKEW, seed=self.seed)

    def run(
        self, candidate: Candidate, cluster: Cluster, *, spare: int = 1, plan: bool = False
    ) -> Outcome:
        """Simulate a design on all devices of a cluster.

        Args:
            candidate: The design; its experts spread over all devices.
            cluster: The hardware it runs on.
            spare: Slots for replicas that each device has beyond its experts.
            plan: Whether to choose the fastest placement, exchange and micro-batches.

        Raises:
            ConfigError: No plan suits this cluster.
            MoesimError: The design cannot be simulated.
        """
        experts, devices = candidate.layer.num_experts, cluster.num_devices
        slots = max(experts // devices + spare, -(-experts // devices))
        spread = replace(
            candidate,
            parallelism=Parallelism(ep=devices),
            num_replicas=slots * devices - experts,
        )
        work = self.workload(spread, cluster)
        if not (plan or self.replan):
            return outcome(spread, cluster, work)
        own, tried, reason = self.cluster.exchange().name, [], None
        others = [
            name for name in _EXCHANGES if name != own and exchange_named(name).runs_on(cluster)
        ]
        for placement, exchange, parts in product(_PLACEMENTS, [own, *others], (1, 2)):
            schedule = Schedule(exchange=exchange, num_micro_batches=parts)
            design = replace(spread, placement=placement, schedule=schedule)
            try:
                tried.append(outcome(design, cluster, work))
            except MoesimError as error:  # this cluster or number of tokens does not allow the plan
                reason = error
        if not tried:
            raise ConfigError(
                f"{candidate.label}: expected a plan for {cluster.name}, got none: {reason}"
            )
        return max(tried, key=lambda found: found.result.tokens_per_s)


def hardware(cluster: Cluster) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield what may be doubled in a cluster.

    Args:
        cluster: The unchanged cluster.

    Yields:
        The name of the change, the arguments of `Cluster.with_` that make it, and the key that may
        take any factor, empty where no factor but two makes sense.
    """
    for key in NUMBERS:
        if key != "nic_gb_per_s" or cluster.nic_bytes_per_s:
            yield f"2x {key}", {key: "2x"}, key
    yield HBM, {"hbm_gb_per_s": "2x", "hbm_gib": "2x"}, ""
    nodes, per_node = cluster.num_nodes, cluster.devices_per_domain
    if nodes == 1:
        yield "2x devices, all in one domain", {"devices_per_node": 2 * per_node}, ""
        return
    wider = {"num_nodes": nodes // 2, "devices_per_node": 2 * per_node}
    yield "2x devices per NVLink domain", wider, ""
    yield "one NVLink domain", {"num_nodes": 1, "devices_per_node": nodes * per_node}, ""


def designs(base: Candidate) -> Iterator[tuple[str, Candidate, int]]:
    """Yield designs with something doubled, or in another number format.

    Args:
        base: The unchanged design.

    Yields:
        The name of the change, the design, and how many slots each device has to spare.
    """
    layer = base.layer
    experts = {"num_experts": 2 * layer.num_experts}
    half = {"top_k": 2 * layer.top_k}
    half["expert_intermediate_size"] = layer.widest // 2
    twice: dict[str, dict[str, Any]] = {
        "2x experts": experts,
        "2x top-k, half width": half,
        "2x experts and top-k, half width": experts | half,
        "bf16": {"precision": Precision.named("bf16")},
        "int4 weights": {"precision": Precision.named("int4")},
    }
    for name, changed in twice.items():
        yield name, replace(base, layer=replace(layer, **changed)), 1
    for spare in (0, 2):
        yield f"{spare} replicas per device", base, spare
