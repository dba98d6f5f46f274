"""A job in training as days see it: devices, the time of a step, and its states."""

from dataclasses import dataclass, field

from moesim.costs.training.memory import state_bytes_per_param
from moesim.design.training.model import TrainedModel
from moesim.errors import require, require_int
from moesim.hardware import Cluster
from moesim.model.weights import total
from moesim.operations.failure_draws import Topology
from moesim.simulation.training.result import TrainResult

_WEIGHT_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A job in training.

    Attributes:
        topology: Its devices.
        step_s: Time of a step without failures.
        samples_per_step: Sequences of a step.
        tokens_per_sample: Tokens of a sequence.
        dense_bytes: States of everything but routed experts, of one copy of the model: weights and
            optimizer.
        expert_bytes: States of the routed experts of all layers.
        num_experts: Routed experts of all layers together.
        nic_bytes_per_s: Bytes of a second that a device sends to other nodes.
        network_busy_fraction: Share of a step in which NICs are busy with the step itself.
        active_params: Parameters that a token uses; None without an estimate of loss.
        experts_over_top_k: Experts of a layer over those that a token chooses.
        cluster: The cluster on which traffic of replicas is simulated; None for bytes over
            ``nic_bytes_per_s``.

    Raises:
        ConfigError: A number is out of range.
    """

    topology: Topology
    step_s: float
    samples_per_step: int = 1
    tokens_per_sample: float = 1.0
    dense_bytes: float = 0.0
    expert_bytes: float = 0.0
    num_experts: int = 1
    nic_bytes_per_s: float = 50e9
    network_busy_fraction: float = 0.0
    active_params: float | None = None
    experts_over_top_k: float = 1.0
    cluster: Cluster | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require(self.step_s >= 1e-6, "job.step_s", "a number >= 1e-6", self.step_s)
        for key in ("tokens_per_sample", "nic_bytes_per_s"):
            require(getattr(self, key) > 0, f"job.{key}", "a number > 0", getattr(self, key))
        for key in ("dense_bytes", "expert_bytes"):
            require(getattr(self, key) >= 0, f"job.{key}", "a number >= 0", getattr(self, key))
        for key in ("samples_per_step", "num_experts"):
            require_int(f"job.{key}", getattr(self, key), 1)
        busy = self.network_busy_fraction
        require(0 <= busy < 1, "job.network_busy_fraction", "a fraction >= 0 and < 1", busy)

    @property
    def devices(self) -> int:
        """The devices of the job."""
        return self.topology.devices

    @property
    def state_bytes(self) -> float:
        """The bytes of all states, which a full checkpoint holds."""
        return self.dense_bytes + self.expert_bytes


def job_of(result: TrainResult, devices_per_switch: int = 256) -> TrainingJob:
    """Return the job of a simulated training step.

    NICs count as busy while a step waits for an exchange; what it hides is not counted.

    Args:
        result: The step.
        devices_per_switch: Devices behind a switch.

    Raises:
        ConfigError: The devices are no whole nodes.
    """
    trained, cluster = result.trained, result.cluster
    dense, experts, count = _states(trained)
    node = min(cluster.devices_per_domain, cluster.num_devices)
    moe = trained.spec.moe
    return TrainingJob(
        topology=Topology(
            devices=cluster.num_devices,
            devices_per_node=node,
            devices_per_switch=max(devices_per_switch // node, 1) * node,
        ),
        step_s=result.time_s,
        samples_per_step=trained.plan.global_batch,
        tokens_per_sample=float(trained.plan.sequence),
        dense_bytes=dense,
        expert_bytes=experts,
        num_experts=max(count, 1),
        nic_bytes_per_s=cluster.nic_bytes_per_s or cluster.link_bytes_per_s,
        network_busy_fraction=min(result.exposed_s / result.time_s, 0.99),
        active_params=float(trained.spec.active_params),
        experts_over_top_k=moe.num_experts / moe.top_k if moe is not None else 1.0,
        cluster=cluster,
    )


def _states(trained: TrainedModel) -> tuple[float, float, int]:
    """Return bytes of dense states and of routed experts of one copy, and the experts' number."""
    spec = trained.spec
    routed, count = 0.0, 0
    for block in spec.blocks:
        if block.moe is not None:
            routed += total(block.moe.expert_weights(spec.hidden_size))
            count += block.moe.num_experts
    each = _WEIGHT_BYTES + state_bytes_per_param(trained)
    return (spec.total_params - routed) * each, routed * each, count
