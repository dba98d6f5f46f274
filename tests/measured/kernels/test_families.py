"""Libraries: which rows are theirs, what may be fitted, and how far off their prices are."""

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.fused_formats import (
    FORMATS,
    format_parameters,
    formats_of,
    serves,
)
from moesim.costs.devices.fused_model import BOUNDS, FusedWork, TileRule, fused_seconds_R
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import load_profile
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.family_calibrate import calibrate, collect, fit_rows, may_fit
from moesim.measured.kernels.family_predict import family_rows, predict_family
from moesim.measured.kernels.family_records import FAMILIES, family_named, family_of
from moesim.measured.kernels.validate import measured_rows, predicted

H100, B200 = load_profile("h100-sxm"), load_profile("b200-sxm")
RULE = TileRule(least_rows=16, most_rows=128, row_factor=1.0, whole_waves=False)
PARAMETERS = {name: first for name, (first, _, _) in BOUNDS.items()}


def work(rows=(512.0,), active=8.0, blocks=8.0, **changes):
    rows = np.array(rows)
    return FusedWork(
        **{
            "rows_R": rows,
            "active_R": np.full(rows.shape, active),
            "local_R": np.full(rows.shape, 8.0),
            "blocks_R": np.full(rows.shape, blocks),
            "block_m_R": np.full(rows.shape, 64.0),
            "tokens_R": rows / 2,
            "choices_R": rows,
            "hidden_R": np.full(rows.shape, 4096.0),
            "width_R": np.full(rows.shape, 1536.0),
            "num_up_R": np.full(rows.shape, 2.0),
            "fmt": "bfloat16",
            "weight_bytes": 2.0,
            "input_bytes": 2.0,
        }
        | changes
    )


def test_every_row_that_may_be_fitted_has_one_family():
    for row in fit_rows():
        [named] = [one for one in FAMILIES.values() if row["family"] in one.fit_names]
        key = (row["dataset"], row["kernel_source"], named.op_name)
        assert family_of(*key) == named
        assert [one for one in FAMILIES.values() if one.has(*key)] == [named]
        assert named.group_of(row["dataset"]) == row["family"]
        assert family_named(row["family"]).has(*key)
        assert row["system"] in ("h100_sxm", "b200_sxm")
        assert row["dtype"] in FORMATS


def test_triton_is_no_family():
    assert family_of("sglang/0.5.14", "sglang_fused_moe_triton") is None
    assert family_of("trtllm/1.3.0rc20", "moe_torch_flow").name == "trtllm-gen"
    assert family_of("trtllm/1.3.0rc20", "moe_torch_flow_cutlass").name == "trtllm-cutlass"
    assert family_of("sglang/0.5.14", "deepgemm") is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_calibration_states_its_rows_and_formats(name):
    """Of H100 and B200 alone, with every parameter inside its limits."""
    calibration = load_calibration(name, H100)
    for dtype, generations in formats_of(calibration).items():
        device = H100 if 90 in generations else B200
        rule, parameters = format_parameters(calibration, dtype, device)
        assert rule.least_rows <= rule.most_rows
        for key, (_, low, high) in BOUNDS.items():
            assert low * 0.999 <= parameters[key] <= high * 1.001
    path = Path(str(files("moesim_hw_profiles"))) / "calibration" / f"{name}.toml"
    file = tomllib.loads(path.read_text(encoding="utf-8"))
    assert set(file["calibrated_profiles"]) <= {"h100-sxm", "b200-sxm"}
    assert file["command"] == f"moesim calibrate kernels --family {name}"
    assert {line.split()[0] for line in file["fit_groups"]} <= {"h100_sxm", "b200_sxm"}
    with pytest.raises(ConfigError, match=r"expected .+ on sm_.+, got int1 on h100-sxm"):
        format_parameters(calibration, "int1", H100)


def test_the_price_by_hand():
    """One GEMM waits for its weights, nothing else counts."""
    free = PARAMETERS | {
        "start_us": 7.0,
        "expert_us": 0.0,
        "local_us": 0.0,
        "choice_ns": 0.0,
        "mma_efficiency": 1e9,
        "tile_cycles": 0.0,
        "l2_bytes_per_cycle": 1e12,
        "weight_efficiency": 0.5,
        "activation_efficiency": 1e12,
    }
    [seconds] = fused_seconds_R(work(), H100, RULE, free)
    weights = 8 * 3 * 4096 * 1536 * 2.0
    assert seconds == pytest.approx(weights / (0.5 * 3.35e12) + 7e-6, rel=1e-6)
    slots = free | {"expert_us": 1.0, "local_us": 2.0, "choice_ns": 3.0}
    [more] = fused_seconds_R(work(), H100, RULE, slots)
    assert more - seconds == pytest.approx(8e-6 + 16e-6 + 3e-9 * 512)
    assert fused_seconds_R(work(rows=(0.0,), active=0.0, blocks=0.0), H100, RULE, free) == [0.0]


def test_more_work_never_costs_less():
    [one], [other] = (
        fused_seconds_R(work(blocks=blocks), H100, RULE, PARAMETERS) for blocks in (8.0, 16.0)
    )
    assert one <= other
    few, many = fused_seconds_R(work(rows=(512.0, 4096.0)), H100, RULE, PARAMETERS)
    assert few < many
    whole = replace(RULE, whole_waves=True)
    assert fused_seconds_R(work(), H100, whole, PARAMETERS) != [one]


def test_work_from_counts_by_hand():
    """Two devices of three experts: 40 and 200 rows, in tiles of 32 and 64."""
    found = FusedWork.of(
        np.array([[40, 0, 0], [100, 1, 99]]),
        rule=replace(RULE, row_factor=0.5),
        tokens_D=np.array([40, 150]),
        choices_D=np.array([320, 1200]),
        num_experts=24,
        hidden=4096,
        width=1536,
        num_up=2,
        fmt="bfloat16",
        weight_bytes=2.0,
        input_bytes=2.0,
    )
    assert found.rows_R.tolist() == [40, 200]
    assert found.active_R.tolist() == [1, 3]
    assert found.block_m_R.tolist() == [32, 64]
    assert found.blocks_R.tolist() == [2, 2 + 1 + 2]
    expected = replace(RULE, by_expected=True)
    assert expected.block_m(40, 1, 320 / 24) == 16


def test_only_skipped_choices_may_cost():
    """Twice as many choices as rows: half of them are of other devices."""
    free = PARAMETERS | {"choice_ns": 0.0}
    [none], [every], [remote] = (
        fused_seconds_R(work(choices_R=np.array([1024.0])), H100, rule, parameters)
        for rule, parameters in (
            (RULE, free),
            (RULE, free | {"choice_ns": 2.0}),
            (replace(RULE, remote_only=True), free | {"choice_ns": 2.0}),
        )
    )
    assert every - none == pytest.approx(2e-9 * 1024)
    assert remote - none == pytest.approx(2e-9 * 512)


def test_work_hides_a_share_of_the_start():
    """No phase is shorter than its start; longer ones wait for the exposed share."""
    long = PARAMETERS | {"start_us": 1.0}
    [alone] = fused_seconds_R(work(), H100, replace(RULE, exposed=0.0), long)
    for start_us, exposed, seconds in (
        (10.0, 1.0, alone + 10e-6),
        (10.0, 0.5, alone + 5e-6),
        (1000.0, 0.0, 1000e-6),
    ):
        rule, slow = replace(RULE, exposed=exposed), PARAMETERS | {"start_us": start_us}
        assert fused_seconds_R(work(), H100, rule, slow) == pytest.approx([seconds])


def test_rows_of_a_tile_follow_the_mean_load():
    assert [RULE.block_m(n, 8, 1) for n in (1, 128, 129, 512, 9999)] == [16, 16, 32, 64, 128]
    assert replace(RULE, row_factor=0.5).block_m(512, 8, 1) == 32
    assert replace(RULE, by_expected=True).block_m(512, 8, 17) == 32


@pytest.mark.parametrize(
    ("name", "system", "dtype", "most"),
    [
        ("trtllm-deepgemm", "gb200", "fp8_block", (6, 10)),
        ("trtllm-cutlass", "h200_sxm", "fp8_block", (12, 16)),
        ("flashinfer-trtllm-vllm", "gb300", "fp8", (8, 11)),
        ("flashinfer-trtllm-sglang", "b300_sxm", "bfloat16", (11, 14)),
        ("trtllm-cutlass-nongated", "h200_sxm", "fp8", (9, 12)),
    ],
)
def test_devices_that_were_never_fitted(name, system, dtype, most):
    """Median and mean of the error in percent, on 200 rows of 50 us and more."""
    family, parts = FAMILIES[name], []
    for dataset in silicon.datasets(system, every=True, name=family.table):
        table, _ = family_rows(system, dataset, family)
        table = table[(table["moe_dtype"] == dtype) & (table["latency_ms"] >= 0.05)]
        parts += table.to_dict("records")
    assert not any(may_fit(row) for row in parts)
    chosen = [parts[i] for i in np.random.default_rng(0).permutation(len(parts))[:200]]
    found = predict_family(chosen, load_profile(system), family)
    measured = np.array([row["latency_ms"] for row in chosen])
    error = 100 * np.abs(found["predicted_latency_ms"] / measured - 1)
    assert np.median(error) < most[0]
    assert error.mean() < most[1]
    roof = 100 * np.abs(found["roofline_ms"] / measured - 1)
    assert error.mean() < 0.4 * roof.mean()


def test_plateaus_and_short_rows_are_left_out():
    table = collect(FAMILIES["trtllm-cutlass-nongated"])
    assert (table["latency_ms"] >= 0.05).all()
    assert all(may_fit(row) for row in table.to_dict("records"))


@pytest.mark.long
def test_a_family_is_fitted_again_to_the_same_figures(tmp_path):
    found = calibrate(tmp_path / "trtllm-gen.toml", "trtllm-gen")
    path = Path(str(files("moesim_hw_profiles"))) / "calibration" / "trtllm-gen.toml"
    shipped = tomllib.loads(path.read_text(encoding="utf-8"))["scores"]
    assert found.keys() == shipped.keys()
    for name, values in shipped.items():
        assert found[name]["mape"] == pytest.approx(values["mape"], abs=0.5)
    with pytest.raises(UnknownNameError, match="trtllm-gen"):
        calibrate(tmp_path / "x.toml", "trtllm-ge")


def test_a_format_serves_its_major_generation_alone():
    """sm_90 serves sm_90; sm_100 serves sm_103; nothing serves sm_89 or sm_120."""
    served = {
        (name, dtype, system)
        for name, dtype in (("flashinfer-cutlass", "fp8"), ("wideep-cutlass", "nvfp4"))
        for system in ("h100_sxm", "h200_sxm", "b200_sxm", "gb300", "l40s", "rtx_pro_6000_server")
        if serves(load_calibration(name, load_profile(system)), dtype, load_profile(system))
    }
    assert served == {
        ("flashinfer-cutlass", "fp8", "h100_sxm"),
        ("flashinfer-cutlass", "fp8", "h200_sxm"),
        ("wideep-cutlass", "nvfp4", "b200_sxm"),
        ("wideep-cutlass", "nvfp4", "gb300"),
    }


def test_rows_without_a_price_are_left_out_and_counted():
    told: list[str] = []
    rows = measured_rows("b200_sxm", 5, "vllm_cutlass", told.append)
    assert set(rows["moe_dtype"]) == {"bfloat16", "nvfp4"}
    assert len(told) == 1
    assert "flashinfer-cutlass has no prices of" in told[0]
    with pytest.raises(ConfigError, match=r"wideep-cutlass: expected .+ got nvfp4 on rtx-pro-6000"):
        measured_rows("rtx_pro_6000_server", 5, "wideep-cutlass")
    with pytest.raises(UnknownNameError, match="did you mean vllm_cutlass"):
        measured_rows("h100_sxm", 5, "vllm_cutlas")


def test_a_group_has_the_rows_of_its_framework_alone():
    rows = measured_rows("h100_sxm", 5, "sglang_marlin")
    assert set(rows["dataset"].str.partition("/")[0]) == {"sglang"}
    assert set(predicted(rows, "calibrated")["fit_family"]) == {"sglang_marlin"}
