"""Growth from 1,000 to 1,000,000 experts: devices, traffic, loss, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import CapacityError, ConfigError
from moesim.hardware import load_cluster
from moesim.model import Gate
from moesim.model.hf_config import load_model
from moesim.operations import GrowthPlan, GrowthStage, grow, saved_device_hours
from moesim.operations.growth_traffic import growth_traffic

STAGES = (
    GrowthStage(month=0, num_experts=1_000),
    GrowthStage(month=3, num_experts=10_000, gate=Gate(kind="product_key")),
    GrowthStage(month=6, num_experts=1_000_000),
)


@pytest.fixture(scope="module")
def plan():
    return GrowthPlan(
        model=load_model("olmoe-1b-7b"),
        cluster=load_cluster("h100-rail-8x8"),
        stages=STAGES,
        months=9.0,
        tokens_per_month=1e12,
        expert_width=64,
    )


def test_a_year_from_a_thousand_to_a_million(plan):
    stages = grow(plan)
    usable = plan.cluster.profile.usable_bytes
    assert [stage.devices for stage in stages] == [8, 16, 2048]
    assert all(stage.memory_bytes <= usable for stage in stages)
    # half of the devices would not do: their share of the experts alone is too much
    experts = 1e6 * 3 * 2048 * 64 * 16 * (2 + 4 + 12)
    assert stages[-1].total_params == pytest.approx(experts / 18, rel=0.01)
    assert experts / 1024 > usable > experts / 2048
    assert stages[0].moved_bytes == stages[0].downtime_s == 0
    assert stages[2].moved_bytes > stages[1].moved_bytes > 0
    assert stages[1].downtime_s > plan.restart_s
    for stage in stages:
        low, middle, high = stage.loss
        assert low < middle < high
        assert stage.extrapolated
    assert stages[2].loss[1] < stages[1].loss[1] < stages[0].loss[1]
    hours = [stage.device_hours for stage in stages]
    assert hours == pytest.approx([n * 3 * 730.5 for n in (8, 16, 2048)])
    assert saved_device_hours(stages) == pytest.approx(1 - (8 + 16 + 2048) / (3 * 2048))
    # a served model needs no optimizer, and new experts that are drawn do not travel
    assert grow(replace(plan, training=False))[-1].devices < 2048
    drawn = replace(plan, stages=tuple(replace(stage, upcycled=False) for stage in STAGES))
    assert grow(drawn)[-1].moved_bytes < 0.2 * stages[-1].moved_bytes


def test_what_fits_nowhere_is_refused(plan):
    with pytest.raises(CapacityError, match=r"1,000,000 experts at month 6 fit on no num"):
        grow(replace(plan, most_devices=1024))


def test_traffic_of_copies():
    cluster = load_cluster("h100-rail-8x8")
    same = {"cluster": cluster, "expert_bytes": 3.0, "dense_bytes": 0.0}
    # on the same devices copies are made where they stay
    alone = growth_traffic(experts=(128, 256), devices=(64, 64), upcycled=True, **same)
    assert alone == (0.0, 0.0)
    # on twice as many, half of them go: to a new device, but for the first of those of device 0
    moved, seconds = growth_traffic(experts=(128, 256), devices=(32, 64), upcycled=True, **same)
    assert moved == 3.0 * (256 - 4)
    assert seconds > 0
    fewer, _ = growth_traffic(experts=(128, 256), devices=(32, 64), upcycled=False, **same)
    assert fewer == 3.0 * (128 - 2)
    dense = dict(same, expert_bytes=0.0, dense_bytes=7.0)
    assert growth_traffic(experts=(64, 64), devices=(32, 64), upcycled=True, **dense)[0] == 7.0 * 32


def test_large_clusters_are_bounded_by_the_busiest_port():
    big = load_cluster("h100-rail-8x8").with_(num_nodes=128)
    given = {"experts": (2048, 4096), "devices": (512, 1024), "upcycled": True}
    moved, seconds = growth_traffic(big, expert_bytes=1e9, dense_bytes=0.0, **given)
    assert np.isfinite(moved)
    # a device sends four experts to each of two others
    assert seconds == pytest.approx(8e9 / big.nic_bytes_per_s, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": STAGES[1:]}, "growth.stages[0].month: expected 0, got 3"),
        ({"stages": (STAGES[0], STAGES[0])}, "growth.stages[1].month: expected > 0, got 0"),
        (
            {"stages": (STAGES[0], GrowthStage(month=1, num_experts=8))},
            "growth.stages[1].num_experts: expected >= 1000, those before, got 8",
        ),
        ({"months": 6.0}, "growth.months: expected > 6, the last stage, got 6.0"),
    ],
)
def test_bad_plans_are_one_line(plan, change, said):
    with pytest.raises(ConfigError) as error:
        replace(plan, **change)
    assert str(error.value) == said
