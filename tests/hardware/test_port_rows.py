"""Rows of every fabric: compiled and plain, in little room, and on ports against the walk that
every fabric can take.
"""

from functools import partial

import numpy as np
import pytest

from moesim import load_cluster
from moesim.hardware import port_rows, routes
from moesim.hardware.fabric import PORTS, fabric_of
from moesim.testing.exchanges import FABRICS

PORTED = ["hgx-h100-8", "h100-rail-8x8", "l40s-pcie-8"]


def functions_of(fabric, seed=0):
    """Return [device rows by receiver, by sender, pair rows] of random traffic, as functions."""
    count = fabric.num_devices
    rng = np.random.default_rng(seed)
    bytes_SD = rng.uniform(0.0, 9.0, (count, count)) * (rng.random((count, count)) > 0.3)
    given = {
        "factors": routes.Factors(*(rng.uniform(1.0, 2.0, count) for _ in range(5))),
        "land_D": np.arange(count) + fabric.num_resources,
    }
    pairs = np.nonzero(bytes_SD * (1 - np.eye(count)))
    return [
        partial(routes.device_rows, fabric, bytes_SD, by="receiver", **given),
        partial(routes.device_rows, fabric, bytes_SD, by="sender", **given),
        partial(routes.pair_rows, fabric, bytes_SD, *pairs, **given),
    ]


def expect_equal(rows, others):
    for mine, other in zip(rows, others, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert one.dtype == two.dtype
            assert (one == two).all()


@pytest.mark.parametrize("name", FABRICS)
def test_compiled_as_written(name, monkeypatch):
    functions = functions_of(fabric_of(FABRICS[name]()))
    monkeypatch.setattr("moesim.compiled.BUDGET_S", 0.0)
    compiled = [rows() for rows in functions]
    for name in ("_device_rows", "_pair_rows", "_add", "_scatter", "port_rows", "port_pairs"):
        monkeypatch.setattr(routes, name, getattr(routes, name).py_func)
    # the pseudo-random number of a route is meant to overflow
    with np.errstate(over="ignore"):
        expect_equal(compiled, [rows() for rows in functions])


@pytest.mark.parametrize("name", ["star", "mesh", "torus"])
def test_rows_go_on_where_room_ends(name, monkeypatch):
    """Rooms for a single row at first."""
    functions = functions_of(fabric_of(FABRICS[name]()))
    whole = [rows() for rows in functions]
    kept = routes._rows
    monkeypatch.setattr(routes, "_rows", lambda *given: kept(*given[:-1], 0))
    expect_equal(whole, [rows() for rows in functions])


@pytest.mark.parametrize("name", PORTED)
def test_ports_against_the_walk_of_every_fabric(name, monkeypatch):
    fabric = fabric_of(load_cluster(name))
    assert fabric.tables.near_kind == PORTS
    functions = functions_of(fabric)
    short = [rows() for rows in functions]
    monkeypatch.setattr(routes, "port_rows", routes._device_rows)
    monkeypatch.setattr(routes, "port_pairs", routes._pair_rows)
    for mine, other in zip(short, [rows() for rows in functions], strict=True):
        for one, two in zip(mine, other, strict=True):
            assert one == pytest.approx(two, rel=1e-12)


def test_arrays_of_all_kinds_share_one_compiled_function(monkeypatch):
    """Read-only, strided and integer arguments."""
    monkeypatch.setattr("moesim.compiled.BUDGET_S", 0.0)
    fabric = fabric_of(load_cluster("h100-rail-8x8"))
    count = fabric.num_devices
    one = np.broadcast_to(1.0, (count,))
    for bytes_SD, factor in (
        (np.broadcast_to(1.0, (count, count)), one),
        (np.ones((count, 2 * count), dtype=np.int32)[:, ::2], np.ones(2 * count)[::2]),
        (np.ones((count, count)), np.ones(count)),
    ):
        factors = routes.Factors(factor, one, factor, one, factor)
        for land_D in (np.broadcast_to(-1, (count,)), np.full(count, -1, dtype=np.int32)):
            given = {"factors": factors, "land_D": land_D}
            routes.device_rows(fabric, bytes_SD, by="sender", **given)
            routes.pair_rows(fabric, bytes_SD, [0, 1], np.array([2, 3]), **given)
    assert [len(f.compiled.signatures) for f in (port_rows.port_rows, port_rows.port_pairs)] == [
        1,
        1,
    ]
