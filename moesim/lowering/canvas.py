"""A cluster as resources of a program that is being built."""

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.design.schedule import Schedule
from moesim.hardware import Cluster
from moesim.hardware.fabric import Fabric, fabric_of
from moesim.lowering.barriers import Barriers
from moesim.lowering.devices import Devices
from moesim.lowering.exchange import LoweredExchange
from moesim.lowering.priced import Priced
from moesim.lowering.streams import Streams
from moesim.program.builder import ProgramBuilder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canvas:
    """The fabric and the devices of a cluster in a program, and the streams on them.

    Attributes:
        cluster: The cluster.
        builder: The program.
        fabric: The fabric; without resources in a program of one device.
        devices: Compute and memory of each device.
        streams: What runs on the devices.
    """

    cluster: Cluster
    builder: ProgramBuilder
    fabric: Fabric
    devices: Devices
    streams: Streams

    @classmethod
    def of(
        cls, cluster: Cluster, fmt: str, *, overlapped: bool, priced: Sequence[Priced]
    ) -> "Canvas":
        """Begin a program.

        Args:
            cluster: The cluster.
            fmt: Format whose peak the compute resource counts in.
            overlapped: Whether exchanges run beside compute, whose kernels then hold SMs.
            priced: The exchanges that will be added; empty for one device.
        """
        builder, fabric = ProgramBuilder(), fabric_of(cluster)
        if priced:
            # the fabric's resources come first: its routes number them from 0
            for name, rates in fabric.runs:
                builder.resources(name, rates)
        # without overlap the kernel and the compute take turns, so no SM is set aside
        num_comm_sms = max((p.num_sms for p in priced), default=0) if overlapped else 0
        devices = Devices.of(cluster, fmt, builder, num_comm_sms=num_comm_sms)
        barriers = Barriers(
            builder=builder,
            num_devices=cluster.num_devices,
            devices_per_domain=cluster.devices_per_domain,
        )
        streams = Streams(devices=devices, barriers=barriers, overlapped=overlapped)
        return cls(
            cluster=cluster, builder=builder, fabric=fabric, devices=devices, streams=streams
        )

    def exchange(self, priced: Priced, schedule: Schedule) -> LoweredExchange:
        """Return an exchange that can be added to the program."""
        return LoweredExchange(
            builder=self.builder,
            fabric=self.fabric,
            cluster=self.cluster,
            priced=priced,
            land_D=self.devices.hbm_D,
            schedule=schedule,
        )
