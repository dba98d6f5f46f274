"""All-to-alls on bare fabrics against closed forms: the busiest link, rings and tori, a node,
several nodes.

B is the bytes of all devices together, a device's own share included; W a torus link's bandwidth in
*both directions* together, as the JAX scaling book counts it (How to Scale Your Model, chapters
"Sharded matrices" and "GPUs").
"""

import math

import numpy as np
import pytest

from moesim.engines.bound import run_bound
from moesim.engines.event_compiled import run_event_compiled
from moesim.engines.flow import run_flow
from moesim.engines.run import run
from moesim.hardware import load_cluster
from moesim.hardware.fabric import fabric_of
from moesim.hardware.routes import link_bytes
from moesim.lowering.alltoall import exchange_program, rank_one_program, shares

MB = 1e6
#: bytes for which a few us of hops are nothing
LARGE = 1000 * MB


def even(count, size=LARGE):
    return np.full((count, count), size)


def skewed(count):
    """Hot and cold receivers, alike for all senders."""
    return np.outer(np.full(count, MB), shares("zipf:0.8", count))


def ragged(count, seed=0):
    """Every pair another amount, a tenth of them nothing."""
    rng = np.random.default_rng(seed)
    return rng.lognormal(0.0, 1.0, (count, count)) * (rng.random((count, count)) > 0.1) * MB


def exact(program):
    return run_flow(program, tolerance_s=0.0).makespan_s


def busiest_s(cluster, bytes_SD):
    fabric = fabric_of(cluster)
    return float((link_bytes(fabric, bytes_SD) / fabric.capacity_R).max())


@pytest.mark.parametrize("name", ["star-8", "star-24", "rail-2x4", "rail-4x4", "rail-3x8"])
@pytest.mark.parametrize("traffic", [even, skewed, ragged])
def test_a_star_and_rails_end_when_their_busiest_link_does(name, traffic):
    """By hand: the largest sum of a row or a column of the bytes inside a node, or across, over its
    port's rate.

    Where every pair has another amount, sharing a port fairly is not the best order: the busiest
    idles at the end.
    """
    cluster = load_cluster(name)
    count, per_node = cluster.num_devices, cluster.devices_per_domain
    bytes_SD = traffic(count)
    node = np.arange(count) // per_node
    near = (node[:, None] == node) & ~np.eye(count, dtype=bool)
    far = node[:, None] != node
    by_hand = max(
        np.where(mask, bytes_SD, 0.0).sum(axis=axis).max() / rate
        for mask, rate in ((near, 450e9), (far, 50e9))
        for axis in (0, 1)
    )
    program = exchange_program(cluster, bytes_SD)
    assert run_bound(program).makespan_s == pytest.approx(by_hand, rel=1e-12)
    assert busiest_s(cluster, bytes_SD) == pytest.approx(by_hand, rel=1e-12)
    if traffic is ragged:
        assert by_hand <= exact(program) < 1.2 * by_hand
    else:
        assert exact(program) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("name", ["star-16", "rail-2x8"])
@pytest.mark.parametrize("traffic", [even, skewed, ragged])
def test_no_pair_can_end_sooner_and_few_end_later(name, traffic):
    """Pairs share ports fairly, not optimally: the busiest link idles a little at the end when
    sizes differ.
    """
    cluster = load_cluster(name)
    bytes_SD = traffic(cluster.num_devices)
    busiest = busiest_s(cluster, bytes_SD)
    pairs = exact(exchange_program(cluster, bytes_SD, granularity="pair"))
    assert pairs >= busiest * (1 - 1e-9)
    assert pairs <= busiest * (1.15 if traffic is ragged else 1 + 1e-9)


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_a_bidirectional_ring_takes_b_over_4w(size):
    ring = load_cluster(f"torus-{size}")
    link = ring.file.scale_up.link_gb_per_s.value * 1e9
    expected = size * size * LARGE / (4 * 2 * link)
    for engine in ("bound", "flow"):
        assert run(exchange_program(ring, even(size)), engine).makespan_s == pytest.approx(
            expected, rel=0.03
        )


@pytest.mark.parametrize(
    "axes", [(4, 4), (8, 8), (4, 8), (4, 4, 4), (4, 4, 8), (8, 4, 4), (4, 6, 8)]
)
def test_a_torus_takes_b_times_its_longest_axis_over_4wn(axes):
    torus = load_cluster("torus-" + "x".join(map(str, axes)))
    link, count = torus.file.scale_up.link_gb_per_s.value * 1e9, torus.num_devices
    expected = count * count * LARGE * max(axes) / (4 * 2 * link * count)
    program = exchange_program(torus, even(count))
    assert run_bound(program).makespan_s == pytest.approx(expected, rel=0.03)
    assert exact(program) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("axes", [(8, 8), (4, 4, 8)])
def test_all_to_alls_along_one_axis_take_b_of_their_ring_over_4w(axes):
    """As when experts are spread over one axis only: every ring of that axis by itself, all at
    once.
    """
    torus = load_cluster("torus-" + "x".join(map(str, axes)))
    link, count = torus.file.scale_up.link_gb_per_s.value * 1e9, torus.num_devices
    coord = np.stack(np.unravel_index(np.arange(count), axes))
    for axis, size in enumerate(axes):
        others = np.delete(coord, axis, axis=0)
        same_ring = (others[:, :, None] == others[:, None, :]).all(axis=0)
        program = exchange_program(torus, np.where(same_ring, LARGE, 0.0))
        expected = size * size * LARGE / (4 * 2 * link)
        assert exact(program) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("axes", [(8,), (4, 8), (4, 4, 8)])
def test_without_wrap_around_a_mesh_takes_twice_as_long(axes):
    torus = load_cluster("torus-" + "x".join(map(str, axes)))
    mesh = torus.with_(wrap_multiple_of=0)
    bytes_SD = even(torus.num_devices)
    # through the middle of the longest axis: n/2 places send to n/2 places
    assert busiest_s(mesh, bytes_SD) == pytest.approx(2 * busiest_s(torus, bytes_SD), rel=1e-9)
    assert exact(exchange_program(mesh, bytes_SD)) == pytest.approx(
        busiest_s(mesh, bytes_SD), rel=0.01
    )


def test_short_axes_do_not_wrap_where_wrap_around_needs_a_multiple():
    """A TPU v5e slice closes to rings on axes of 16 only."""
    slice_ = load_cluster("tpu-v5e-4x4")
    link = slice_.file.scale_up.link_gb_per_s.value * 1e9
    # 2 columns x 4 rows send to as many: 8 x 8 pairs over 4 links
    assert run_bound(exchange_program(slice_, even(16))).makespan_s == pytest.approx(
        16 * LARGE / link, rel=1e-3
    )


@pytest.mark.parametrize("name", ["hgx-h100-8", "hgx-a100-8", "gb200-nvl72"])
def test_one_nvlink_node_takes_b_n_minus_1_over_w_n_squared(name):
    node = load_cluster(name)
    count = node.num_devices
    total = count * count * MB
    expected = total * (count - 1) / (node.link_bytes_per_s * count**2)
    assert exact(exchange_program(node, even(count, MB))) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("nodes", [4, 16])
def test_several_nodes_take_b_over_m_w_of_a_node(nodes):
    """B / (M W_node), of which the share that stays in a node, 1 / M, need not cross."""
    rails = load_cluster(f"rail-{nodes}x8")
    count = rails.num_devices
    total, node_rate = count * count * MB, 8 * 50e9
    expected = total / (nodes * node_rate) * (1 - 1 / nodes)
    assert run_bound(exchange_program(rails, even(count, MB))).makespan_s == pytest.approx(
        expected, rel=1e-9
    )
    assert exact(exchange_program(rails, even(count, MB))) == pytest.approx(expected, rel=0.03)


def test_oversubscribed_leaves_slow_what_crosses_them():
    rails = load_cluster("rail-8x4")
    bytes_SD = even(32, MB)
    plain, thin = (
        run_bound(exchange_program(rails.with_(oversubscription=ratio), bytes_SD)).makespan_s
        for ratio in (1.0, 4.0)
    )
    # of the 28 that a NIC sends, 21 leave their rail, by a quarter of its bandwidth
    assert thin / plain == pytest.approx(21 * 4 / 28)
    same_rail = np.where(np.arange(32)[:, None] % 4 == np.arange(32) % 4, bytes_SD, 0.0)
    assert busiest_s(rails.with_(oversubscription=4.0), same_rail) == pytest.approx(
        busiest_s(rails, same_rail)
    )


def test_twisting_a_torus_gains_what_was_published():
    """TPU v4, 4 x 4 x 8: 1.63 (Jouppi et al. 2023, arXiv 2304.01433, figure 6), from the topology
    alone within 5 %.

    Its route tables are static: a pair keeps to one of its equally short ways. An even split would
    gain 1.74.
    """
    plain = load_cluster("tpu-v4-4x4x8")
    bytes_SD = even(128, MB)

    def gain(routing):
        straight, twisted = (
            run_bound(
                exchange_program(plain.with_(routing=routing, twisted=t), bytes_SD)
            ).makespan_s
            for t in (False, True)
        )
        return straight / twisted

    assert gain("single_path") == pytest.approx(1.63, rel=0.05)
    assert gain("single_path") == pytest.approx(1.61, abs=0.01)
    assert gain("dimension_ordered") == pytest.approx(1.745, abs=0.005)


@pytest.mark.parametrize("name", ["torus-4x4x4", "torus-4x8"])
def test_every_order_of_axes_spreads_a_single_flow(name):
    """Dimension-ordered, a pair's bytes use one way; over all orders they leave by every axis."""
    ordered = load_cluster(name)
    multi = ordered.with_(routing="multi_path")
    count = ordered.num_devices
    bytes_SD = np.zeros((count, count))
    bytes_SD[
        0, np.ravel_multi_index([1] * len(ordered.file.scale_up.axes), ordered.file.scale_up.axes)
    ] = LARGE
    axes = len(ordered.file.scale_up.axes)
    assert busiest_s(ordered, bytes_SD) / busiest_s(multi, bytes_SD) == pytest.approx(axes)


def test_send_order_matters_when_a_sender_has_one_message_under_way():
    """All to device 0, then all to 1, ...: receivers take turns and the last turns find senders
    done: about double.
    """
    count = 32
    star = load_cluster(f"star-{count}")

    def alone(order, window):
        program = exchange_program(
            star, even(count, MB), granularity="pair", order=order, window=window
        )
        return run_event_compiled(program, quantum_s=math.inf, min_chunks=1).makespan_s

    best = (count - 1) * MB / 450e9
    assert alone("rotated", 1) == pytest.approx(best, rel=1e-6)
    assert alone("rotated", 0) == pytest.approx(best, rel=1e-6)
    assert 1.7 < alone("naive", 1) / best < 2.2


@pytest.mark.parametrize("engine", ["flow", "event_compiled"])
def test_incast_is_as_slow_as_the_receiver(engine):
    """Fifteen senders, one receiver, and one flow beside them that shares a sender: it is hardly
    held up.
    """
    star = load_cluster("star-16")
    bytes_SD = np.zeros((16, 16))
    bytes_SD[1:, 0] = MB
    bytes_SD[1, 2] = MB
    program = exchange_program(star, bytes_SD, granularity="pair")
    timeline = run(program, engine)
    alone = MB / 450e9
    senders, receivers = (label for label in np.nonzero(bytes_SD))
    order = np.lexsort((senders, (receivers - senders) % 16))
    beside = int(np.flatnonzero((senders[order] == 1) & (receivers[order] == 2))[0])
    assert timeline.makespan_s == pytest.approx(15 * alone, rel=0.01)
    assert timeline.end_s_N[beside] == pytest.approx(alone * 15 / 14, rel=0.1)


@pytest.mark.parametrize(
    "name",
    [
        "star-16",
        "star-64",
        "rail-4x4",
        "rail-8x8",
        "torus-4x4",
        "torus-4x4x4",
        "torus-3x5",
        "tpu-v5e-4x4",
        "tpu-v5p-4x4x4",
    ],
)
@pytest.mark.parametrize("routing", ["uniform", "zipf:0.8", "power_law:1.2"])
def test_rank_one_traffic_needs_no_matrix(name, routing):
    """Factors give what the matrix of pairs gives, as bound and demand by demand."""
    cluster = load_cluster(name)
    count = cluster.num_devices
    sent = np.random.default_rng(1).lognormal(14.0, 0.5, count)
    share = shares(routing, count, 3)
    factored = rank_one_program(cluster, sent, share)
    full = exchange_program(cluster, np.outer(sent, share))
    assert run_bound(factored).makespan_s == pytest.approx(run_bound(full).makespan_s, rel=1e-9)
    assert factored.demand_R() == pytest.approx(full.demand_R(), rel=1e-9)
    assert factored.solo_s_N() == pytest.approx(full.solo_s_N(), rel=1e-9)
    assert factored.latency_s_N == pytest.approx(full.latency_s_N)
    expanded = factored.expanded()
    assert (expanded.demand_ptr == full.demand_ptr).all()
    assert (expanded.demand_resource == full.demand_resource).all()
    assert expanded.demand_amount == pytest.approx(full.demand_amount, rel=1e-9)
    assert exact(factored) == pytest.approx(exact(full), rel=1e-6)


@pytest.mark.parametrize(
    "name", ["h100-rail-8x8", "l40s-pcie-8", "mi300x-8", "tpu-v4-4x4x8-twisted"]
)
def test_fabrics_that_do_not_factor_say_the_same(name):
    """Oversubscribed leaves, PCIe, meshes and twisted tori fall back to the matrix."""
    cluster = load_cluster(name)
    if cluster.file.scale_out is not None:
        cluster = cluster.with_(oversubscription=2.0)
    count = cluster.num_devices
    sent, share = np.full(count, MB), shares("zipf:0.8", count)
    one, full = (
        rank_one_program(cluster, sent, share),
        exchange_program(cluster, np.outer(sent, share)),
    )
    assert run_bound(one).makespan_s == pytest.approx(run_bound(full).makespan_s, rel=1e-12)


def test_rank_one_programs_hold_no_matrix():
    for name in ("star-4096", "rail-512x8", "torus-16x16x16"):
        cluster = load_cluster(name)
        program = rank_one_program(cluster, np.full(4096, MB), shares("zipf:0.8", 4096))
        entries = len(program.demand_amount) + sum(
            np.asarray(getattr(block, field)).size
            for block in program.factored
            for field in ("ops_I", "sent_S", "share_D", "row_I", "column_J")
            if hasattr(block, field)
        )
        assert entries <= 8 * 4096
        assert run_bound(program).makespan_s > 0
