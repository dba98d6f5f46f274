"""Check the exchange between processes on this machine: uneven all-to-alls over gloo, and whole
layers where they fit.

A candidate that was simulated on ranks of this host (``local-2``) is exchanged unchanged, byte by
byte. If the torch path knows its layer, the layer really runs over as many processes. For any other
candidate, two ranks exchange what its layer, scaled down, has to move; start and rate of this
host's all-to-alls are measured first, at sizes that have nothing to do with the layer's. This
checks the price of an uneven all-to-all by its start and its busiest port.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from moesim_kernels.sources.cpu import left_out, runs_as_it_is, small_layer

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.errors import MeasurementError
from moesim.hardware import Cluster, HostFabric
from moesim.lowering.traffic import Traffic, spread_tokens
from moesim.measured.environment import lacking
from moesim.measured.sources import CheckRow
from moesim.model import MoELayer
from moesim.routing import RoutingSpec, route
from moesim.simulation.prepare import prepare
from moesim.simulation.run import simulate
from moesim.simulation.trust import ASSUMED_INTERVAL
from moesim.units import US

# Ranks of a scaled-down exchange, and most tokens of each.
_RANKS, _TOKENS = 2, 256
_TIMEOUT_S = 60.0


#: start and rate of this host's all-to-alls, once they are measured
_MEASURED: list[HostFabric] = []


def _timed(
    fabric: HostFabric | None, matrices: Sequence[np.ndarray]
) -> tuple[HostFabric, list[np.ndarray]]:
    """Return the host's all-to-alls and the timings of exchanges.

    Args:
        fabric: The host's all-to-alls; None to measure them, once per process.
        matrices: Bytes from each rank to each rank, integers of shape (W, W).

    Raises:
        MeasurementError: All-to-alls do not work here.
    """
    from moesim_kernels.profile.host_fabric import fabric_of, measure_gloo_with, time_exchanges

    if fabric is None and not _MEASURED:
        points, times = measure_gloo_with(matrices, timeout_s=_TIMEOUT_S)
        _MEASURED.append(fabric_of("gloo", points))
        return _MEASURED[0], times
    return fabric or _MEASURED[0], time_exchanges("gloo", matrices, timeout_s=_TIMEOUT_S)


class Gloo:
    """Check all-to-alls between processes of this machine, and whole expert-parallel layers on its
    ranks.
    """

    name = "gloo"

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: it needs torch with gloo, and a core for each of two
        processes.
        """
        if missing := lacking("torch"):
            return missing
        if sys.platform == "win32":
            return "needs Linux or macOS"
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_gloo_available():
            return "this torch has no gloo"
        # A container may own fewer cores than the machine has.
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        return (
            None if cores >= _RANKS else f"needs {_RANKS} cores, one for each process, got {cores}"
        )

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> list[CheckRow]:
        """Time what dispatch and combine move, and the layer if it runs unchanged.

        Raises:
            MeasurementError: The processes failed, or there is only one expert.
        """
        fabric, ranks = cluster.profile.host_fabric, cluster.num_devices
        # The candidate must have been simulated on ranks of this host, without tensor parallelism.
        here = (
            fabric is not None
            and fabric.backend == "gloo"
            and ranks > 1
            and candidate.parallelism.tp == 1
            and cluster.exchange().name == "host"
        )
        if here and fabric is not None:
            traffic = prepare(candidate, cluster, workload).traffic
            rows = self._exchanges(
                candidate,
                candidate.layer,
                traffic,
                workload.seed,
                fabric,
                f"{ranks} processes of this machine",
                as_it_is=True,
            )
            # The real layer has contiguous experts and no micro-batches.
            plain = (
                candidate.placement == "contiguous" and candidate.schedule.num_micro_batches == 1
            )
            if plain and runs_as_it_is(candidate.layer, ranks * workload.num_tokens_per_device):
                rows = [*self._layer(candidate, cluster, workload), *rows]
            return rows
        from moesim_kernels.ranks.expert_parallel import contiguous_placement

        # Any other candidate: its layer, scaled down, between two processes.
        layer, tokens = (
            small_layer(candidate.layer, "float32"),
            min(_TOKENS, workload.num_tokens_per_device),
        )
        if layer.num_experts < _RANKS:
            raise MeasurementError(
                f"{layer.num_experts} expert is not shared by {_RANKS} processes"
            )
        routing = route(
            RoutingSpec.parse(workload.routing),
            layer.gate,
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            num_tokens_S=np.full(_RANKS, tokens),
            seed=workload.seed,
        )
        # The traffic of the small layer, by the same code that a simulation uses.
        traffic = spread_tokens(
            routing, contiguous_placement(layer.num_experts, _RANKS), Parallelism(ep=_RANKS)
        )
        detail = "; ".join(
            [
                f"scaled down to {_RANKS} processes, E{layer.num_experts} k{layer.top_k} "
                f"H{layer.hidden_size}, {tokens} tokens each, float32",
                *left_out(candidate.layer),
            ]
        )
        return self._exchanges(
            candidate, layer, traffic, workload.seed, None, detail, as_it_is=False
        )

    def _exchanges(
        self,
        candidate: Candidate,
        layer: MoELayer,
        traffic: Traffic,
        seed: int,
        fabric: HostFabric | None,
        detail: str,
        *,
        as_it_is: bool,
    ) -> list[CheckRow]:
        """Time both directions of one layer."""
        from moesim_kernels.profile.host_fabric import counted, port_bytes

        copies_SD = np.asarray(traffic.copies_SD)
        # Combine moves the same copies back, hence the transpose.
        matrices = {
            way: (moved * round(layer.precision.token_bytes(way, layer.hidden_size))).astype(
                np.int64
            )
            for way, moved in (("dispatch", copies_SD), ("combine", copies_SD.T))
        }
        fabric, times = _timed(fabric, list(matrices.values()))
        rows = []
        for (way, matrix), seconds in zip(matrices.items(), times, strict=True):
            # The price of an exchange: its start, and the bytes at the busiest port over the rate.
            simulated = (fabric.start_s + port_bytes(matrix) / fabric.port_bytes_per_s) / US
            low, high = fabric.interval
            rows.append(
                CheckRow(
                    candidate=candidate.label,
                    source=self.name,
                    quantity=f"{way}_time_us",
                    status="checked",
                    simulated=simulated,
                    simulated_low=simulated * low,
                    simulated_high=simulated * high,
                    measured=counted(seconds) / US,
                    measured_low=float(np.quantile(seconds, 0.1)) / US,
                    measured_high=float(np.quantile(seconds, 0.9)) / US,
                    in_fit_set=False,
                    calibration="calibrated",
                    engine="host",
                    seed=seed,
                    extra={"port_bytes": port_bytes(matrix), "as_it_is": as_it_is},
                    detail=f"{detail}: uneven all-to-all over gloo, {port_bytes(matrix):.0f} "
                    f"bytes at the busiest port, P10 of {len(seconds)} timings of four calls "
                    "(high: P90)",
                )
            )
        return rows

    def _layer(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> list[CheckRow]:
        """Time the layer itself, with `moesim_kernels.ranks.expert_parallel`."""
        from moesim_kernels.ranks.timed_layers import LayerRun, time_layers

        result = simulate(candidate, cluster, workload)
        run = LayerRun(
            layer=candidate.layer,
            num_tokens=workload.num_tokens_per_device,
            routing=workload.routing,
            seed=workload.seed,
        )
        (timing,) = time_layers([run], cluster.num_devices, timeout_s=_TIMEOUT_S)
        about: dict[str, Any] = {
            "candidate": candidate.label,
            "source": self.name,
            "status": "checked",
            "in_fit_set": False,
            "calibration": result.calibration,
            "engine": result.engine,
            "seed": workload.seed,
            "profile_hash": result.profile_hash,
            "extra": {"contended": timing.contended, "as_it_is": True},
            "detail": f"{cluster.num_devices} processes of this machine, contiguous experts, by "
            f"the clock on the wall: P10 of {timing.repeats} repeats of the slowest rank "
            "(high: P90), waits for each other included"
            + ("; contended" if timing.contended else ""),
        }
        # Only phases without waits are compared one by one; their intervals are assumed.
        simulated = {
            "layer": (result.layer_time_s, result.layer_time_low_s, result.layer_time_high_s)
        } | {
            phase: (
                result.phase_time_s[phase],
                *(f * result.phase_time_s[phase] for f in ASSUMED_INTERVAL),
            )
            for phase in ("gate", "experts")
        }
        rows = []
        for phase, prices in simulated.items():
            # A layer's time is the slowest rank's, and includes waits.
            times = timing.phases["total" if phase == "layer" else phase]
            value, low, high = (seconds / US for seconds in prices)
            rows.append(
                CheckRow(
                    quantity=f"{phase}_time_us",
                    simulated=value,
                    simulated_low=low,
                    simulated_high=high,
                    measured=times.p10_s / US,
                    measured_low=times.p10_s / US,
                    measured_high=times.p90_s / US,
                    **about,
                )
            )
        return rows
