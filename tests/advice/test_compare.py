"""Clusters side by side: sizes that a budget pays, and the recommendation of each."""

import pytest

from moesim.advice.compare import COLUMNS, compare
from moesim.advice.recommend import recommend
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware.economics import load_economics

QWEN = "qwen3-30b-a3b"


def test_each_is_the_recommendation_of_its_cluster():
    offers = compare(QWEN, ["hgx-h100-8", "hgx-a100-8"], tokens=256)
    assert {offer.name for offer in offers} == {"hgx-h100-8", "hgx-a100-8"}
    rates = [offer.tokens_per_s for offer in offers]
    assert rates == sorted(rates, reverse=True)
    for offer in offers:
        alone = recommend(QWEN, offer.name, tokens=256).best
        assert offer.found.best.candidate == alone.candidate
        row = offer.row()
        assert tuple(row) == COLUMNS
        assert row["kernels"] == alone.result.kernels
        low, high = (row[f"moe_layers_tokens_per_s_{end}"] for end in ("low", "high"))
        assert low < row["moe_layers_tokens_per_s"] < high
        assert row["moe_layers_usd_per_million_tokens"] == pytest.approx(
            row["usd_per_hour"] / 3600 / row["moe_layers_tokens_per_s"] * 1e6
        )


@pytest.mark.parametrize(
    ("budget", "name", "devices"),
    [
        (60.0, "h100-rail-8x8", 16),  # two of its nodes
        (48.0, "hgx-h100-8", 16),  # two of one node each, side by side
        (10.0, "hgx-h100-8", 3),  # less than a tray
        (200.0, "gb200-nvl72", 32),  # a part of the rack, in trays
    ],
)
def test_a_budget_pays_the_largest_part(budget, name, devices):
    (offer,) = compare("olmoe-1b-7b", [name], budget_usd_per_hour=budget, tokens=64)
    row = offer.row()
    assert row["devices"] == devices
    assert row["usd_per_hour"] <= budget


def test_nodes_serve_side_by_side_where_that_is_faster():
    (offer,) = compare(QWEN, ["mi300x-rail-4x8"], tokens=256)
    row = offer.row()
    whole = recommend(QWEN, "mi300x-rail-4x8", tokens=256).best
    assert (row["devices"], row["copies"], offer.cluster.num_devices) == (32, 4, 8)
    assert offer.tokens_per_s > 32 * whole.tokens_per_s_per_device


def test_a_budget_below_a_device_says_so():
    price = load_economics().file.price.usd_per_device_hour["h100-sxm"].value
    (offer,) = compare(QWEN, ["hgx-h100-8"], budget_usd_per_hour=price / 2)
    assert offer.found is None
    assert offer.tokens_per_s == 0.0
    assert offer.row()["why_not"] == f"one device costs {price:.2f} USD/h"


def test_what_does_not_fit_is_a_row_with_its_reason():
    offers = compare("deepseek-v3", ["hgx-h100-8"], tokens=64)
    assert "does not fit on hgx-h100-8" in offers[0].row()["why_not"]


def test_bad_input_is_one_line():
    with pytest.raises(UnknownNameError, match="unknown cluster 'hgx-h10'"):
        compare(QWEN, ["hgx-h10"])
    with pytest.raises(ConfigError, match="budget_usd_per_hour: expected a number > 0, got -1"):
        compare(QWEN, ["hgx-h100-8"], budget_usd_per_hour=-1.0)
