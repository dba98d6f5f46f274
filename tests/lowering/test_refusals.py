"""Traffic and fabrics that make no sense, and programs that would not fit: one clear line each,
before any work.
"""

import numpy as np
import pytest

from moesim import limits, load_cluster
from moesim.errors import CapacityError, ConfigError
from moesim.hardware.cluster import build_cluster
from moesim.hardware.cluster_file import ClusterFile
from moesim.hardware.torus import grid
from moesim.lowering.alltoall import exchange_program, rank_one_program

EVEN = np.ones((4, 4))


def changed(entry):
    matrix = EVEN.copy()
    matrix[1, 2] = entry
    return matrix


UNLIKE = "something else than rows of numbers of one length"


@pytest.mark.parametrize(
    ("bytes_SD", "message"),
    [
        (
            np.ones((4, 5)),
            "traffic: expected a matrix of 4 x 4 bytes, got an array of shape (4, 5)",
        ),
        (np.ones(4), "traffic: expected a matrix of 4 x 4 bytes, got an array of shape (4,)"),
        (
            np.ones((5, 5)),
            "traffic: expected a matrix of 4 x 4 bytes, got an array of shape (5, 5)",
        ),
        (np.full((4, 4), "x"), f"traffic: expected a matrix of 4 x 4 bytes, got {UNLIKE}"),
        ([[1.0], [2.0, 3.0]], f"traffic: expected a matrix of 4 x 4 bytes, got {UNLIKE}"),
        (changed(np.nan), "traffic: expected bytes >= 0 from 1 to 2, got nan"),
        (changed(np.inf), "traffic: expected bytes >= 0 from 1 to 2, got inf"),
        (changed(-3.0), "traffic: expected bytes >= 0 from 1 to 2, got -3.0"),
    ],
)
@pytest.mark.parametrize("granularity", ["device", "pair"])
def test_wrong_matrices(bytes_SD, message, granularity):
    with pytest.raises(ConfigError) as caught:
        exchange_program(load_cluster("star-4"), bytes_SD, granularity=granularity)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("sent", "share", "message"),
    [
        (np.ones(3), np.ones(4), "traffic.sent_S: expected 4 numbers, got an array of shape (3,)"),
        (
            np.ones(4),
            np.ones((4, 1)),
            "traffic.share_D: expected 4 numbers, got an array of shape (4, 1)",
        ),
        (np.array([1, np.nan, 1, 1]), np.ones(4), "traffic.sent_S: expected finite numbers >= 0"),
        (np.ones(4), np.array([1, -1, 1, 1]), "traffic.share_D: expected finite numbers >= 0"),
    ],
)
@pytest.mark.parametrize("name", ["star-4", "rail-2x2", "torus-2x2"])
def test_wrong_factors(sent, share, message, name):
    with pytest.raises(ConfigError) as caught:
        rank_one_program(load_cluster(name), sent, share)
    assert str(caught.value) == message


def test_nothing_to_send_takes_no_time():
    from moesim.engines import ENGINES
    from moesim.engines.run import run

    for granularity in ("device", "pair"):
        program = exchange_program(
            load_cluster("rail-2x2"), np.zeros((4, 4)), granularity=granularity
        )
        assert [run(program, engine).makespan_s for engine in ENGINES] == [0.0] * 4
    assert (
        run(rank_one_program(load_cluster("star-4"), np.zeros(4), np.zeros(4)), "bound").makespan_s
        == 0.0
    )


def test_what_would_not_fit_is_refused_with_the_figure(monkeypatch):
    monkeypatch.setattr(limits, "memory_of_machine", lambda: 1e5)
    star = load_cluster("star-64")
    for granularity in ("device", "pair"):
        message = (
            rf"^64 devices at {granularity} granularity would take 0\.0 GiB of memory "
            r"\(limit 0\.0 GiB\): use "
        )
        with pytest.raises(CapacityError, match=message):
            exchange_program(star, np.ones((64, 64)), granularity=granularity)
    rank_one_program(star, np.ones(64), np.ones(64))
    with pytest.raises(CapacityError):
        rank_one_program(
            load_cluster("l40s-pcie-8").with_(devices_per_node=64), np.ones(64), np.ones(64)
        )


def test_factored_programs_are_not_expanded_beyond_memory():
    star = load_cluster("star-16384")
    program = rank_one_program(star, np.ones(16384), np.ones(16384))
    with pytest.raises(
        CapacityError,
        match=r"^program: 16384 ops, expanded, would take 10\.\d GiB of memory \(limit 8\.0 GiB\)",
    ):
        program.expanded()


def test_domains_that_nothing_joins():
    """The file refuses it; so does the fabric of a cluster made in code."""
    from moesim.hardware.fabric import fabric_of

    file = load_cluster("rail-2x2").file.model_copy(update={"scale_out": None})
    cluster = build_cluster("apart", ClusterFile.model_construct(**dict(file)))
    with pytest.raises(
        ConfigError, match=r"^apart: nothing joins device 0 and device 2: \[scale_out\] is missing$"
    ):
        fabric_of(cluster)


@pytest.mark.parametrize(
    ("axes", "twisted"),
    [
        ([4, 4, 8], True),
        ([2, 2, 4], True),
        ([3, 5], False),
        ([2, 2], False),
        ([1, 4], False),
        ([16], False),
    ],
)
def test_every_way_of_a_torus_leads_to_its_end(axes, twisted):
    """Walk them all; no step leaves the grid, and all ways of a pair are equally long."""
    made = grid(axes, [n > 2 for n in axes], twisted=twisted, multi_path=False)
    for s in range(len(made.coord_LA)):
        for d in range(len(made.coord_LA)):
            v = (made.coord_LA[d] - made.coord_LA[s] + made.shift_A) @ made.key_A
            ways = made.steps_VCA[v, : made.ways_V[v]]
            assert len({int(np.abs(way).sum()) for way in ways}) == 1
            for way in ways:
                node = s
                for axis, steps in enumerate(way):
                    for _ in range(abs(int(steps))):
                        node = made.next_LX[node, 2 * axis + (steps < 0)]
                        assert node >= 0
                assert node == d
