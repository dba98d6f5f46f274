"""Rows of fabrics with ports against the walk that every fabric can take, compiled and plain."""

import numpy as np
import pytest

from moesim import load_cluster
from moesim.hardware import port_rows, routes
from moesim.hardware.fabric import PORTS, fabric_of


@pytest.mark.parametrize(
    "name", ["hgx-h100-8", "h100-rail-8x8", "l40s-pcie-8", "rail-4x4", "star-8"]
)
@pytest.mark.parametrize("plain", [False, True])
def test_pairs_and_devices(name, plain):
    cluster = load_cluster(name)
    fabric, count = fabric_of(cluster), cluster.num_devices
    assert fabric.tables.near_kind == PORTS
    rng = np.random.default_rng(0)
    bytes_SD = rng.uniform(0.0, 9.0, (count, count)) * (rng.random((count, count)) > 0.3)
    factors = routes.Factors(*(rng.uniform(1.0, 2.0, count) for _ in range(5)))
    land_D = np.arange(count) + fabric.num_resources
    top = fabric.num_resources + count
    senders, receivers = np.nonzero(bytes_SD * (1 - np.eye(count)))
    pairs = port_rows.port_pairs.py_func if plain else port_rows.port_pairs
    rows = port_rows.port_rows.py_func if plain else port_rows.port_rows
    args = (fabric.tables, bytes_SD, senders, receivers, factors, land_D, top)
    for mine, other in zip(pairs(*args), routes._pair_rows(*args), strict=True):
        assert mine == pytest.approx(other, rel=1e-15)
    for by_receiver in (True, False):
        args = (fabric.tables, bytes_SD, by_receiver, factors, land_D, top)
        for mine, other in zip(rows(*args), routes._device_rows(*args), strict=True):
            assert mine == pytest.approx(other, rel=1e-12)
