"""Candidates nobody would write: each simulates, with all promises kept, or is refused in
one line.
"""

from dataclasses import replace

import numpy as np
import pytest

from moesim import (
    Candidate,
    Gate,
    MoELayer,
    Parallelism,
    Workload,
    load_cluster,
    load_preset,
    simulate,
)
from moesim.design.offload import Offload
from moesim.engines import ENGINES
from moesim.errors import MoesimError
from moesim.files import toml
from moesim.model.compression import Compression
from moesim.model.precision import RECIPES, Precision


def cluster_of(rng):
    """A shipped cluster or device, or the H100 node with a number of devices that divides badly."""
    names = [*toml.names("clusters"), *toml.names("devices")]
    cluster = load_cluster(str(rng.choice(names)))
    if cluster.num_devices == 8 and cluster.file.scale_up.kind == "switch" and rng.random() < 0.5:
        return cluster.with_(devices_per_node=int(rng.choice([2, 3, 5, 16])))
    return cluster


def candidate_of(rng, devices):
    tp = int(rng.choice([t for t in range(1, devices + 1) if devices % t == 0]))
    ep = devices // tp
    experts = ep * int(rng.choice([1, 2, 3, 8]))
    groups = int(rng.choice([g for g in range(1, experts + 1) if experts % g == 0]))
    kind = str(rng.choice(["flat", "group_limited", "two_level", "product_key"]))
    grouped = {"num_expert_groups": groups, "num_limited_groups": int(rng.integers(1, groups + 1))}
    queries = {"query_heads": int(rng.choice([1, 2, 8])), "query_size": int(rng.choice([2, 64]))}
    gate = Gate(kind=kind, **{"flat": {}, "product_key": queries}.get(kind, grouped))
    if kind == "product_key" and rng.random() < 0.9:
        experts = ep**2 * int(rng.choice([1, 4]))
    widths = rng.choice([0, 5, 33, 512], size=experts, p=[0.1, 0.3, 0.3, 0.3]).tolist()
    layer = MoELayer(
        hidden_size=int(rng.choice([1, 7, 16, 129, 2048, 7168])),
        num_experts=experts,
        gate=gate,
        expert_intermediate_size=widths
        if rng.random() < 0.2
        else int(rng.choice([1, 5, 33, 512, 2048])),
        top_k=int(rng.integers(1, min(experts, 12) + 1)),
        num_shared_experts=int(rng.choice([0, 0, 1, 3])),
        gated=bool(rng.random() < 0.7),
        capacity_factor=None
        if rng.random() < 0.6
        else float(rng.choice([1e-9, 0.01, 0.5, 1.0, 1.25, 100.0])),
        precision=Precision.named(str(rng.choice(list(RECIPES)))),
    )
    placement = str(rng.choice(["contiguous", "balanced", "eplb"]))
    return Candidate(
        layer=layer,
        parallelism=Parallelism(ep=ep, tp=tp),
        placement=placement,
        num_replicas=ep * int(rng.integers(0, 3)) if placement == "eplb" else 0,
        dense_part=load_preset("qwen3-30b-a3b").dense_part if rng.random() < 0.3 else None,
    )


def stored_of(rng):
    """A way to store experts: one in three designs is compressed, one in three offloaded."""
    form, offload = Compression(), Offload()
    if rng.random() < 0.33:
        cold = float(rng.choice([0.0, 0.3, 1.0]))
        form = Compression(
            pruned_fraction=float(rng.choice([0.0, 0.1, 0.5])),
            cold_fraction=cold,
            cold_format=str(rng.choice(["int4", "mxfp4", "int8"])) if cold else None,
            cold_rank_fraction=0.01 if cold and rng.random() < 0.5 else None,
        )
    if rng.random() < 0.33:
        resident, recall = rng.choice([0.0, 0.3, 0.99]), rng.choice([0.0, 0.7, 1.0])
        offload = Offload(resident_fraction=float(resident), prefetch_recall=float(recall))
    return {"compression": form, "offload": offload}


def check(candidate, cluster, work):
    results = {
        engine: simulate(candidate, cluster, work, engine=engine, must_fit=False)
        for engine in ENGINES
    }
    for result in results.values():
        assert (
            0 < result.layer_time_low_s <= result.layer_time_s <= result.layer_time_high_s < np.inf
        )
        assert sum(result.phase_time_s.values()) == pytest.approx(result.layer_time_s, rel=1e-9)
        assert all(0 <= share <= 1 + 1e-9 for share in result.utilisation.values())
        assert 0 <= result.dropped_token_fraction < 1
        assert result.load_imbalance >= 1 - 1e-12
    bound, flow, event, _ = (results[engine].layer_time_s for engine in ENGINES)
    assert bound <= min(flow, event) * (1 + 1e-9)
    assert event == pytest.approx(flow, rel=0.01)


def test_anything_simulates_or_is_refused_in_one_line():
    simulated, refusals = 0, []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        cluster = cluster_of(rng)
        if cluster.num_devices > 16:
            continue
        work = Workload(
            num_tokens_per_device=int(rng.choice([1, 1, 2, 3, 17, 256])),
            seed=seed,
            routing=str(
                rng.choice(
                    [
                        "uniform",
                        "zipf:0.01",
                        "zipf:1",
                        "zipf:20",
                        "power_law:0.01",
                        "power_law:1.2",
                        "power_law:30",
                    ]
                )
            ),
        )
        try:
            stored = stored_of(np.random.default_rng((seed, 1)))
            check(replace(candidate_of(rng, cluster.num_devices), **stored), cluster, work)
        except MoesimError as error:
            refusals.append(str(error))
        else:
            simulated += 1
    assert simulated > 200
    assert len(refusals) > 50
    assert all(
        "\n" not in text and ("expected" in text or "no compute rate" in text) for text in refusals
    )
