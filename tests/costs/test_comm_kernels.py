"""Communication kernels: cases worked out by hand, and what must hold for any size, port
and skew.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import load_profile
from moesim.costs.calibration import Calibration
from moesim.costs.comm.bridge import host_interval, host_seconds
from moesim.costs.comm.deepep import DeepEpLowLatency, DeepEpNormal
from moesim.costs.comm.forms import fill, per_unit, soft_maximum, soft_minimum
from moesim.costs.comm.kernels import NAMES, comm_kernel
from moesim.costs.comm.nccl import Nccl, payload_bytes
from moesim.costs.comm.nvl72 import Nvl72
from moesim.costs.comm.wire import Wire
from moesim.costs.comm.work import Ports, Work
from moesim.errors import UnknownNameError
from moesim.units import GB, KB, US

NODE = Ports(
    near_bytes_per_s=450 * GB,
    far_bytes_per_s=0.0,
    num_ranks=8,
    ranks_per_domain=8,
    num_sms=132,
    memory_bytes_per_s=3350 * GB,
)
TWO_NODES = replace(NODE, far_bytes_per_s=50 * GB, num_ranks=16)
NO_BRIDGE = {"bridge_bytes_per_s": 0.0, "ranks_per_bridge": 1}
SIZES = st.integers(0, 1 << 17)


def work_of(
    kernel, tokens, *, direction="dispatch", top_k=8, experts=256, hidden=7168, copies=None
):
    """A balanced exchange of ``tokens`` per device; ``copies`` per token, default its ranks or
    choices.
    """
    ports, tokens = kernel.ports, np.atleast_1d(np.asarray(tokens, dtype=np.float64))
    if copies is None:
        copies = min(top_k, ports.num_ranks) if kernel.copies == "per_rank" else top_k
    size = kernel.copy_bytes(direction, hidden, top_k, 1.0 if direction == "dispatch" else 2.0)
    near, ranks = min(ports.num_ranks, ports.ranks_per_domain), ports.num_ranks
    return Work(
        tokens_D=tokens,
        copies_D=tokens * copies,
        near_bytes_D=tokens * copies * size * (near - 1) / ranks,
        far_bytes_D=tokens * copies * size * (ranks - near) / ranks,
        hidden_size=hidden,
        top_k=top_k,
        num_experts=experts,
        copy_bytes=size,
    )


def fixed(**parameters):
    return Calibration(name="t", parameters=parameters, residuals={}, level="calibrated", digest="")


@pytest.fixture(params=NAMES)
def kernel(request, h100):
    return comm_kernel(request.param, NODE, h100)


def test_soft_maximum():
    assert soft_maximum(3.0, 0.0) == 3.0
    assert soft_maximum(2.0, 2.0) == pytest.approx(2.0 * 2**0.25)
    assert soft_maximum(2.0, 2.0, norm=8.0) == pytest.approx(2.0 * 2**0.125)
    assert soft_maximum(np.zeros(2), np.zeros(2)).tolist() == [0.0, 0.0]
    assert soft_maximum(1e-90, 1e-95) == pytest.approx(1e-90)


def test_fill_is_all_of_a_short_steady_state_and_the_depth_of_a_long_one():
    assert fill(np.array([0.0, 1e-3, 1e9]), 5.0) == pytest.approx([0.0, 1e-3, 5.0], rel=1e-3)
    assert fill(np.zeros(1), 0.0).tolist() == [0.0]
    assert per_unit(np.array([6.0, 0.0]), np.array([3.0, 0.0])).tolist() == [2.0, 0.0]


def test_soft_minimum():
    assert soft_minimum(3.0, 1e9, norm=8.0) == pytest.approx(3.0)
    assert soft_minimum(2.0, 2.0, norm=8.0) == pytest.approx(2.0 / 2**0.125)


def test_nccl_alltoall_by_hand():
    """8 ranks, 7 MB over the port at 450 GB/s, both protocols written out."""
    names = {
        "start_us": 6.0,
        "hop_us": 0.5,
        "legacy_hop_us": 1.5,
        "port_efficiency": 0.7,
        "few_peers": 0.14,
        "ramp_kb": 5000.0,
        "ramp_knee_kb": 2000.0,
        "protocol_gb_per_s": 6.0,
        "ceiling_us": 13.0,
        "legacy_ceiling_us": 9.0,
        "node_us": 7.0,
        "nic_efficiency": 0.94,
        "channels": 32.0,
    }
    kernel = Nccl(ports=NODE, calibration=fixed(**{f"alltoall_{n}": v for n, v in names.items()}))
    port_us = (7000 + 5000 * 7000 / 9000) / (450 * 0.7 * 7 / 7.14)
    protocol_us = min(7 + 1000 / 6.0, 14.0)
    expected = ((7 + port_us) ** 8 + protocol_us**8) ** (1 / 8)
    assert kernel.time_s(7e6) / US == pytest.approx(expected)
    assert kernel.time_s(0.0) / US == pytest.approx(7.0 * 2**0.125)
    pair = replace(kernel, ports=replace(NODE, num_ranks=2))
    assert replace(pair, legacy=True).time_s(1e5) < pair.time_s(1e5)
    assert replace(kernel, legacy=True).time_s(0.0) / US == pytest.approx(10.0 * 2**0.125)
    across = replace(kernel, ports=TWO_NODES)
    assert across.time_s(0.0, 0.0) / US == pytest.approx(14.5 * 2**0.125)
    assert across.time_s(0.0, 1e9) == pytest.approx(14.5 * US + 1e9 / (0.94 * 50 * GB), rel=1e-6)


def test_nccl_ring_by_hand():
    """8 ranks: each protocol where it is the fastest, and the NIC next to it."""
    names = {
        "start_us": 4.0,
        "hop_us": 1.0,
        "protocol_gb_per_s": 5.0,
        "middle_start_us": 6.0,
        "middle_hop_us": 1.0,
        "middle_efficiency": 0.4,
        "bulk_start_us": 20.0,
        "bulk_hop_us": 1.0,
        "port_efficiency": 0.8,
        "few_peers": 0.14,
        "ramp_kb": 0.0,
        "ramp_knee_kb": 1.0,
        "legacy_factor": 1.2,
        "node_us": 7.0,
        "nic_efficiency": 0.94,
    }
    calibration = fixed(**{f"all_gather_{n}": v for n, v in names.items()})
    kernel = Nccl(ports=NODE, calibration=calibration, collective="all_gather")
    for near_kb in (0.0, 7.0, 700.0, 70000.0):
        buffer_kb = near_kb * 8 / 7
        protocols = (
            11 + buffer_kb / 5,
            13 + buffer_kb / (0.4 * 450),
            27 + near_kb / (0.8 * 450 * 7 / 7.14),
        )
        expected = sum(p**-8 for p in protocols) ** (-1 / 8)
        assert kernel.time_s(near_kb * KB) / US == pytest.approx(expected)
    assert replace(kernel, legacy=True).time_s(0.0) > 1.19 * kernel.time_s(0.0)
    across = replace(kernel, ports=TWO_NODES)
    assert across.time_s(0.0, 1e9) == pytest.approx(1e9 / (0.94 * 50 * GB), rel=2e-2)


PCIE = replace(NODE, near_bytes_per_s=32 * GB, bridge_bytes_per_s=32 * GB, ranks_per_bridge=4)


def test_host_between_pcie_switches_by_hand():
    """8 devices on two switches of 4: four of them send 4/7 of their bytes over one link."""
    one = np.ones(1)
    assert host_seconds(one, PCIE, ring=False) == pytest.approx(4 * 4 / 7)
    assert host_seconds(one, PCIE, ring=True) == pytest.approx(2.0)
    assert host_seconds(one, replace(PCIE, bridge_bytes_per_s=64 * GB), ring=True) == 1.0
    for ports in (NODE, replace(PCIE, num_ranks=4)):
        assert host_seconds(one, ports, ring=False) == host_seconds(one, ports, ring=True) == 0.0
    assert [float(f[0]) for f in host_interval(PCIE, ring=True)] == pytest.approx([1 / 2, 8.0])
    assert [float(f[0]) for f in host_interval(NODE, ring=True)] == [1.0, 1.0]


def test_a_price_through_a_host_says_that_nobody_measured_it():
    profile = load_profile("l40s")
    for name in ("nccl_all_gather", "nccl"):
        here, direct = (comm_kernel(name, p, profile) for p in (PCIE, replace(PCIE, **NO_BRIDGE)))
        assert (here.level, direct.level) == ("none", "spec_sheet")
        low, high = here.interval("dispatch")
        assert low < 0.6 * direct.interval("dispatch")[0]
        assert high > 4.0 * direct.interval("dispatch")[1]
    assert here.time_s(1e8) > 1.5 * direct.time_s(1e8)


def test_nccl_across_nodes_rests_on_no_row(h100):
    kernel = comm_kernel("nccl", TWO_NODES, h100)
    assert kernel.level == "spec_sheet"
    assert kernel.interval("dispatch") == pytest.approx((1 / 1.5, 1.5))
    assert comm_kernel("nccl", NODE, h100).level == "calibrated"


def test_intervals_of_deepep_widen_with_nodes(h100):
    widths = []
    for nodes in (1, 2, 4, 8):
        ports = replace(TWO_NODES, num_ranks=8 * nodes)
        low, high = comm_kernel("deepep_normal", ports, h100).interval("dispatch")
        widths.append(np.log(high / low))
    assert widths == sorted(widths)
    assert widths[3] == pytest.approx(widths[1] * np.sqrt(3.0))


def test_low_latency_by_hand():
    """300 experts on 132 SMs: groups of 3, so 100 SMs; 16 ranks, 8 of them near."""
    calibration = fixed(
        **{
            f"dispatch_{n}": v
            for n, v in {
                "start_us": 8.0,
                "expert_us": 4.0,
                "token_us": 2.0,
                "port_efficiency": 0.5,
                "nic_efficiency": 0.9,
                "node_us": 7.0,
            }.items()
        }
    )
    kernel = DeepEpLowLatency(ports=TWO_NODES, calibration=calibration)
    assert kernel.copy_bytes("dispatch", 1024, 8, 1.0) == 1024 + 8 * 4 + 16
    work = work_of(kernel, [1000], experts=300, hidden=1024)
    size = 1024 + 32 + 16
    sm, near, far = (
        1000 / 100 * 2.0,
        8000 * size * 7 / 16 / (0.5 * 450e3),
        8000 * size * 8 / 16 / (0.9 * 50e3),
    )
    price = kernel.price("dispatch", work)
    expected = 8 + 4 * 300 / 256 + 7 * np.log2(2) + (sm**4 + near**4 + far**4) ** 0.25
    assert price.time_s_D(work, TWO_NODES) / US == pytest.approx([expected])
    assert price.limiting_D.tolist() == ["far"]
    assert price.num_sms == 0


def test_low_latency_combine_by_hand():
    """Memory and port add up; the NIC runs next to them, and any number of domains is one step."""
    names = {
        "start_us": 10.0,
        "expert_us": 1.0,
        "memory_efficiency": 0.2,
        "port_efficiency": 0.75,
        "nic_efficiency": 0.9,
        "node_us": 13.0,
    }
    calibration = fixed(**{f"combine_{n}": v for n, v in names.items()})
    alone = DeepEpLowLatency(ports=NODE, calibration=calibration)
    work = work_of(alone, [512], direction="combine")
    memory, near = 4096 * 14336 / (0.2 * 3350e3), 4096 * 14336 * 7 / 8 / (0.75 * 450e3)
    price = alone.price("combine", work)
    assert price.time_s_D(work, NODE) / US == pytest.approx([11.0 + memory + near])
    for nodes in (2, 8):
        ports = replace(TWO_NODES, num_ranks=8 * nodes)
        kernel = replace(alone, ports=ports)
        work = work_of(kernel, [512], direction="combine")
        near = 4096 * 14336 * 7 / (8 * nodes) / (0.75 * 450e3)
        far = 4096 * 14336 * (nodes - 1) / nodes / (0.9 * 50e3)
        expected = 11.0 + 13.0 + ((memory + near) ** 4 + far**4) ** 0.25
        price = kernel.price("combine", work)
        assert price.time_s_D(work, ports) / US == pytest.approx([expected])


def test_normal_dispatch_by_hand():
    names = {
        "start_us": 20.0,
        "start_us_per_kb": 0.25,
        "scan_us": 0.3,
        "copy_us": 0.05,
        "copy_gb_per_s": 25.0,
        "port_efficiency": 0.8,
        "fill_us": 12.0,
        "fill_us_per_kb": 0.3,
        "hop_factor": 1.5,
        "node_us": 1.0,
        "nic_efficiency": 0.9,
    }
    kernel = DeepEpNormal(
        ports=NODE, calibration=fixed(**{f"dispatch_{n}": v for n, v in names.items()})
    )
    work = work_of(kernel, [4096], copies=5.0)
    b = (7168 * 1.03125 + 12 * 8 + 4) / KB
    sm = 4096 / 20 * (0.3 + 5 * (0.05 + b / 25.0))
    near = 4096 * 5 * 7 / 8 * b / (0.8 * 450)
    steady = (sm**4 + near**4) ** 0.25
    depth = 12 + 0.3 * 5 * b / 20
    expected = 20 + 0.25 * b + steady + depth * steady / (depth + steady)
    assert kernel.price("dispatch", work).time_s_D(work, NODE) / US == pytest.approx([expected])
    slow = replace(kernel, num_sms=10)
    assert slow.price("dispatch", work).sm_s_D == pytest.approx(
        2 * kernel.price("dispatch", work).sm_s_D
    )


def test_nvl72_by_hand():
    names = {
        "start_us": 10.0,
        "rank_us": 2.0,
        "port_efficiency": 0.75,
        "token_us": 0.01,
        "local_us_per_kb": 0.002,
    }
    ports = replace(NODE, near_bytes_per_s=900 * GB, num_ranks=32, ranks_per_domain=72)
    kernel = Nvl72(
        ports=ports, calibration=fixed(**{f"combine_one_sided_{n}": v for n, v in names.items()})
    )
    work = work_of(kernel, [1000], direction="combine", copies=8)
    local = 1000 * (0.01 + 14.336 * 0.002)
    near = 8000 * 14.336 * 31 / 32 / (0.75 * 900)
    expected = 10 + 2 * 5 + (local**4 + near**4) ** 0.25
    assert kernel.price("combine", work).time_s_D(work, ports) / US == pytest.approx([expected])


def test_payload_counts_scales():
    assert [payload_bytes(e) for e in (2.0, 1.0, 0.5)] == [2.0, 1.03125, 0.5625]


@pytest.mark.parametrize("direction", ["dispatch", "combine"])
def test_nothing_to_send_takes_the_start_alone(kernel, direction):
    work = work_of(kernel, [0], direction=direction)
    price = kernel.price(direction, work)
    assert price.sm_s_D.tolist() == [0.0]
    assert 0.0 < price.time_s_D(work, NODE)[0] < 60 * US
    assert price.limiting_D.tolist() == ["start"]


@pytest.mark.parametrize(
    ("near", "far", "start_s", "limiting"),
    [
        (9 * GB, 0.9 * GB, 0.0, "near"),
        (9 * GB, 1.1 * GB, 0.0, "far"),
        (9 * GB, 1.1 * GB, 1.0, "start"),
        (0.0, 0.0, 0.0, "start"),
    ],
)
def test_a_wire_is_held_back_by_the_slower_of_port_and_nic(near, far, start_s, limiting):
    wire = Wire(ports=TWO_NODES, start_s=start_s)
    work = replace(work_of(wire, [128]), near_bytes_D=np.array([near]), far_bytes_D=np.array([far]))
    assert wire.price("dispatch", work).limiting_D.tolist() == [limiting]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["dispatch", "combine"])
def test_one_rank_moves_nothing_over_ports(name, direction, h100):
    kernel = comm_kernel(name, replace(NODE, num_ranks=1), h100)
    work = work_of(kernel, [0, 512], direction=direction, top_k=1)
    price = kernel.price(direction, work)
    assert work.near_bytes_D.tolist() == [0.0, 0.0]
    assert np.isfinite(price.time_s_D(work, kernel.ports)).all()
    assert (price.time_s_D(work, kernel.ports) > 0).all()


@settings(max_examples=60)
@given(
    one=SIZES,
    two=SIZES,
    top_k=st.integers(1, 22),
    direction=st.sampled_from(["dispatch", "combine"]),
    name=st.sampled_from(NAMES),
    nodes=st.sampled_from([1, 2, 4]),
)
def test_more_tokens_take_no_less_and_no_port_is_beaten(
    h100, one, two, top_k, direction, name, nodes
):
    ports = replace(TWO_NODES if nodes > 1 else NODE, num_ranks=8 * nodes)
    kernel = comm_kernel(name, ports, h100)
    work = work_of(kernel, sorted((one, two)), direction=direction, top_k=top_k)
    price = kernel.price(direction, work)
    few, many = price.time_s_D(work, ports)
    assert few <= many * (1 + 1e-12)
    assert (price.near_factor_D >= 1.0).all()
    assert (price.far_factor_D >= 1.0).all()
    assert (price.latency_s_D > 0.0).all()
    assert (price.time_s_D(work, ports) >= work.near_bytes_D / ports.near_bytes_per_s).all()
    if nodes > 1:
        assert (price.time_s_D(work, ports) >= work.far_bytes_D / ports.far_bytes_per_s).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["dispatch", "combine"])
def test_faster_ports_and_more_sms_are_no_slower(name, direction, h100):
    slow, fast = (
        comm_kernel(
            name, replace(TWO_NODES, near_bytes_per_s=v * GB, far_bytes_per_s=v / 9 * GB), h100
        )
        for v in (200, 900)
    )
    for tokens in (1, 128, 4096, 65536):
        work = work_of(slow, [tokens], direction=direction)
        assert fast.price(direction, work).time_s_D(work, fast.ports) <= slow.price(
            direction, work
        ).time_s_D(work, slow.ports)
    times = [
        k.price(direction, work_of(k, [4096])).time_s_D(work_of(k, [4096]), NODE)[0]
        for k in (comm_kernel("deepep_normal", NODE, h100, num_sms=n) for n in (1, 4, 20, 64, 132))
    ]
    assert times == sorted(times, reverse=True)


def test_devices_are_priced_each_by_its_own_share(kernel):
    together = work_of(kernel, [0, 7, 4096])
    price = kernel.price("dispatch", together)
    for device, tokens in enumerate((0, 7, 4096)):
        alone = work_of(kernel, [tokens])
        assert kernel.price("dispatch", alone).time_s_D(alone, NODE)[0] == pytest.approx(
            price.time_s_D(together, NODE)[device]
        )


def test_devices_nobody_measured_are_priced_from_their_spec_sheet():
    mesh = replace(NODE, near_bytes_per_s=448 * GB, num_sms=304, memory_bytes_per_s=5300 * GB)
    kernel = comm_kernel("nccl", mesh, load_profile("mi300x"))
    low, high = kernel.interval("dispatch")
    assert (kernel.level, low < 1.0 < high) == ("spec_sheet", True)
    near = comm_kernel("nccl", NODE, load_profile("h100"))
    assert low < near.interval("dispatch")[0]
    assert (
        comm_kernel("deepep_normal", NODE, load_profile("b200"), few_shot=False).level
        == "spec_sheet"
    )
    assert comm_kernel("deepep_normal", NODE, load_profile("b200")).level == "few_shot"


def test_unknown_kernel(h100):
    with pytest.raises(
        UnknownNameError, match="unknown communication kernel 'deep_ep': did you mean deepep"
    ):
        comm_kernel("deep_ep", NODE, h100)


#: published in the DeepEP README for H800 (200 GB/s NVLink, 400 Gb/s NIC), 128 tokens, hidden 7168,
#: top-8: ranks, us
PUBLISHED = {
    "dispatch": {8: 77, 16: 118, 32: 155, 64: 173, 128: 192, 256: 194},
    "combine": {8: 114, 16: 195, 32: 273, 64: 314, 128: 369, 256: 360},
}


@pytest.mark.parametrize(
    ("direction", "ranks", "us"),
    [(d, r, us) for d, row in PUBLISHED.items() for r, us in row.items()],
)
def test_published_low_latency_within_15_percent(direction, ranks, us):
    ports = replace(
        NODE,
        near_bytes_per_s=200 * GB,
        far_bytes_per_s=50 * GB if ranks > 8 else 0.0,
        num_ranks=ranks,
    )
    kernel = comm_kernel("deepep_ll", ports, load_profile("h800"))
    work = work_of(kernel, [128], direction=direction, experts=288 if ranks == 256 else 256)
    assert kernel.price(direction, work).time_s_D(work, ports)[0] / US == pytest.approx(
        us, rel=0.15
    )
