"""The builder: what it refuses, and what a program says of itself."""

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.program.builder import ProgramBuilder

NAN, INF = float("nan"), float("inf")


def builder():
    made = ProgramBuilder()
    made.resource("a", 2.0)
    made.resource("b", 4.0)
    made.op("first", resources=[0], amounts=[1.0])
    return made


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (
            {"resources": [0], "amounts": [-1.0]},
            "op x: expected a finite demand >= 0, got -1.0 of resource 0",
        ),
        (
            {"resources": [0, 1], "amounts": [1.0, INF]},
            "op x: expected a finite demand >= 0, got inf of resource 1",
        ),
        (
            {"resources": [0, 1], "amounts": [1.0, NAN]},
            "op x: expected a finite demand >= 0, got nan of resource 1",
        ),
        (
            {"resources": [2], "amounts": [1.0]},
            "op x: expected a resource below 2, got 1.0 of resource 2",
        ),
        (
            {"resources": [-1], "amounts": [1.0]},
            "op x: expected a resource below 2, got 1.0 of resource -1",
        ),
        (
            {"resources": [1, 1], "amounts": [1.0, 2.0]},
            "op x: expected each resource once, got 2.0 of resource 1",
        ),
        ({"resources": [0], "amounts": []}, "op x: expected one amount per resource, got 0 for 1"),
        ({"latency_s": -1.0}, "op x: expected latency and release >= 0, got -1.0 and 0.0"),
        ({"latency_s": NAN}, "op x: expected latency and release >= 0, got nan and 0.0"),
        ({"release_s": INF}, "op x: expected latency and release >= 0, got 0.0 and inf"),
        ({"after": [1]}, "op x: expected dependencies among the 1 ops before it, got [1]"),
        ({"after": [0, -1]}, "op x: expected dependencies among the 1 ops before it, got [0, -1]"),
        (
            {"resources": [0], "amounts": [1.0], "bytes_per_flow": -1.0},
            "op x: expected bytes per flow >= 0, got -1.0",
        ),
        (
            {"resources": [0], "amounts": [1.0], "bytes_per_flow": INF},
            "op x: expected bytes per flow >= 0, got inf",
        ),
        (
            {"resources": [0], "amounts": [1.0], "bytes_per_flow": NAN},
            "op x: expected bytes per flow >= 0, got nan",
        ),
    ],
)
def test_refused_ops(op, message):
    def build():
        made = builder()
        made.op("x", **op)
        made.build()

    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value) == message


@pytest.mark.parametrize("capacity", [0.0, -1.0, NAN, INF])
def test_refused_capacities(capacity):
    with pytest.raises(ConfigError, match=r"^resource port: expected a finite capacity > 0, got "):
        ProgramBuilder().resource("port", capacity)


def test_demand_in_its_own_unit_and_in_seconds():
    made = builder()
    made.op(
        "second", resources=np.array([1, 0]), amounts=np.array([2.0, 3.0]), after=[0], phase="p"
    )
    made.op("zeros are dropped", resources=[0, 1], amounts=[0.0, 8.0])
    program = made.build()
    assert program.demand_ptr.tolist() == [0, 1, 3, 4]
    assert program.demand_R().tolist() == [4.0, 10.0]
    assert program.busy_s_R().tolist() == [2.0, 2.5]
    assert program.solo_s_N().tolist() == [0.5, 1.5, 2.0]
    assert (program.num_ops, program.phases_N, program.dep_index.tolist()) == (
        3,
        ("", "p", ""),
        [0],
    )


def test_fair_units_are_solo_times_without_communication():
    program = builder().build()
    assert program.fair_unit_s_N.tolist() == program.solo_s_N().tolist()


def test_fair_units_of_communication_go_by_bytes_per_flow_and_keep_their_sum():
    made = builder()
    for flows in (1, 2, 5):
        made.op("send", resources=[0], amounts=[10.0], bytes_per_flow=10.0 / flows)
    made.op("send nothing", resources=[0], amounts=[0.0], bytes_per_flow=3.0)
    units = made.build().fair_unit_s_N
    assert units[0] == 0.5
    assert units[1:4].sum() == pytest.approx(15.0)
    assert (units[1:4] / units[1]).tolist() == pytest.approx([1.0, 1 / 2, 1 / 5])
    assert units[4] == 0.0
