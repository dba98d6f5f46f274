"""Programs without any MoE in them, and programs of the shape the lowering emits."""

import numpy as np
import pytest

from moesim.costs.comm.choose import exchange_kernel
from moesim.lowering.layer import lower_layer
from moesim.lowering.traffic import spread_tokens
from moesim.model import Gate
from moesim.placement import place
from moesim.program.builder import ProgramBuilder
from moesim.routing import RoutingSpec, route


@pytest.fixture(scope="session")
def random_program():
    """40 ops over 6 resources: up to three demands and two dependencies each, some latencies,
    releases and flows.
    """

    def make(seed, num_ops=40, num_resources=6):
        rng = np.random.default_rng(seed)
        builder = ProgramBuilder()
        for r in range(num_resources):
            builder.resource(f"r{r}", float(rng.uniform(0.5, 4.0)))
        for i in range(num_ops):
            demands = int(rng.integers(0, 4))
            builder.op(
                f"op{i}",
                resources=rng.choice(num_resources, demands, replace=False),
                amounts=rng.uniform(0.1, 2.0, demands),
                latency_s=float(rng.choice([0.0, rng.uniform(0.0, 0.5)])),
                release_s=float(rng.choice([0.0, rng.uniform(0.0, 2.0)])),
                after=sorted({int(d) for d in rng.integers(0, i, rng.integers(0, 3))}) if i else [],
                bytes_per_flow=float(rng.choice([0.0, rng.uniform(0.3, 3.0)])),
            )
        return builder.build()

    return make


@pytest.fixture(scope="session")
def exchange_program():
    """Dispatch, compute, combine and reduce written by hand: 2 to 16 devices, random token matrix
    and loads.
    """

    def make(seed):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(2, 17))
        builder = ProgramBuilder()
        egress, ingress, sm, hbm = (
            [builder.resource(f"{kind}{d}", rate) for d in range(count)]
            for kind, rate in (("egress", 1.0), ("ingress", 1.0), ("sm", 1.0), ("hbm", 7.0))
        )
        sent_SD = rng.lognormal(0.0, rng.uniform(0.2, 1.2), (count, count)) * (
            rng.random((count, count)) < 0.8
        )
        np.fill_diagonal(sent_SD, 0.0)
        compute_D = rng.lognormal(0.0, 0.7, count) * count * rng.uniform(0.2, 3.0)

        def exchange(name, d, own, peer, landing, after):
            peers = np.flatnonzero(sent_SD[:, d])
            total, parts = sent_SD[:, d].sum(), sent_SD[peers, d]
            landed = ([hbm[d]], [total]) if landing == "own" else ([hbm[p] for p in peers], parts)
            return builder.op(
                f"{name}{d}",
                resources=[own[d], *(peer[p] for p in peers), *landed[0]],
                amounts=np.concatenate([[total], parts, landed[1]]),
                latency_s=0.1,
                after=[after],
                bytes_per_flow=float(total / max(len(peers), 1)),
                phase=name,
            )

        ready = builder.op("ready")
        arrived = [exchange("dispatch", d, ingress, egress, "own", ready) for d in range(count)]
        computed = [
            builder.op(
                f"experts{d}",
                resources=[sm[d], hbm[d]],
                amounts=[compute_D[d], compute_D[d] * rng.uniform(0.1, 7.0)],
                after=[arrived[d]],
            )
            for d in range(count)
        ]
        sent = [exchange("combine", d, egress, ingress, "peers", computed[d]) for d in range(count)]
        done = builder.op("all sent", after=sent)
        for d in range(count):
            builder.op(f"reduce{d}", resources=[hbm[d]], amounts=[1.0], after=[done])
        return builder.build()

    return make


@pytest.fixture(scope="session")
def lowered_program(hgx, make_candidate):
    """A random layer, with tokens of random numbers on 2 to 16 devices, through the
    real lowering.
    """

    def make(seed):
        rng = np.random.default_rng(seed)
        devices = int(rng.choice([2, 4, 8, 16]))
        tp = int(rng.choice([1, 1, 2])) if devices > 2 else 1
        candidate = make_candidate(
            ep=devices // tp,
            tp=tp,
            placement=str(rng.choice(["contiguous", "balanced"])),
            hidden_size=int(rng.choice([1024, 4096])),
            expert_intermediate_size=int(rng.choice([512, 2048])),
            num_experts=int(rng.choice([16, 32, 128])),
            top_k=int(rng.choice([1, 2, 8])),
            num_shared_experts=int(rng.choice([0, 1])),
        )
        layer = candidate.layer
        tokens_S = rng.integers(1, 2000, devices)
        spec = RoutingSpec.parse(str(rng.choice(["uniform", "zipf:0.8", "power_law:1.2"])))
        routing = route(
            spec,
            Gate(),
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            num_tokens_S=tokens_S,
            seed=seed,
        )
        placed = place(candidate.placement, routing.num_tokens_E(), candidate.parallelism.ep)
        traffic = spread_tokens(routing, placed, candidate.parallelism)
        cluster = hgx.with_(devices_per_node=devices)
        return lower_layer(
            candidate, cluster, [traffic], exchange_kernel(cluster, cluster.exchange())
        )

    return make
