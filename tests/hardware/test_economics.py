"""What devices draw and cost: shares that add up, figures that are missing and said so."""

import pytest

from moesim import load_cluster
from moesim.errors import ConfigError
from moesim.files.toml import names, shipped
from moesim.hardware.economics import load_economics

BUSY = {"sm": 1.0, "hbm": 1.0, "egress": 1.0, "ingress": 1.0}


def test_busy_devices_draw_what_they_are_rated_at(hgx):
    model = load_economics()
    factor = model.file.power.host_factor.value * model.file.power.pue.value
    assert model.watts(hgx, BUSY) == pytest.approx(8 * 700.0 * factor)
    idle = model.file.power.shares.fixed + model.file.power.shares.memory_capacity
    assert model.watts(hgx, {}) == pytest.approx(8 * 700.0 * idle * factor)


@pytest.mark.parametrize(
    ("key", "share"),
    [
        ("hbm_gb_per_s", "memory_bandwidth"),
        ("hbm_gib", "memory_capacity"),
        ("num_sms", "compute"),
        ("nvlink_gb_per_s", "links"),
    ],
)
def test_twice_of_a_part_costs_and_draws_its_share_more(hgx, key, share):
    model = load_economics()
    grown = hgx.with_(**{key: "2x"})
    assert model.usd_per_hour(grown) / model.usd_per_hour(hgx) == pytest.approx(
        1 + getattr(model.file.price.shares, share)
    )
    assert model.watts(grown, BUSY) / model.watts(hgx, BUSY) == pytest.approx(
        1 + getattr(model.file.power.shares, share)
    )


def test_every_shipped_cluster_has_a_price_and_a_power():
    model = load_economics()
    for name in names("clusters"):
        cluster = load_cluster(name)
        assert model.unknown_price(cluster) is None, name
        assert model.unknown_power(cluster) is None, name
        assert model.usd_per_hour(cluster) > 0 < model.watts(cluster, BUSY)


def test_nics_come_on_top():
    model, rail = load_economics(), load_cluster("h100-rail-8x8")
    one = load_cluster("hgx-h100-8")
    assert model.usd_per_hour(rail) == pytest.approx(8 * model.usd_per_hour(one) + 64 * 0.15)
    assert model.watts(rail, BUSY | {"nic_out": 1.0, "nic_in": 1.0}) > 8 * model.watts(one, BUSY)
    assert model.usd_per_hour(rail.with_(nic_gb_per_s="2x")) == pytest.approx(8 * 24.0 + 64 * 0.30)


def test_a_missing_figure_is_named(tmp_path, hgx):
    text = shipped("economics", "default.toml").read_text().replace("h100-sxm = ", "h100-sxm-x = ")
    (tmp_path / "own.toml").write_text(text)
    model = load_economics(str(tmp_path / "own.toml"))
    with pytest.raises(
        ConfigError, match=r"economics own: price.usd_per_device_hour: expected a price of h100-sxm"
    ):
        model.usd_per_hour(hgx)
    assert model.watts(hgx, {}) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("compute = 0.25", "compute = 0.30"),
            r"price.shares.links: expected shares that sum to 1, got 1.05",
        ),
        (
            ("pue = {value = 1.2", "pue = {value = 0.0"),
            r"power.pue.value: expected a number > 0, got 0",
        ),
        (("[power.shares]", "[power.share]"), r"power"),
    ],
)
def test_malformed_files(tmp_path, change, message):
    (tmp_path / "own.toml").write_text(
        shipped("economics", "default.toml").read_text().replace(*change)
    )
    with pytest.raises(ConfigError, match=message):
        load_economics(str(tmp_path / "own.toml"))


def test_no_such_file():
    with pytest.raises(ConfigError):
        load_economics("defualt")
