"""Transfers: no byte is cheaper than the port, and an exchange never gets faster with more bytes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.costs.transfer import transfers_for
from moesim.units import US

BYTES = st.floats(0.0, 1e11)


@given(num_bytes=BYTES, devices=st.integers(2, 64))
def test_a_port_is_busy_at_least_for_its_bytes(hgx, num_bytes, devices):
    transfers = transfers_for(replace(hgx, num_devices=devices))
    assert transfers.demand_factor(num_bytes) >= 1.0
    assert transfers.latency_s(num_bytes) > 0.0
    assert transfers.exchange_s(num_bytes) >= num_bytes / hgx.link_bytes_per_s


@given(one=BYTES, two=BYTES)
def test_more_bytes_take_no_less_time_and_no_more_per_byte(hgx, one, two):
    transfers = transfers_for(hgx)
    few, many = sorted((one, two))
    assert transfers.exchange_s(few) <= transfers.exchange_s(many) * (1 + 1e-12)
    assert transfers.demand_factor(few) >= transfers.demand_factor(many)


def test_nothing_to_send_still_starts(hgx):
    """The p-norm of two equal regimes is 2^(1/8) of either: at most a tenth over the start."""
    transfers = transfers_for(hgx)
    start = transfers.calibration["start_us"] * US
    assert start <= transfers.latency_s(0.0) <= 1.1 * start
    assert transfers.latency_s(0.0) == transfers.exchange_s(0.0)


def test_large_exchanges_reach_the_calibrated_efficiency(hgx):
    transfers = transfers_for(hgx)
    c = transfers.calibration
    efficiency = c["port_efficiency"] * 7 / (7 + c["few_peers"])
    assert 1.0 / transfers.demand_factor(1e13) == pytest.approx(efficiency, rel=1e-3)
    assert transfers.exchange_s(1e12) == pytest.approx(1e12 / hgx.link_bytes_per_s / efficiency, rel=1e-2)


def test_prices_are_vectorised(hgx):
    transfers, sizes = transfers_for(hgx), np.array([0.0, 1e3, 1e6, 1e9])
    for price in (transfers.demand_factor, transfers.latency_s, transfers.exchange_s):
        assert price(sizes).tolist() == pytest.approx([float(price(size)) for size in sizes.tolist()])


def test_a_faster_link_is_faster(hgx):
    fast = transfers_for(replace(hgx, link_bytes_per_s=2 * hgx.link_bytes_per_s))
    for num_bytes in (1e5, 1e7, 1e9):
        assert fast.exchange_s(num_bytes) <= transfers_for(hgx).exchange_s(num_bytes)
