"""Add the compute and memory of every device to a program, and phases on them as one op per device.

A mixed cluster has several kinds of device; each kind prices a phase for its own devices.

Shape legend: D devices.
"""

from dataclasses import dataclass

import numpy as np

from moesim.costs.devices.primitives import Kernels, kernels_for
from moesim.costs.phase import PhaseCost
from moesim.hardware import Cluster
from moesim.program.builder import Demands, ProgramBuilder

Array = np.ndarray
#: (price model, slice of its devices) for each kind of device; the slices follow one another
Groups = tuple[tuple[Kernels, slice], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Devices:
    """The resources ``sm`` and ``hbm`` of D devices in a program.

    Attributes:
        builder: The program.
        sm_D: Compute resource of each device, in FLOP/s at the peak of the layer's format.
        hbm_D: Memory resource of each device, in bytes per second of the data sheet.
        both_DM: The two of each device: ndarray of shape (D, 2).
        flops_per_s_D: Peak FLOP/s of each device.
        bytes_per_s_D: Memory bandwidth of each device by its data sheet.
        groups: The kinds of device.
    """

    builder: ProgramBuilder
    sm_D: Array
    hbm_D: Array
    both_DM: Array
    flops_per_s_D: Array
    bytes_per_s_D: Array
    groups: Groups

    @classmethod
    def of(
        cls, cluster: Cluster, fmt: str, builder: ProgramBuilder, *, num_comm_sms: int = 0
    ) -> "Devices":
        """Add the devices of a cluster to a program.

        Args:
            cluster: The cluster whose devices are added.
            fmt: Format whose peak the compute resource counts in.
            builder: The program they are added to.
            num_comm_sms: SMs that communication kernels hold while compute runs. They are a fixed
                partition, since a demand in proportion to progress would slow the transfer and
                undercount the SMs when the fabric is congested.
        """
        sizes = [count for _, count in cluster.groups]
        flops = np.repeat([profile.peak(fmt) for profile, _ in cluster.groups], sizes)
        # each device has the rates of its own kind
        rate = np.repeat(
            [profile.hbm_bandwidth_bytes_per_s for profile, _ in cluster.groups], sizes
        )
        # at least a tenth of the SMs is left to compute
        taken = np.repeat(
            [min(num_comm_sms / profile.num_sms, 0.9) for profile, _ in cluster.groups], sizes
        )
        ends = np.cumsum(sizes)
        groups = tuple(
            (kernels_for(profile), slice(int(end - size), int(end)))
            for (profile, _), size, end in zip(cluster.groups, sizes, ends, strict=True)
        )
        sm_D = builder.resources("sm", flops * (1.0 - taken))
        hbm_D = builder.resources("hbm", rate)
        return cls(
            builder=builder,
            sm_D=sm_D,
            hbm_D=hbm_D,
            both_DM=np.stack([sm_D, hbm_D], axis=1),
            flops_per_s_D=flops,
            bytes_per_s_D=rate,
            groups=groups,
        )

    def phase(self, name: str, cost: PhaseCost, after: Array | None, tag: str = "") -> Array:
        """Add one op per device: its compute as FLOPs at the device's peak, its memory as bytes at
        the data sheet's rate.

        Args:
            name: Name of the phase and its ops.
            cost: What the phase demands.
            after: ndarray of shape (D, M): numbers of the ops that each op waits for.
            tag: Suffix of the ops' names, which says the micro-batch.

        Returns:
            ndarray of shape (D,): numbers of the ops.
        """
        # seconds become work, so that ops which share a resource slow each other down
        work_DM = np.empty((len(self.sm_D), 2))
        np.multiply(cost.compute_s_D, self.flops_per_s_D, out=work_DM[:, 0])
        np.multiply(cost.memory_s_D, self.bytes_per_s_D, out=work_DM[:, 1])
        return self.builder.ops(
            name + tag,
            len(self.sm_D),
            demands=Demands(self.both_DM, work_DM),
            latency_s=cost.latency_s_D,
            after=after,
            phase=name,
        )
