"""One layer as a program: the ops, what they wait for, and every byte from the token matrix to the
ports.
"""

from itertools import pairwise

import numpy as np
import pytest

from moesim.costs.comm.choose import exchange_kernel
from moesim.engines.run import run
from moesim.hardware import single_device
from moesim.hardware.exchanges import exchange_named
from moesim.lowering import senders
from moesim.lowering.layer import lower_layer
from moesim.lowering.priced import Priced
from moesim.lowering.traffic import spread_tokens
from moesim.model import Gate, Precision
from moesim.placement import place
from moesim.routing import RoutingSpec, route


@pytest.fixture(autouse=True)
def together(monkeypatch):
    """All senders in one class: these tests are of single ops; classes have theirs in
    test_exchange.
    """
    monkeypatch.setattr(senders, "_UNEVEN", float("inf"))


class Lowered:
    """A layer lowered on some devices, and readings of its program."""

    def __init__(
        self, hgx, candidate, *, spec="power_law:1.2", tokens=(700, 20, 333, 1024, 5, 90, 411, 64)
    ):
        spread, layer = candidate.parallelism, candidate.layer
        several = spread.num_devices > 1
        self.cluster = (
            hgx.with_(devices_per_node=spread.num_devices)
            if several
            else single_device(hgx.profile)
        )
        self.layer = layer
        self.tokens_S = np.array(tokens[: spread.num_devices])
        routing = route(
            RoutingSpec.parse(spec),
            Gate(),
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            num_tokens_S=self.tokens_S,
            seed=1,
        )
        placed = place(
            candidate.placement, routing.num_tokens_E(), spread.ep, candidate.num_replicas
        )
        self.traffic = spread_tokens(routing, placed, spread, layer.capacity_factor)
        self.kernel = exchange_kernel(self.cluster, self.cluster.exchange()) if several else None
        self.program = lower_layer(candidate, self.cluster, [self.traffic], self.kernel)
        if several:
            self.priced = Priced.of(
                layer,
                self.traffic,
                self.kernel,
                self.cluster,
                exchange=exchange_named("nccl"),
                num_experts=layer.num_experts + candidate.num_replicas,
            )
        self.remote_SD = self.traffic.copies_SD * (1 - np.eye(spread.num_devices, dtype=int))

    def op(self, label):
        return self.program.labels_N.index(label)

    def demand(self, label):
        i = self.op(label)
        part = slice(self.program.demand_ptr[i], self.program.demand_ptr[i + 1])
        return {
            self.program.resource_names[r]: a
            for r, a in zip(
                self.program.demand_resource[part],
                self.program.demand_amount[part].tolist(),
                strict=True,
            )
        }

    def waits_for(self, label):
        i = self.op(label)
        return {
            self.program.labels_N[d]
            for d in self.program.dep_index[self.program.dep_ptr[i] : self.program.dep_ptr[i + 1]]
        }


CASES = {
    "dropless": {"num_experts": 64, "top_k": 4},
    "dropping": {"num_experts": 64, "top_k": 4, "capacity_factor": 1.0},
    "fp8, sparse": {
        "num_experts": 64,
        "top_k": 1,
        "precision": Precision.named("fp8"),
        "hidden_size": 1000,
    },
    "tensor parallel": {"num_experts": 64, "top_k": 4, "ep": 4, "tp": 2},
    "replicated": {"num_experts": 16, "top_k": 2, "placement": "eplb", "num_replicas": 8},
    "two devices": {"num_experts": 16, "top_k": 2, "ep": 2},
}


@pytest.fixture(params=CASES)
def lowered(request, hgx, make_candidate):
    return Lowered(hgx, make_candidate(**CASES[request.param]))


def test_ports_carry_the_token_matrix_times_copy_bytes_times_the_factor(lowered):
    for name, own, peer in (("dispatch", "ingress", "egress"), ("combine", "egress", "ingress")):
        bytes_SD = lowered.remote_SD * lowered.priced.copy_bytes[name]
        price = lowered.priced.prices[name]
        for d in range(len(bytes_SD)):
            factor = price.near_factor_D
            expected = {f"{peer}[{s}]": bytes_SD[s, d] * factor[s] for s in range(len(bytes_SD))}
            expected[f"{own}[{d}]"] = bytes_SD[:, d].sum() * factor[d]
            found = {
                k: v for k, v in lowered.demand(f"{name}[{d}]").items() if not k.startswith("hbm")
            }
            assert found == pytest.approx({k: v for k, v in expected.items() if v}), (name, d)
            latency = lowered.program.latency_s_N[lowered.op(f"{name}[{d}]")]
            assert latency == pytest.approx(float(price.latency_s_D[d]))


def test_bytes_land_in_memory_as_they_are_without_the_factor(lowered):
    """Dispatched tokens in the receiver's memory, results in the memory of the token's source."""
    for name in ("dispatch", "combine"):
        bytes_SD = lowered.remote_SD * lowered.priced.copy_bytes[name]
        landed = {}
        for d in range(len(bytes_SD)):
            for resource, amount in lowered.demand(f"{name}[{d}]").items():
                if resource.startswith("hbm"):
                    landed[resource] = landed.get(resource, 0.0) + amount
        expected = bytes_SD.sum(axis=0 if name == "dispatch" else 1)
        assert landed == pytest.approx({f"hbm[{d}]": b for d, b in enumerate(expected) if b}), name


@pytest.mark.parametrize("engine", ["bound", "flow", "event"])
def test_every_engine_moves_exactly_these_bytes(lowered, engine):
    program = lowered.program
    moved = run(program, engine).busy_s_R * program.capacity_R
    assert moved == pytest.approx(program.demand_R(), rel=1e-9)


def test_flows_are_source_destination_pairs(lowered):
    """Fair units of the exchange are in proportion to bytes per pair, and sum to the ops' own
    times.
    """
    program, solo = lowered.program, lowered.program.solo_s_N()
    ops, per_flow = [], []
    for i, label in enumerate(program.labels_N):
        if not label.startswith(("dispatch[", "combine[")) or solo[i] == 0:
            continue
        d, name = int(label.split("[")[1][:-1]), label.split("[")[0]
        sent = lowered.remote_SD[:, d] * lowered.priced.copy_bytes[name]
        ops.append(i)
        per_flow.append(sent.sum() / (sent > 0).sum())
    units = program.fair_unit_s_N[ops]
    assert units / units.sum() == pytest.approx(np.array(per_flow) / sum(per_flow))
    assert units.sum() == pytest.approx(solo[ops].sum())


def test_what_waits_for_what(lowered):
    devices = range(lowered.cluster.num_devices)
    for d in devices:
        assert lowered.waits_for(f"gate[{d}]") == set()
        assert lowered.waits_for(f"permute[{d}]") == {f"gate[{d}]"}
        assert lowered.waits_for(f"dispatch[{d}]") == {"all permuted"}
        assert lowered.waits_for(f"combine[{d}]") == {f"experts[{d}]", "all dispatched"}
        assert lowered.waits_for(f"reduce[{d}]") == {"all sent"}
    assert lowered.waits_for("all permuted") == {f"permute[{d}]" for d in devices}
    assert lowered.waits_for("all dispatched") == {f"dispatch[{d}]" for d in devices}
    assert lowered.waits_for("all sent") == {f"combine[{d}]" for d in devices}
    timeline = run(lowered.program, "flow")
    for d in devices:  # a cold device starts early: its experts wait for its own tokens alone
        assert timeline.start_s_N[lowered.op(f"experts[{d}]")] == max(
            timeline.end_s_N[lowered.op(label)] for label in lowered.waits_for(f"experts[{d}]")
        )
        assert f"dispatch[{d}]" in lowered.waits_for(f"experts[{d}]")


def test_shared_experts_run_while_tokens_travel(hgx, make_candidate):
    lowered = Lowered(hgx, make_candidate(num_shared_experts=1))
    for d in range(8):
        assert lowered.waits_for(f"shared[{d}]") == {f"permute[{d}]"}
        assert lowered.waits_for(f"experts[{d}]") == {f"dispatch[{d}]", f"shared[{d}]"}
    timeline = run(lowered.program, "flow")
    assert (
        timeline.start_s_N[lowered.op("shared[4]")] < timeline.start_s_N[lowered.op("dispatch[4]")]
    )


def test_shared_experts_are_one_dense_expert_of_their_joint_width(hgx, make_candidate):
    two = Lowered(hgx, make_candidate(num_shared_experts=2, expert_intermediate_size=512))
    one = Lowered(hgx, make_candidate(num_shared_experts=1, expert_intermediate_size=1024))
    for d in range(8):
        assert two.demand(f"shared[{d}]") == pytest.approx(one.demand(f"shared[{d}]"))


@pytest.mark.parametrize("shared", [0, 1])
def test_one_device_has_neither_dispatch_nor_combine(hgx, make_candidate, shared):
    lowered = Lowered(hgx, make_candidate(ep=1, num_shared_experts=shared), tokens=(77,))
    chain = ["gate[0]", *["shared[0]"] * shared, "experts[0]"]
    assert list(lowered.program.labels_N) == chain
    assert list(lowered.program.resource_names) == ["sm[0]", "hbm[0]"]
    for before, after in pairwise(chain):
        assert lowered.waits_for(after) == {before}


def test_tensor_parallel_devices_share_the_width_and_get_the_same_tokens(hgx, make_candidate):
    """Same rows on both; the GEMMs of each about half, since each holds half of the width."""
    whole = Lowered(
        hgx,
        make_candidate(ep=4, tp=1, hidden_size=4096, expert_intermediate_size=4096),
        spec="uniform",
        tokens=(8000,) * 4,
    )
    split = Lowered(
        hgx,
        make_candidate(ep=4, tp=2, hidden_size=4096, expert_intermediate_size=4096),
        spec="uniform",
        tokens=(4000,) * 8,
    )
    assert split.traffic.counts_DL[0::2].tolist() == split.traffic.counts_DL[1::2].tolist()
    for d in range(8):
        assert split.demand(f"experts[{d}]")[f"sm[{d}]"] == pytest.approx(
            whole.demand(f"experts[{d // 2}]")[f"sm[{d // 2}]"] / 2, rel=0.1
        )
    # every copy that leaves goes to both devices of the rank
    assert split.traffic.copies_SD[:, 0::2].tolist() == split.traffic.copies_SD[:, 1::2].tolist()


def test_demand_on_a_device_is_time_at_its_peak(hgx, make_candidate):
    """Capacities are the datasheet's; efficiency is in the demand."""
    lowered = Lowered(hgx, make_candidate())
    capacity = dict(
        zip(lowered.program.resource_names, lowered.program.capacity_R.tolist(), strict=True)
    )
    assert capacity["sm[3]"] == hgx.profile.peak("bfloat16")
    assert capacity["hbm[3]"] == hgx.profile.hbm_bandwidth_bytes_per_s
    assert capacity["egress[3]"] == capacity["ingress[3]"] == hgx.link_bytes_per_s


def test_a_device_that_gets_nothing_still_takes_part(hgx, make_candidate):
    """One token: most devices neither receive nor send, and the layer still ends everywhere."""
    lowered = Lowered(hgx, make_candidate(top_k=1), tokens=(0, 0, 0, 1, 0, 0, 0, 0))
    assert lowered.traffic.copies_SD.sum() == 1
    for engine in ("bound", "flow", "event"):
        timeline = run(lowered.program, engine)
        assert np.isfinite(timeline.end_s_N).all()
        assert timeline.makespan_s > 0


def test_a_layer_is_six_ops_per_device_and_three_barriers(hgx, make_candidate):
    lowered = Lowered(hgx, make_candidate(ep=4))
    phases = ("gate", "permute", "dispatch", "experts", "combine", "reduce")
    expected = [f"{phase}[{d}]" for phase in phases for d in range(4)] + [
        "all permuted",
        "all dispatched",
        "all sent",
    ]
    assert sorted(lowered.program.labels_N) == sorted(expected)
    assert set(lowered.program.phases_N) == set(phases)
