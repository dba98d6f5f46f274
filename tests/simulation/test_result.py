"""Results: that their parts add up, what their row holds, and how far they say they can
be trusted.
"""

import hashlib
from dataclasses import replace

import pytest

from moesim import Workload, load_cluster, simulate
from moesim.design.schedule import Schedule
from moesim.engines import ENGINES
from moesim.files import toml
from moesim.hardware.libraries import kernel_library
from moesim.simulation.result import RESULT_COLUMNS
from moesim.simulation.trust import granularity_of

WORK = Workload(num_tokens_per_device=512, routing="power_law:1.2")


@pytest.fixture(scope="module")
def candidate(make_candidate):
    return make_candidate(num_experts=64, top_k=4, hidden_size=2048)


@pytest.mark.parametrize("engine", ENGINES)
def test_result_adds_up(hgx, candidate, engine):
    result = simulate(candidate, hgx, WORK, engine=engine)
    assert result.tokens_per_s == pytest.approx(8 * 512 / result.layer_time_s)
    assert result.tokens_per_s_per_device == pytest.approx(512 / result.layer_time_s)
    assert set(result.utilisation) == {"sm", "hbm", "egress", "ingress"}
    assert all(0 < share <= 1 + 1e-9 for share in result.utilisation.values())
    assert result.load_imbalance >= 1
    bound_s = simulate(candidate, hgx, WORK, engine="bound").layer_time_s
    assert result.bound_s == bound_s <= result.layer_time_s * (1 + 1e-9)
    assert (result.dropped_token_fraction, result.peak_memory_bytes) == (0.0, None)
    assert (result.evidence, result.cluster, result.workload.seed) == ("simulated", "hgx-h100-8", 0)
    assert result.calibration in ("calibrated", "few_shot", "spec_sheet")
    assert 0 < result.experts_time_s <= result.layer_time_s


def test_row_has_the_columns_people_rely_on(hgx, candidate):
    row = simulate(candidate, hgx, WORK).row()
    assert tuple(row) == RESULT_COLUMNS
    assert row["layer_time_us"] == pytest.approx(
        sum(
            row[f"{p}_us"]
            for p in ("gate", "permute", "dispatch", "shared", "experts", "combine", "reduce")
        )
    )
    assert row["candidate"] == candidate.label


def test_same_arguments_same_result(hgx, candidate):
    assert simulate(candidate, hgx, WORK) == simulate(candidate, hgx, WORK)
    assert simulate(candidate, hgx, WORK) != simulate(candidate, hgx, replace(WORK, seed=1))


def test_the_hash_changes_with_what_the_result_rests_on(hgx, candidate, tmp_path, monkeypatch):
    hashes = {
        simulate(candidate, hgx, WORK).profile_hash,
        simulate(candidate, load_cluster("hgx-a100-8"), WORK).profile_hash,
    }
    library = kernel_library(simulate(candidate, hgx, WORK).kernels)
    for name in (library.calibration, "nccl"):
        folder = tmp_path / hashlib.sha256(name.encode()).hexdigest()[:8]
        (folder / "calibration").mkdir(parents=True)
        shipped = toml.find("calibration", name)
        monkeypatch.setenv("MOESIM_PROFILES", str(folder))
        (folder / "calibration" / shipped.name).write_text(shipped.read_text() + "\n# changed\n")
        hashes.add(simulate(candidate, hgx, WORK).profile_hash)
    assert len(hashes) == 4


def test_the_weaker_calibration_counts(hgx, candidate, tmp_path, monkeypatch):
    """Kernels fitted on this device, transfers on others only: no better than a spec sheet."""
    assert simulate(candidate, hgx, WORK).calibration == "calibrated"
    text = toml.find("calibration", "nccl").read_text()
    (tmp_path / "calibration").mkdir()
    path = tmp_path / "calibration" / "nccl.toml"
    path.write_text(text.replace('"h100-sxm"', '"a100-sxm"'))
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    assert simulate(candidate, hgx, WORK).calibration == "spec_sheet"


@pytest.mark.parametrize(
    ("name", "changes", "schedule", "flag"),
    [
        ("hgx-h100-8", {}, {}, "device"),
        ("hgx-h100-8", {}, {"granularity": "pair"}, "pair"),
        ("rail-8x8", {}, {"exchange": "deepep_normal"}, "device"),
        ("rail-16x8", {}, {"exchange": "nccl"}, "device"),
        ("rail-16x8", {}, {"exchange": "deepep_normal"}, "device_loose"),
        ("rail-16x8", {}, {"exchange": "deepep_normal", "granularity": "pair"}, "pair"),
        ("star-256", {}, {"exchange": "hierarchical"}, "device"),
        ("rail-2x4", {"oversubscription": 2.0}, {}, "device_loose"),
        ("torus-4x4x4", {}, {}, "device"),
        ("torus-8x16", {}, {}, "device_loose"),
        ("mixed-h100-b200", {}, {}, "device_loose"),
        ("h100-sxm", {}, {}, "device"),
    ],
)
def test_where_one_transfer_per_device_is_loose(name, changes, schedule, flag):
    cluster = load_cluster(name)
    assert (
        granularity_of(cluster.with_(**changes) if changes else cluster, Schedule(**schedule))
        == flag
    )


def test_results_carry_how_transfers_were_simulated(make_candidate):
    candidate = make_candidate(ep=8, num_experts=64, top_k=4)
    thin = load_cluster("rail-2x4").with_(oversubscription=2.0)
    assert simulate(candidate, load_cluster("rail-2x4"), WORK).row()["granularity"] == "device"
    assert simulate(candidate, thin, WORK).row()["granularity"] == "device_loose"
    pairs = replace(candidate, schedule=Schedule(granularity="pair"))
    assert simulate(pairs, thin, WORK).row()["granularity"] == "pair"


@pytest.mark.parametrize(
    ("name", "dispatch", "level"),
    [
        ("h100-rail-8x8", "nvl72", "none"),
        ("tpu-v5p-4x4x4", "nccl", "none"),
        ("hgx-h100-8", "ici", "none"),
        ("hgx-h100-8", "nccl", "calibrated"),
        ("gb200-nvl72", "nvl72", "spec_sheet"),
    ],
)
def test_an_exchange_priced_elsewhere_than_it_runs_rests_on_nothing(
    make_candidate, name, dispatch, level
):
    cluster = load_cluster(name)
    candidate = replace(
        make_candidate(num_experts=cluster.num_devices * 2, top_k=2, ep=cluster.num_devices),
        schedule=Schedule(exchange=dispatch),
    )
    assert simulate(candidate, cluster, WORK).calibration == level
