"""One MoE layer as a program, at device granularity.

On each device gate, permute, then (while tokens travel) its shared experts; one ``dispatch`` op per receiver, which
demands the receiver's ingress port and every sender's egress port for the bytes they send; ``experts`` on the device
as soon as its own tokens are there; one ``combine`` op per sender, as soon as its own experts are done, so that cold
devices return early; ``reduce`` when all have sent. The exchange is a collective: it begins when the last gate has
ended. One device by itself has neither dispatch nor combine.

Shape legend: S sources = D devices.
"""

import numpy as np

from moesim.builder import ProgramBuilder
from moesim.candidate import Candidate
from moesim.costs.experts import ExpertShape, price_experts, typical_tile
from moesim.costs.gate import price_gate
from moesim.costs.load import Load
from moesim.costs.phase import PhaseCost
from moesim.costs.primitives import Kernels
from moesim.costs.tiles import Tile
from moesim.costs.tokens import price_permute, price_reduce
from moesim.costs.transfer import Transfers, transfers_for
from moesim.lowering.traffic import Traffic
from moesim.program import Program
from moesim.topology import Cluster

Array = np.ndarray


class _Devices:
    """The builder with the compute and memory resources of every device, and ops priced by `PhaseCost`."""

    def __init__(self, cluster: Cluster, fmt: str) -> None:
        self.builder = ProgramBuilder()
        self.flops_per_s = cluster.profile.peak(fmt)
        self.bytes_per_s = cluster.profile.hbm_bandwidth_bytes_per_s
        self.sm = [self.builder.resource(f"sm[{d}]", self.flops_per_s) for d in range(cluster.num_devices)]
        self.hbm = [self.builder.resource(f"hbm[{d}]", self.bytes_per_s) for d in range(cluster.num_devices)]

    def phase(self, name: str, cost: PhaseCost, after: list[list[int]]) -> list[int]:
        """One op per device: its compute as FLOPs at the device's peak, its memory as bytes at the datasheet's rate."""
        compute = (cost.compute_s_D * self.flops_per_s).tolist()
        memory = (cost.memory_s_D * self.bytes_per_s).tolist()
        latency = cost.latency_s_D.tolist()
        return [
            self.builder.op(f"{name}[{d}]", resources=(self.sm[d], self.hbm[d]), amounts=(compute[d], memory[d]),
                            latency_s=latency[d], after=after[d], phase=name)
            for d in range(len(self.sm))
        ]


def lower_layer(candidate: Candidate, cluster: Cluster, traffic: Traffic, num_tokens_S: Array, kernels: Kernels,
                tile: Tile | None = None) -> Program:
    """Lower one forward pass of the layer.

    Args:
        candidate: Layer and parallelism.
        cluster: D devices.
        traffic: Copies and rows, of the same D devices.
        num_tokens_S: ndarray of shape (S,): tokens of each device.
        kernels: Primitives of the cluster's device.
        tile: Configuration of the expert GEMMs; by default what a tuned kernel would use.
    """
    layer, num_devices = candidate.layer, cluster.num_devices
    devices = _Devices(cluster, layer.precision.activations)
    shape = ExpertShape.of(layer, candidate.parallelism.tp)
    tile = tile or typical_tile(traffic.counts_DL, shape.fmt)
    tokens_D = traffic.tokens_D
    load = Load.of(traffic.counts_DL, tokens_D * layer.top_k, tile.block_m)
    gates = devices.phase("gate", price_gate(kernels, layer, num_tokens_S), [[] for _ in range(num_devices)])
    copies_S = traffic.copies_SD.sum(axis=1)
    before = gates
    if num_devices > 1:
        permute = price_permute(kernels, layer, num_tokens_S, copies_S)
        before = devices.phase("permute", permute, [[g] for g in gates])
    shared = before
    if layer.num_shared_experts:
        shared = devices.phase("shared", _price_shared(candidate, kernels, num_tokens_S), [[b] for b in before])
    experts_cost = price_experts(kernels, shape, load, tokens_D, tile=tile)
    if num_devices == 1:
        devices.phase("experts", experts_cost, [[s] for s in shared])
        return devices.builder.build()
    exchange = _Exchange(devices, transfers_for(cluster), traffic.copies_SD)
    ready = devices.builder.op("all permuted", after=before, phase="dispatch")
    arrived = exchange.receive("dispatch", layer.precision.token_bytes("dispatch", layer.hidden_size), ready)
    experts = devices.phase("experts", experts_cost, [sorted({a, s}) for a, s in zip(arrived, shared, strict=True)])
    sent = exchange.send("combine", layer.precision.token_bytes("combine", layer.hidden_size), experts)
    all_sent = devices.builder.op("all sent", after=sent, phase="combine")
    devices.phase("reduce", price_reduce(kernels, layer, num_tokens_S, copies_S), [[all_sent]] * num_devices)
    return devices.builder.build()


def _price_shared(candidate: Candidate, kernels: Kernels, num_tokens_S: Array) -> PhaseCost:
    """Shared experts see every token of their device: one dense group of their joint width."""
    layer = candidate.layer
    whole = ExpertShape.of(layer, 1)
    shape = ExpertShape(hidden=whole.hidden, width=layer.num_shared_experts * layer.expert_intermediate_size,
                        num_up=whole.num_up, top_k=1, fmt=whole.fmt, weight_bytes=whole.weight_bytes,
                        input_bytes=whole.input_bytes, block_scaled=whole.block_scaled, weight_only=whole.weight_only)
    counts = np.asarray(num_tokens_S)[:, None]
    tile = typical_tile(counts, shape.fmt)
    return price_experts(kernels, shape, Load.of(counts, counts[:, 0], tile.block_m), num_tokens_S, tile=tile)


class _Exchange:
    """Ports of all devices, and the two directions tokens pass them in."""

    def __init__(self, devices: _Devices, transfers: Transfers, copies_SD: Array) -> None:
        self.devices, self.transfers = devices, transfers
        self.remote_SD = np.where(np.eye(len(copies_SD), dtype=bool), 0, copies_SD).astype(np.float64)
        count = len(copies_SD)
        rate = transfers.link_bytes_per_s
        self.egress = [devices.builder.resource(f"egress[{d}]", rate) for d in range(count)]
        self.ingress = [devices.builder.resource(f"ingress[{d}]", rate) for d in range(count)]

    def receive(self, name: str, token_bytes: float, ready: int) -> list[int]:
        """One op per receiver d: its ingress for all bytes, each sender's egress for its own; written to d's HBM."""
        return self._ops(name, self.remote_SD.T * token_bytes, self.ingress, self.egress, [ready] * len(self.egress),
                         landing="own")

    def send(self, name: str, token_bytes: float, after: list[int]) -> list[int]:
        """One op per sender d: its egress for all bytes, each receiver's ingress for its own; written to theirs."""
        return self._ops(name, self.remote_SD.T * token_bytes, self.egress, self.ingress, after, landing="peers")

    def _ops(self, name: str, bytes_DP: Array, own_port: list[int], peer_port: list[int], after: list[int],
             landing: str) -> list[int]:
        total_D = bytes_DP.sum(axis=1)
        factor_D = self.transfers.demand_factor(total_D).tolist()
        latency_D = self.transfers.latency_s(total_D).tolist()
        flows_D = (bytes_DP > 0).sum(axis=1).tolist()
        peer = np.array(peer_port)
        hbm = np.array(self.devices.hbm)
        numbers = []
        for d, total in enumerate(total_D.tolist()):
            peers = np.flatnonzero(bytes_DP[d])
            carried = bytes_DP[d, peers]
            landed_at, landed = (hbm[[d]], total_D[[d]]) if landing == "own" else (hbm[peers], carried)
            numbers.append(self.devices.builder.op(
                f"{name}[{d}]",
                resources=np.concatenate([[own_port[d]], peer[peers], landed_at]),
                amounts=np.concatenate([[total * factor_D[d]], carried * factor_D[d], landed]),
                latency_s=latency_D[d],
                after=[after[d]],
                bytes_per_flow=total * factor_D[d] / max(flows_D[d], 1),
                phase=name,
            ))
        return numbers
