"""Measured GEMMs and attention: what may be fitted, what a refit finds, how far off prices are."""

import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.cli import main
from moesim.costs.dense.prices import CALIBRATIONS
from moesim.errors import ConfigError, MeasurementError
from moesim.measured.dense.fit import calibrate, fit_set
from moesim.measured.dense.predict import PREDICTIONS, predict_rows, read_rows
from moesim.measured.dense.scoreboard import scoreboard, scores
from moesim.measured.dense.table import (
    DATASETS,
    FITTED,
    GROUP,
    OPS,
    is_fitted_group,
    load_all,
    load_rows,
    systems,
)

pytestmark = pytest.mark.full

GEMM = {
    "system": "h200_sxm", "dataset": "sglang/0.5.14", "gemm_dtype": "bfloat16",
    "m": 128, "n": 4096, "k": 7168, "latency": 0.03,
}  # fmt: skip
PREFILL = {
    "system": "b200_sxm", "framework": "SGLang", "version": "0.5.14",
    "op_name": "context_attention", "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16",
    "batch_size": 4, "isl": 2048, "step": 0, "num_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "window_size": 0, "latency_ms": 0.2,
}  # fmt: skip
DECODE = PREFILL | {"op_name": "generation_attention", "isl": 1, "step": 4095}
LATENT = PREFILL | {"op_name": "mla_generation", "mla_dtype": "bfloat16", "isl": 1, "step": 99}


def shipped(name):
    path = Path(str(files("moesim_hw_profiles"))) / "calibration" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_the_rule_halves_the_groups():
    """By hash, so that neither half has all of a size."""
    chosen = [is_fitted_group(n, k) for n in range(64, 4096, 64) for k in range(64, 4096, 64)]
    assert 0.45 < np.mean(chosen) < 0.55
    assert [heads for heads in (1, 2, 4, 8, 16, 32, 64, 128) if is_fitted_group(heads)] == [
        2, 8, 32, 64,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["dense", "attention"])
def test_what_is_fitted_may_be(kind):
    """Half of the groups of the permitted systems and engines, and none of any other."""
    rows = load_all(kind, ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm"))
    mine = rows[rows["fitted"]]
    assert set(mine["system"]) == set(FITTED[kind])
    assert set(mine["dataset"]) <= set(DATASETS)
    for op in OPS[kind]:
        own = rows[(rows["op"] == op) & rows["system"].isin(FITTED[kind]) & rows["main"]]
        own = own[own["dataset"].isin(DATASETS)]
        columns = list(GROUP[op])
        split = own.groupby(columns)["fitted"].nunique()
        assert (split == 1).all()
        assert 0.3 < own[own["fitted"]].drop_duplicates(columns).shape[0] / len(split) < 0.7


def test_eager_rows_are_no_truth():
    """vLLM's fp8 blocks, and engines' fallbacks of attention."""
    gemm = load_rows("gemm", "h100_sxm")
    engines = gemm[gemm["format"] == "fp8_block"]["dataset"].str.partition("/")[0]
    assert set(engines) == {"sglang", "trtllm"}
    assert (gemm["seconds"] > 0).all()
    assert "h100_sxm" in systems()
    with pytest.raises(MeasurementError, match="has none of dense on h100_pcie"):
        load_all("dense", ("h100_pcie",))


@pytest.mark.long
def test_a_refit_reproduces_the_shipped_attention(tmp_path):
    """To a per cent: the last digits of a fit are the machine's."""
    calibrate("attention", tmp_path)
    for op in OPS["attention"]:
        check_same(tmp_path / f"{CALIBRATIONS[op]}.toml")


@pytest.mark.full
def test_a_refit_reproduces_the_shipped_gemms(tmp_path):
    calibrate("dense", tmp_path)
    for op in OPS["dense"]:
        check_same(tmp_path / f"{CALIBRATIONS[op]}.toml")


def check_same(path):
    ours, theirs = tomllib.loads(path.read_text(encoding="utf-8")), shipped(path.stem)
    assert ours["fit_groups"] == theirs["fit_groups"]
    assert ours["parameters"].keys() == theirs["parameters"].keys()
    for name, value in theirs["scores"].items():
        assert ours["scores"][name] == pytest.approx(value, rel=0.02, abs=0.1)
    for own, cell in zip(ours["cells"], theirs["cells"], strict=True):
        assert own["low"] == pytest.approx(cell["low"], rel=0.01)
        assert own["high"] == pytest.approx(cell["high"], rel=0.01)


def test_a_fit_finds_the_parameters_of_its_own_prices():
    """Rows that a price made are fitted back to nothing left."""
    rows = load_rows("decode", "h100_sxm")
    rows = rows[rows["main"] & (rows["dataset"] == DATASETS[0]) & (rows["window_size"] == 0)]
    rows = rows[rows["format"] == "bfloat16"].iloc[::7].reset_index(drop=True)
    made = rows.assign(seconds=predict_rows(rows)["predicted_us"] * 1e-6)
    _, [cell], errors = fit_set("decode", "bfloat16", made)
    assert errors["mape"] < 0.5
    assert 0.99 < cell["low"] <= cell["high"] < 1.01


@pytest.mark.parametrize(
    ("kind", "op", "system", "fmt", "label", "most"),
    [
        ("dense", "gemm", "h100_sxm", "bfloat16", ">= 20 us", 8.0),
        ("dense", "gemm", "h200_sxm", "bfloat16", ">= 20 us", 11.0),
        ("dense", "gemm", "b200_sxm", "bfloat16", ">= 20 us", 12.0),
        ("dense", "gemm", "h100_sxm", "fp8_block", ">= 20 us", 13.0),
        ("attention", "prefill", "h100_sxm", "bfloat16", ">= 20 us", 13.0),
        ("attention", "decode", "h100_sxm", "bfloat16", "L >= 1024, >= 20 us", 9.0),
        ("attention", "decode", "h200_sxm", "bfloat16", "L >= 1024, >= 20 us", 11.0),
        ("attention", "mla_prefill", "h100_sxm", "bfloat16", ">= 20 us", 12.0),
        ("attention", "mla_decode", "h100_sxm", "bfloat16", "L >= 1024, >= 20 us", 16.0),
    ],
)
def test_prices_are_near_what_was_never_fitted(kind, op, system, fmt, label, most):
    rows = load_rows(op, system)
    rows = rows[~rows["fitted"] & (rows["format"] == fmt) & rows["dataset"].isin(DATASETS)]
    rows = rows.reset_index(drop=True)
    table = scores(rows, predict_rows(rows))
    found = [row for row in table if row["class"] == label]
    assert len(found) >= 1
    for row in found:
        assert row["mape"] < most
        assert row["mape"] < row["roofline_mape"]
        assert row["inside"] > 70.0


def test_the_scoreboard_names_every_class():
    table = scoreboard("attention", ("h100_sxm",))
    assert {row["op"] for row in table} == set(OPS["attention"])
    classes = {row["class"] for row in table}
    assert {">= 20 us", "L >= 1024, >= 20 us", "window, < 20 us"} <= classes


@pytest.mark.parametrize(("kind", "row"), [("dense", GEMM), ("attention", DECODE)])
def test_a_table_is_predicted(tmp_path, kind, row):
    """In its order, whatever else it holds, with or without a latency."""
    rows = [row, row | {"system": "gb200", "note": "mine"}, row]
    without = [{k: v for k, v in one.items() if "latency" not in k} for one in rows]
    for given in (rows, without):
        path = tmp_path / "rows.csv"
        pd.DataFrame(given).to_csv(path, index=False)
        found = predict_rows(read_rows(path, kind))
        assert set(found) == set(PREDICTIONS)
        us = found["predicted_us"]
        assert us[0] == us[2] != us[1]
        assert (found["low_us"] < us).all()
        assert (us < found["high_us"]).all()
        assert (found["roofline_us"] < us).all()
    assert scores(read_rows(path, kind), found) == []


def test_all_kinds_of_attention_are_read(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame([PREFILL, DECODE, LATENT]).to_parquet(path)
    rows = read_rows(path, "attention")
    assert rows["op"].tolist() == ["prefill", "decode", "mla_decode"]
    assert rows["dataset"].tolist() == ["sglang/0.5.14"] * 3
    assert np.isfinite(predict_rows(rows)["predicted_us"]).all()


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("dense", {"m": 0}, "rows.csv: m, row 0: expected an integer >= 1, got 0"),
        ("dense", {"k": 2.5}, "rows.csv: k, row 0: expected an integer >= 1, got 2.5"),
        ("dense", {"gemm_dtype": "sq"}, "rows.csv: gemm_dtype, row 0: expected one of bfloat16"),
        ("dense", {"system": "h1000"}, "unknown profile 'h1000'"),
        ("attention", {"op_name": "conv"}, "op_name, row 0: expected one of context_attention"),
        ("attention", {"step": -1}, "rows.csv: step, row 0: expected an integer >= 0, got -1"),
        ("attention", {"kv_cache_dtype": "int4"}, "kv_cache_dtype, row 0: expected one of"),
        ("attention", {"num_key_value_heads": 64}, "num_key_value_heads, row 0: expected at most"),
    ],
)
def test_bad_rows_are_named(tmp_path, kind, change, told):
    path = tmp_path / "rows.csv"
    base = GEMM if kind == "dense" else DECODE
    pd.DataFrame([base | change]).to_csv(path, index=False)
    with pytest.raises(ConfigError) as error:
        read_rows(path, kind)
    assert told in str(error.value)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read this file"):
        read_rows(tmp_path / "none.parquet", "dense")
    path = tmp_path / "rows.csv"
    path.write_text("m,n,k\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected at least one row, got none"):
        read_rows(path, "dense")
    for missing in ("system", "k", "gemm_dtype"):
        pd.DataFrame([GEMM]).drop(columns=missing).to_csv(path, index=False)
        with pytest.raises(ConfigError, match=f"{missing}: expected this column"):
            read_rows(path, "dense")
    pd.DataFrame([PREFILL]).drop(columns="version").to_csv(path, index=False)
    with pytest.raises(ConfigError, match="version: expected this column"):
        read_rows(path, "attention")


@pytest.mark.parametrize(("kind", "row"), [("dense", GEMM), ("attention", PREFILL)])
def test_the_command_writes_predictions(monkeypatch, capsys, tmp_path, kind, row):
    path, out = tmp_path / "rows.csv", tmp_path / "predicted.csv"
    pd.DataFrame([row, row | {"system": "h100_sxm"}]).to_csv(path, index=False)
    argv = ["moesim", "validate", kind, "--rows", str(path), "--out", str(out), "--details"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    written = pd.read_csv(out)
    assert len(written) == 2
    assert set(PREDICTIONS) <= set(written.columns)
    assert set(row) <= set(written.columns)
    assert (written["predicted_us"] > 0).all()
    assert "roof" in capsys.readouterr().out


def test_the_command_refuses_out_without_rows(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["moesim", "validate", "dense", "--out", "x.csv"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "--out: expected --rows FILE" in capsys.readouterr().err
