"""Schedules: what may be chosen, parts of a batch, and what choices do to a layer's time."""

import numpy as np
import pytest

from moesim import Candidate, Gate, MoELayer, Parallelism, Workload, load_cluster, simulate
from moesim.design.schedule import Schedule
from moesim.engines.run import run
from moesim.errors import ConfigError, UnknownNameError
from moesim.routing import RoutingSpec, route
from moesim.simulation.prepare import prepare
from moesim.simulation.run import lower

ENGINES = ("bound", "flow", "event", "event_compiled")
LAYER = MoELayer(hidden_size=2048, expert_intermediate_size=768, num_experts=64, top_k=4)
WORK = Workload(num_tokens_per_device=256, routing="power_law:1.2")


def candidate(devices, **schedule):
    return Candidate(
        layer=LAYER, parallelism=Parallelism(ep=devices), schedule=Schedule(**schedule)
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"num_micro_batches": 0}, "schedule.num_micro_batches"),
        ({"num_micro_batches": 1.5}, "schedule.num_micro_batches"),
        ({"send_window": -1}, "schedule.send_window"),
        ({"granularity": "atom"}, "schedule.granularity: expected device or pair, got 'atom'"),
        ({"send_order": "random"}, "schedule.send_order: expected rotated or naive, got 'random'"),
    ],
)
def test_refused_choices(choices, message):
    with pytest.raises(ConfigError) as caught:
        Schedule(**choices)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_exchange_comes_with_near_ones():
    with pytest.raises(UnknownNameError, match=r"unknown exchange 'deepep': did you mean deepep_"):
        Schedule(exchange="deepep")


def test_what_a_schedule_is_called():
    assert str(Schedule()) == ""
    assert "mb2" in str(Schedule(num_micro_batches=2))
    assert "pair/naive/1" in str(Schedule(granularity="pair", send_order="naive", send_window=1))
    assert str(Schedule(exchange="nccl")).startswith("nccl")


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_of_a_batch_are_the_whole(parts):
    """Source by source in order; parts differ by one token at most."""
    tokens_S = np.array([7, 1, 0, 20])
    whole = route(
        RoutingSpec.parse("zipf:0.8"),
        Gate(),
        num_experts=16,
        top_k=2,
        num_tokens_S=tokens_S,
        seed=0,
    )
    pieces = [whole.part(m, parts) for m in range(parts)]
    assert (sum(piece.num_tokens_S for piece in pieces) == tokens_S).all()
    assert sum(piece.num_tokens_SE() for piece in pieces) == pytest.approx(whole.num_tokens_SE())
    for s in range(len(tokens_S)):
        joined = np.concatenate([piece.expert_ids_TK[piece.source_T() == s] for piece in pieces])
        assert (joined == whole.expert_ids_TK[whole.source_T() == s]).all()
        sizes = [int(piece.num_tokens_S[s]) for piece in pieces]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", ["star-8", "rail-2x4", "torus-2x4", "mi300x-8"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_engines_agree_on_micro_batches(name, parts):
    cluster, case = load_cluster(name), candidate(8, num_micro_batches=parts)
    times = {
        engine: simulate(case, cluster, WORK, engine=engine).layer_time_s for engine in ENGINES
    }
    assert times["bound"] <= min(times.values()) * (1 + 1e-9)
    assert times["event"] == pytest.approx(times["flow"], rel=0.01)
    assert times["event_compiled"] == pytest.approx(times["event"], rel=1e-9)


@pytest.mark.parametrize("parts", [2, 3])
def test_micro_batches_move_what_the_batch_moves(parts):
    """Bytes on every port are the same; on memory there is more: weights are read again."""
    cluster = load_cluster("rail-2x4")
    whole, split = (
        lower(prepare(candidate(8, num_micro_batches=m), cluster, WORK)) for m in (1, parts)
    )
    names = whole.resource_names
    assert names == split.resource_names
    for name, once, again in zip(names, whole.demand_R(), split.demand_R(), strict=True):
        if name.startswith(("egress", "ingress", "nic")):
            assert again == pytest.approx(once, rel=1e-12), name
        elif name.startswith("hbm"):
            assert again > once


def test_streams_keep_their_order():
    """d0, d1, c0, c1 on a device's communication; one compute op at a time."""
    program = lower(prepare(candidate(8, num_micro_batches=2), load_cluster("rail-2x4"), WORK))
    timeline, labels = run(program, "flow"), program.labels_N
    for d in range(8):
        at = {
            label: labels.index(f"{label[:-2]}{label[-2:]}[{d}]")
            for label in (
                "dispatch@0",
                "dispatch@1",
                "combine@0",
                "combine@1",
                "experts@0",
                "experts@1",
            )
        }
        for before, after in (
            ("dispatch@0", "dispatch@1"),
            ("dispatch@1", "combine@0"),
            ("combine@0", "combine@1"),
            ("experts@0", "experts@1"),
            ("experts@1", "combine@1"),
        ):
            assert timeline.start_s_N[at[after]] >= timeline.end_s_N[at[before]] * (1 - 1e-12)


def test_overlap_hides_an_exchange_behind_experts():
    """Where both weigh alike, two micro-batches beat one; where tokens are few, reading weights
    twice costs more.
    """
    cluster = load_cluster("star-8")
    layer = MoELayer(hidden_size=4096, expert_intermediate_size=1024, num_experts=64, top_k=8)

    def time(tokens, parts):
        case = Candidate(
            layer=layer, parallelism=Parallelism(ep=8), schedule=Schedule(num_micro_batches=parts)
        )
        return simulate(case, cluster, Workload(num_tokens_per_device=tokens)).layer_time_s

    assert time(8192, 2) < 0.95 * time(8192, 1)
    assert time(16, 2) > 1.2 * time(16, 1)


def test_more_micro_batches_than_tokens():
    with pytest.raises(
        ConfigError,
        match=r"^schedule.num_micro_batches: expected at most the 2 tokens of a device, ",
    ):
        simulate(
            candidate(8, num_micro_batches=3),
            load_cluster("star-8"),
            Workload(num_tokens_per_device=2),
        )


def test_a_device_of_its_own_may_have_micro_batches():
    """No exchange at all."""
    layer = MoELayer(hidden_size=1024, expert_intermediate_size=512, num_experts=8, top_k=2)
    alone = Candidate(layer=layer, schedule=Schedule(num_micro_batches=2))
    found = simulate(alone, load_cluster("h100-sxm"), WORK)
    assert found.phase_time_s.get("dispatch", 0.0) == 0.0
    assert (
        found.layer_time_s
        > simulate(Candidate(layer=layer), load_cluster("h100-sxm"), WORK).layer_time_s
    )


def test_send_order_shows_through_simulate():
    """Naive order with one message under way holds a layer up; device granularity knows
    no order.
    """
    cluster = load_cluster("star-32")
    times = {}
    for order in ("rotated", "naive"):
        layer = MoELayer(hidden_size=4096, expert_intermediate_size=256, num_experts=32, top_k=8)
        case = Candidate(
            layer=layer,
            parallelism=Parallelism(ep=32),
            schedule=Schedule(granularity="pair", send_order=order, send_window=1),
        )
        times[order] = simulate(
            case, cluster, Workload(num_tokens_per_device=512), engine="event_compiled"
        )
    slow, fast = times["naive"].phase_time_s, times["rotated"].phase_time_s
    assert slow["dispatch"] + slow["combine"] > 1.5 * (fast["dispatch"] + fast["combine"])


def test_mixed_clusters():
    """The slower half is the bottleneck: no slower than if all were slow, no faster than if all
    were fast.
    """
    mixed = load_cluster("mixed-h100-b200").with_()
    devices = mixed.num_devices
    work = Workload(num_tokens_per_device=64)
    case = candidate(devices)
    found = {
        engine: simulate(case, mixed, work, engine=engine).layer_time_s
        for engine in ("bound", "flow", "event")
    }
    assert found["bound"] <= found["flow"] * (1 + 1e-9)
    assert found["event"] == pytest.approx(found["flow"], rel=0.01)
    slow = simulate(case, load_cluster("h100-rail-8x8"), work).layer_time_s
    assert found["flow"] <= 1.05 * slow
    program = lower(prepare(case, mixed, work))
    timeline = run(program, "flow")
    experts = timeline.end_s_N - timeline.start_s_N
    mine = experts[program.phase_N == program.phase_names.index("experts")]
    assert mine[:32].mean() > 1.2 * mine[32:].mean()
