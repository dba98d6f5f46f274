"""Asynchronous replication of experts: copies on other devices, refreshed every few steps.

Dense weights have data-parallel peers; what a device alone holds are the states of its experts, and
its share of the dense optimizer states where ZeRO divides them. The latter go to a peer in every
step, so that nothing of the dense part is lost. With copies of experts elsewhere a failure does not
roll the job back: the lost experts resume from their last copy, and only their updates since then
are lost. A copy is as old as the steps since its refresh
began: between the transfer and the interval plus the transfer, interval / 2 + transfer on average.

Every device sends its experts' states to as many devices as there are copies, all at once, while
steps run. NICs have time for that in the share of a step in which the step leaves them idle; what
takes longer than the interval leaves is exposed.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

from moesim.engines.run import run
from moesim.errors import ConfigError, require, require_int
from moesim.hardware import Cluster
from moesim.hardware.sizing import sized
from moesim.lowering.alltoall import exchange_program
from moesim.operations.failure_draws import Topology
from moesim.operations.training_job import TrainingJob

CopyPlace = Literal["device", "node", "switch"]
COPY_PLACES: tuple[CopyPlace, ...] = ("device", "node", "switch")
#: nodes on which traffic is simulated; all nodes do the same
_NODES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationPolicy:
    """How many copies of experts there are, where, and how fresh.

    Attributes:
        degree: Copies beside an expert's own; 0 for none.
        interval_steps: Steps between two refreshes.
        where: How far copies are away: on another ``device`` of the node, on another ``node``, or
            behind another ``switch``.
        failover_s: Seconds in which communicators are rebuilt without the lost devices.

    Raises:
        ConfigError: A number is out of range.
    """

    degree: int = 0
    interval_steps: int = 10
    where: CopyPlace = "node"
    failover_s: float = 30.0

    def __post_init__(self) -> None:
        require_int("replication.degree", self.degree, 0)
        require_int("replication.interval_steps", self.interval_steps, 1)
        require(
            self.where in COPY_PLACES, "replication.where", " or ".join(COPY_PLACES), self.where
        )
        require(self.failover_s >= 0, "replication.failover_s", "a number >= 0", self.failover_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationCosts:
    """What copies cost a job, and how old they are.

    Attributes:
        policy: The copies.
        stride: Devices from an expert's own device to its first copy's, and on to the next.
        bytes_per_device: States of experts that a device alone holds.
        transfer_s: Seconds in which a refresh travels, beside the step's own traffic.
        exposed_s: Seconds of these for which a refresh stops the job.
        restore_s: Seconds in which the experts of a device come back from copies.
        memory_bytes: Bytes of copies on each device or its host.
    """

    policy: ReplicationPolicy
    stride: int
    bytes_per_device: float
    transfer_s: float
    exposed_s: float
    restore_s: float
    memory_bytes: float

    def transfer_steps(self, step_s: float) -> int:
        """Return the steps that begin while a refresh travels."""
        return ceil(self.transfer_s / step_s - 1e-9)

    def age_steps(self, position: int, step_s: float) -> int:
        """Return how many steps the last complete copies are behind.

        Args:
            position: Steps that have been computed.
            step_s: Time of a step.
        """
        every = self.policy.interval_steps
        there = max(position - self.transfer_steps(step_s), 0)
        return position - there // every * every

    def holders(self, device: int, devices: int) -> set[int]:
        """Return the devices that hold copies of the experts of a device."""
        return {
            (device + copy * self.stride) % devices for copy in range(1, self.policy.degree + 1)
        }


def replication_costs(policy: ReplicationPolicy, job: TrainingJob) -> ReplicationCosts:
    """Return what copies cost a job.

    Raises:
        ConfigError: There are fewer places than copies.
    """
    stride = _stride(policy, job.topology)
    own = job.expert_bytes / job.devices
    alone_s = _transfer_s(policy, job, own, stride) if policy.degree else 0.0
    free = 1.0 - job.network_busy_fraction
    transfer_s = alone_s / free
    # an upper bound: as if all dense states were divided over the devices
    dense_s = job.dense_bytes / job.devices / job.nic_bytes_per_s / free
    there_s = policy.interval_steps * (job.step_s - dense_s)
    return ReplicationCosts(
        policy=policy,
        stride=stride,
        bytes_per_device=own,
        transfer_s=transfer_s,
        exposed_s=max(transfer_s - there_s, 0.0) if policy.degree else 0.0,
        # devices that restore are alone on the network: one copy, at full rate
        restore_s=alone_s / max(policy.degree, 1),
        memory_bytes=own * policy.degree,
    )


def _stride(policy: ReplicationPolicy, topology: Topology) -> int:
    sizes = {
        "device": 1,
        "node": topology.devices_per_node,
        "switch": topology.devices_per_switch,
    }
    stride = sizes[policy.where]
    places = topology.devices // stride
    if policy.degree and places <= policy.degree:
        raise ConfigError(
            f"replication.degree: expected fewer copies than the {places} places of kind "
            f"{policy.where} of {topology.devices} devices, got {policy.degree}"
        )
    return stride


def _transfer_s(policy: ReplicationPolicy, job: TrainingJob, own: float, stride: int) -> float:
    """Return the seconds of a refresh on an idle network."""
    if job.cluster is None or own == 0:
        return own * policy.degree / job.nic_bytes_per_s
    part = _part(job.cluster)
    count = part.num_devices
    bytes_SD = np.zeros((count, count))
    senders = np.arange(count)
    # nodes beyond the part count as its own, since links are the same
    near = min(stride, part.devices_per_domain if count > part.devices_per_domain else 1)
    for copy in range(policy.degree):
        shift = near * (1 + copy % (count // near - 1))
        bytes_SD[senders, (senders + shift) % count] += own
    return run(exchange_program(part, bytes_SD), "flow").makespan_s


def _part(cluster: Cluster) -> Cluster:
    nodes = cluster.num_devices // cluster.devices_per_domain
    if nodes <= _NODES:
        return cluster
    return sized(cluster, _NODES * cluster.devices_per_domain)
