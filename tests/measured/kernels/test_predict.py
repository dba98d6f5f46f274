"""Rows somebody hands in: predicted in their order, without a look at their latency, or refused in
one line.
"""

import sys

import numpy as np
import pandas as pd
import pytest

from moesim.cli import main
from moesim.costs.devices.fused_formats import FORMATS
from moesim.measured.kernels.predict import PREDICTED, predict_rows, read_rows

ROW = {
    "system": "h100_sxm",
    "dataset": "sglang/0.5.14",
    "kernel_source": "sglang_fused_moe_triton",
    "moe_dtype": "bfloat16",
    "num_tokens": 64,
    "hidden_size": 4096,
    "inter_size": 1536,
    "topk": 8,
    "num_experts": 128,
    "moe_tp_size": 1,
    "moe_ep_size": 1,
    "distribution": "power_law_1.2",
}
DRAWN = "balanced, uniform, power_law_ALPHA or power_law_ALPHA_eplb"
TILE = {
    "block_m": 128,
    "block_n": 128,
    "block_k": 64,
    "group_m": 1,
    "num_warps": 8,
    "num_stages": 4,
}


def table(*changes):
    return pd.DataFrame([ROW | change for change in changes])


def mixed():
    """Rows of several systems, formats and frameworks that do not come sorted."""
    return table(
        {"system": "l40s"},
        {},
        {"system": "b200_sxm", "moe_dtype": "fp8_block"},
        {"num_tokens": 1},
        {"dataset": "vllm/0.24.0", "kernel_source": "vllm_unquantized_tritonexperts"},
        {"system": "a100_sxm", "dataset": "sglang/0.5.10"},
        {"moe_ep_size": 8, "num_tokens": 4096},
        {"system": "h200_sxm", "moe_tp_size": 4},
        {"system": "b200_sxm"},
        {"num_tokens": 4096},
    )


def predictions(rows, *, few_shot=True):
    return pd.DataFrame(predict_rows(rows.reset_index(drop=True), few_shot=few_shot))


@pytest.fixture
def validate(monkeypatch, capsys, tmp_path):
    """``moesim validate kernels --rows`` on a table: (exit code, stderr, the table it wrote or
    None).
    """

    def run(rows, *options, name="rows.csv"):
        path, out = tmp_path / name, tmp_path / "out" / "predicted.csv"
        if isinstance(rows, pd.DataFrame):
            rows.to_csv(path, index=False) if path.suffix == ".csv" else rows.to_parquet(path)
        elif rows is not None:
            path.write_bytes(rows)
        monkeypatch.setattr(
            sys,
            "argv",
            ["moesim", "validate", "kernels", "--rows", str(path), "--out", str(out), *options],
        )
        with pytest.raises(SystemExit) as stopped:
            main()
        written = pd.read_csv(out) if out.exists() else None
        assert written is not None or not out.parent.exists() or not list(out.parent.iterdir())
        return stopped.value.code or 0, capsys.readouterr().err, written

    return run


def test_order_of_rows_is_kept():
    rows = mixed()
    together = predictions(rows)
    alone = pd.concat([predictions(rows.iloc[[i]]) for i in range(len(rows))], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone)
    backwards = predictions(rows[::-1]).iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(together, backwards)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_command_repeats_every_column_and_adds_predictions(validate, name):
    rows = mixed().assign(note=[f"row {i}" for i in range(10)], weight=np.linspace(0.1, 1, 10))
    code, err, written = validate(rows, name=name)
    assert code == 0, err
    assert list(written.columns) == [*rows.columns, *PREDICTED]
    pd.testing.assert_frame_equal(written[list(rows.columns)], rows, check_dtype=False)
    # CSV keeps every digit
    pd.testing.assert_frame_equal(written[list(PREDICTED)], predictions(rows), check_dtype=False)


def test_latency_is_scored_but_never_used(validate):
    rows = mixed()
    _, _, without = validate(rows)
    for column in ("latency_ms", "latency"):
        for latency in (1.0, np.linspace(0.01, 99, len(rows))):
            code, _, written = validate(rows.assign(**{column: latency}))
            assert code == 0
            pd.testing.assert_frame_equal(written[list(PREDICTED)], without[list(PREDICTED)])
    assert "latency_ms" not in without


def test_interval_encloses_the_prediction_and_roofline_is_below():
    found = predictions(mixed())
    assert (found["low_ms"] <= found["predicted_latency_ms"]).all()
    assert (found["predicted_latency_ms"] <= found["high_ms"]).all()
    assert (found["low_ms"] > 0).all()
    assert (found["roofline_ms"] > 0).all()
    assert (found["roofline_ms"] < found["predicted_latency_ms"]).all()
    assert set(found["evidence"]) == {"simulated"}


def test_tile_columns_are_used():
    plain, tiled = table({}, {"num_tokens": 4096}), table(TILE, TILE | {"num_tokens": 4096})
    other = predictions(tiled.assign(block_m=16, num_warps=4))
    assert (
        predictions(plain)["predicted_latency_ms"] != predictions(tiled)["predicted_latency_ms"]
    ).all()
    assert (other["predicted_latency_ms"] != predictions(tiled)["predicted_latency_ms"]).all()
    assert (other["roofline_ms"] == predictions(plain)["roofline_ms"]).all()


def test_tile_columns_that_say_what_the_framework_runs_change_nothing():
    # vLLM's default for 4,096 tokens of bf16
    row = {"dataset": "vllm/0.24.0", "num_tokens": 4096}
    pd.testing.assert_frame_equal(
        predictions(table(row)), predictions(table(row | TILE | {"num_stages": 3}))
    )


def test_modes_differ_only_where_the_calibration_knows_ten_rows(validate):
    rows = table(
        *(
            {"system": system}
            for system in (
                "h100_sxm",
                "a100_sxm",
                "h200_sxm",
                "b200_sxm",
                "l40s",
                "b300_sxm",
                "gb200",
                "gb300",
                "rtx_pro_6000_server",
            )
        )
    )
    few, spec = predictions(rows), predictions(rows, few_shot=False)
    differ = few["predicted_latency_ms"] != spec["predicted_latency_ms"]
    assert set(rows["system"][differ]) == {"b200_sxm", "l40s"}
    fitted = rows["system"].isin(["h100_sxm", "a100_sxm"])
    known = rows["system"].isin(["b200_sxm", "l40s"])
    assert (
        few["calibration"].tolist()
        == np.select([fitted, known], ["calibrated", "few_shot"], "spec_sheet").tolist()
    )
    assert spec["calibration"].tolist() == np.where(fitted, "calibrated", "spec_sheet").tolist()
    assert (few["roofline_ms"] == spec["roofline_ms"]).all()
    for mode, expected in (("calibrated", few), ("spec", spec)):
        _, _, written = validate(rows, "--mode", mode)
        pd.testing.assert_frame_equal(written[list(PREDICTED)], expected, check_dtype=False)


def test_ten_rows_of_sglang_say_nothing_about_vllm():
    rows = table({"system": "l40s", "dataset": "vllm/0.24.0"})
    pd.testing.assert_frame_equal(predictions(rows), predictions(rows, few_shot=False))


def test_numbers_may_be_written_as_floats_or_text(tmp_path):
    sizes = [
        "num_tokens",
        "hidden_size",
        "inter_size",
        "topk",
        "num_experts",
        "moe_tp_size",
        "moe_ep_size",
    ]
    expected = predictions(mixed())
    for kind in (float, str):
        path = tmp_path / "rows.parquet"
        mixed().astype(dict.fromkeys(sizes, kind)).to_parquet(path)
        pd.testing.assert_frame_equal(predictions(read_rows(path)), expected)


def test_rows_without_a_tile_run_their_frameworks(tmp_path):
    path = tmp_path / "rows.csv"
    table(TILE, {}, TILE).to_csv(path, index=False)
    found = predictions(read_rows(path))["predicted_latency_ms"]
    assert found[1] == predictions(table({}))["predicted_latency_ms"][0]
    assert found[0] == found[2] == predictions(table(TILE))["predicted_latency_ms"][0]


def bad(column, value):
    """Four rows of which the second and the last are bad."""
    rows = table({}, {}, {}, {})
    if column not in rows:
        rows[column] = TILE.get(column, 0.5)
    rows[column] = rows[column].astype(object)
    rows.loc[[1, 3], column] = value
    return rows


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("num_tokens", 0, "expected an integer > 0, got 0"),
        ("hidden_size", -4096, "expected an integer > 0, got -4096"),
        ("inter_size", 1.5, "expected an integer > 0, got 1.5"),
        ("topk", None, "expected an integer > 0, got nan"),
        ("num_tokens", "many", "expected an integer > 0, got 'many'"),
        ("num_tokens", float("inf"), "expected an integer > 0, got inf"),
        ("num_tokens", 1e30, "expected an integer > 0, got 1e+30"),
        ("num_experts", 1 << 20, "expected at most 65536, got 1048576"),
        ("moe_tp_size", 0, "expected an integer > 0, got 0"),
        ("moe_tp_size", 4096, "expected at most inter_size, got 4096"),
        ("topk", 129, "expected at most num_experts, got 129"),
        ("moe_ep_size", 3, "expected a divisor of num_experts, got 3"),
        ("latency_ms", None, "expected a number > 0, got nan"),
        ("latency", None, "expected a number > 0, got nan"),
        ("latency_ms", 0.0, "expected a number > 0, got 0.0"),
        ("latency_ms", -0.5, "expected a number > 0, got -0.5"),
        ("latency_ms", "slow", "expected a number > 0, got 'slow'"),
        ("distribution", "zipf", f"expected {DRAWN}, got 'zipf'"),
        ("distribution", "power_law_", f"expected {DRAWN}, got 'power_law_'"),
        ("distribution", None, f"expected {DRAWN}, got nan"),
        ("distribution", "uniform", "expected balanced or power_law_ALPHA, got 'uniform'"),
        (
            "distribution",
            "power_law_1.2_eplb",
            "expected balanced or power_law_ALPHA, got 'power_law_1.2_eplb'",
        ),
        (
            "moe_dtype",
            "w4a16_mxfp4",
            "expected one of bfloat16, fp8_block of Triton kernels, got 'w4a16_mxfp4'",
        ),
        ("moe_dtype", "int1", f"expected one of {', '.join(FORMATS)}, got 'int1'"),
        (
            "kernel_source",
            "sglang_marln_moe",
            "unknown kernel of sglang 'sglang_marln_moe': did you mean sglang_marlin_moe or "
            "sglang_marlin_moe_situ_as_silu or sglang_flashinfer_trtllm_moe?",
        ),
        ("dataset", None, "expected FRAMEWORK/VERSION, got nan"),
        ("system", "h100_sxn", "unknown profile 'h100_sxn': did you mean h100_sxm"),
        ("system", None, "unknown profile 'nan'"),
        ("system", "tpu-v5p", "expected a GPU, which runs Triton kernels, got 'tpu-v5p'"),
    ],
)
def test_bad_value_names_column_and_first_row(validate, column, value, message):
    code, err, written = validate(bad(column, value))
    assert code == 2
    assert written is None
    assert err.count("\n") == 1
    if column == "system":
        assert err.startswith(f"error: rows.csv: system, row 1: {message}")
    else:
        assert err == f"error: rows.csv: {column}, row 1: {message}\n"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("block_m", 48, "expected a power of two, got 48"),
        ("block_m", -16, "expected a power of two, got -16"),
        ("num_warps", 3, "expected a power of two, got 3"),
        ("num_stages", 0, "expected an integer > 0, got 0"),
        ("group_m", "x", "expected an integer > 0, got 'x'"),
    ],
)
def test_bad_tile_names_column_and_first_row(validate, column, value, message):
    code, err, written = validate(
        bad(column, value).assign(**{k: v for k, v in TILE.items() if k != column})
    )
    assert (code, err) == (2, f"error: rows.csv: {column}, row 1: {message}\n")
    assert written is None


@pytest.mark.parametrize("column", list(ROW))
def test_missing_column_is_named(validate, column):
    rows = table({}).drop(columns=column)
    code, err, written = validate(rows)
    assert code == 2
    assert (
        err == f"error: rows.csv: {column}: expected this column, got {', '.join(rows.columns)}\n"
    )
    assert written is None


def test_part_of_a_tile_is_refused(validate):
    rows = table({"block_m": 64})
    code, err, written = validate(rows)
    assert (code, err) == (
        2,
        f"error: rows.csv: block_n: expected this column, got {', '.join(rows.columns)}\n",
    )
    assert written is None


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_table_without_rows_is_refused(validate, name):
    code, err, written = validate(table({}).assign(latency_ms=1.0)[:0], name=name)
    assert (code, err) == (2, f"error: {name}: expected at least one row, got none\n")
    assert written is None


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_missing_file_is_one_line(validate, tmp_path, name):
    code, err, written = validate(None, name=name)
    assert (code, err) == (
        2,
        f"error: {tmp_path / name}: cannot read this file: No such file or directory\n",
    )
    assert written is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", b""),
        ("rows.csv", b"\xff\xfe\x00"),
        ("rows.csv", b'a,b\n1,2,3\n1,"\n'),
        ("rows.parquet", b"PAR1"),
        ("rows.parquet", b""),
    ],
)
def test_unreadable_file_is_one_line(validate, tmp_path, name, content):
    code, err, written = validate(content, name=name)
    assert code == 2
    assert "cannot read this file: " in err or "not valid CSV: it is not UTF-8 text" in err
    assert err.count("\n") == 1
    assert written is None


def test_format_the_device_cannot_compute_is_one_line(validate):
    code, err, written = validate(table({}, {"system": "a100_sxm", "moe_dtype": "fp8_block"}))
    assert code == 2
    assert err.startswith("error: a100-sxm: no compute rate for float8_e4m3; it has ")
    assert err.count("\n") == 1
    assert written is None


def test_unknown_mode_is_one_line(validate):
    code, err, written = validate(table({}), "--mode", "best")
    assert (code, err) == (2, "error: --mode: expected calibrated or spec, got 'best'\n")
    assert written is None


WIDE = {
    "dataset": "trtllm/1.3.0rc10",
    "kernel_source": "wideep_compute_cutlass",
    "moe_dtype": "fp8_block",
    "num_tokens": 4096,
    "moe_ep_size": 8,
}
DEEPEP = {
    "dataset": "sglang/0.5.10",
    "kernel_source": "deepepmoe",
    "moe_dtype": "fp8_block",
    "num_tokens": 16384,
    "moe_ep_size": 8,
    "op_name": "moe_context",
}


def test_rows_of_wide_expert_parallelism(validate):
    """Slots and entering tokens are used where a family has them, and may be missing."""
    rows = table(
        WIDE,
        WIDE | {"rank0_num_tokens": 1000},
        WIDE | {"num_slots": 160, "distribution": "power_law_1.2_eplb"},
        DEEPEP,
        DEEPEP | {"op_name": "moe_generation"},
        DEEPEP | {"distribution": "uniform"},
        {"rank0_num_tokens": 1, "num_slots": 3},
        {},
    )
    code, err, written = validate(rows)
    assert (code, err) == (0, err)
    found = written["predicted_latency_ms"]
    assert found.notna().all()
    assert found[1] < found[0]
    assert found[2] < found[0]
    assert len({found[3], found[4], found[5]}) == 3
    assert found[6] == found[7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (WIDE | {"rank0_num_tokens": 4097}, "rank0_num_tokens, row 1: expected an integer from 1"),
        (WIDE | {"num_slots": 129}, "num_slots, row 1: expected num_experts or more, a multiple"),
        (WIDE | {"num_slots": "x"}, "num_slots, row 1: expected num_experts or more, a multiple"),
        (
            DEEPEP | {"op_name": "moe"},
            "op_name, row 1: expected moe_context or moe_generation of kernel deepepmoe, got 'moe'",
        ),
        (
            WIDE | {"system": "l40s"},
            "moe_dtype, row 1: wideep-cutlass: expected nvfp4 on sm_100; fp8_block on sm_90, got "
            "fp8_block on l40s (sm_89)",
        ),
        (
            WIDE | {"moe_dtype": "bfloat16"},
            "moe_dtype, row 1: wideep-cutlass: expected nvfp4 on sm_100; fp8_block on sm_90, got "
            "bfloat16 on h100-sxm (sm_90)",
        ),
        (
            {"dataset": "trtllm/1.3.0rc10", "kernel_source": "wideep_compute_cutlas"},
            "kernel_source, row 1: unknown kernel of trtllm 'wideep_compute_cutlas': did you mean "
            "wideep_compute_cutlass",
        ),
    ],
)
def test_row_that_no_library_prices_is_refused(validate, change, message):
    code, err, written = validate(table({}, change))
    assert code == 2
    assert written is None
    assert err.startswith(f"error: rows.csv: {message}")
    assert err.count("\n") == 1


def test_deepep_without_an_operation_is_refused(validate):
    rows = table(DEEPEP).drop(columns="op_name")
    code, err, _ = validate(rows)
    assert (code, err) == (
        2,
        "error: rows.csv: op_name, row 0: expected moe_context or moe_generation of kernel "
        "deepepmoe, got no such column\n",
    )
