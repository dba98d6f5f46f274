"""``moesim validate comm --rows``: a table with its predictions, or a refusal in one line."""

import sys

import numpy as np
import pandas as pd
import pytest

from moesim.cli import main
from moesim.measured.exchanges.predict import predicted_columns
from moesim.measured.exchanges.table import COLUMNS


@pytest.fixture
def validate(monkeypatch, capsys, tmp_path):
    """``moesim validate comm --rows`` on a table: (exit code, stdout, stderr, the table it wrote or
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
            ["moesim", "validate", "comm", "--rows", str(path), "--out", str(out), *options],
        )
        with pytest.raises(SystemExit) as stopped:
            main()
        written = pd.read_csv(out) if out.exists() else None
        assert written is not None or not out.parent.exists() or not list(out.parent.iterdir())
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err, written

    return run


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_written_as_read_with_predictions(validate, name, mixed, predictions):
    rows = mixed
    code, _, err, written = validate(rows, name=name)
    assert (code, err) == (0, f"wrote {err.removeprefix('wrote ')}")
    assert list(written.columns) == [*rows.columns, *predicted_columns(COLUMNS)]
    assert written["system"].tolist() == rows["system"].tolist()
    assert written["num_token"].tolist() == pytest.approx(rows["num_token"].tolist(), nan_ok=True)
    pd.testing.assert_frame_equal(
        written[predicted_columns(COLUMNS)], predictions(rows), rtol=1e-9, check_dtype=False
    )


def test_known_latencies_are_scored(validate, row_of):
    rows = pd.DataFrame([row_of("nccl"), row_of("nccl") | {"num_gpus": 4}]).assign(
        latency=[0.02, 0.02]
    )
    code, out, _, _ = validate(rows, "--mode", "spec")
    assert code == 0
    assert "alltoall >= 64 KiB" in out
    assert "h200_sxm" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"family": "mpi"},
            (
                "family, row 1: expected one of nccl, deepep_normal, deepep_ll, nvl72_alltoall, "
                "got 'mpi'"
            ),
        ),
        ({"system": "h300_sxm"}, "system, row 1: unknown system 'h300_sxm': did you mean h800_sxm"),
        ({"num_gpus": 0}, "num_gpus, row 1: expected an integer > 0, got 0"),
        ({"num_gpus": 2.5}, "num_gpus, row 1: expected an integer > 0, got 2.5"),
        ({"message_size": -1}, "message_size, row 1: expected an integer > 0, got -1"),
        ({"message_size": np.nan}, "message_size, row 1: expected an integer > 0, got nan"),
        ({"message_size": np.inf}, "message_size, row 1: expected an integer > 0, got inf"),
        ({"message_size": "many"}, "message_size, row 1: expected an integer > 0, got 'many'"),
        (
            {"op_name": "broadcast"},
            "op_name, row 1: expected one of alltoall, all_gather, reduce_scatter, all_reduce, "
            "got 'broadcast'",
        ),
        ({"nccl_dtype": "fp64"}, "nccl_dtype, row 1: expected one of half, int8, got 'fp64'"),
    ],
)
def test_bad_nccl_rows(validate, change, message, row_of):
    code, out, err, written = validate(pd.DataFrame([row_of("nccl"), row_of("nccl") | change]))
    assert (code, out, written) == (2, "", None)
    assert err.startswith(f"error: rows.csv: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("normal", {"num_topk": 300}, "num_topk, row 1: expected at most num_experts, got 300"),
        (
            "normal",
            {"dispatch_sms": 133},
            "dispatch_sms, row 1: expected at most the device's SMs, got 133",
        ),
        ("low", {"num_token": 0}, "num_token, row 1: expected an integer > 0, got 0"),
        (
            "low",
            {"num_experts": 1 << 20},
            "num_experts, row 1: expected at most 65536, got 1048576",
        ),
        (
            "nvl72",
            {"kernel_source": "NVLinkTwoSided", "op_name": "alltoall_gather"},
            "op_name, row 1: expected one of ",
        ),
        (
            "nvl72",
            {"op_name": "alltoall_prepare"},
            "kernel_source, row 1: expected a kernel that has this op_name, got ",
        ),
        (
            "nvl72",
            {"distribution": "power_law_1.2"},
            "distribution, row 1: expected one of balanced, got 'power_law_1.2'",
        ),
        (
            "nvl72",
            {"moe_ep_size": 512},
            "moe_ep_size, row 1: expected at most num_experts, got 512",
        ),
    ],
)
def test_bad_rows_of_other_families(validate, family, change, message, row_of):
    row = row_of(family)
    code, _, err, written = validate(pd.DataFrame([row, row | change]))
    assert (code, written) == (2, None)
    assert err.startswith(f"error: rows.csv: {message}")
    assert err.count("\n") == 1


def test_a_row_may_leave_other_families_columns_empty_but_not_its_own(validate, row_of):
    assert validate(pd.DataFrame([row_of("nccl"), row_of("low")]))[0] == 0
    code, _, err, _ = validate(
        pd.DataFrame([row_of("nccl"), row_of("low") | {"num_token": np.nan}])
    )
    assert code == 2
    assert "num_token, row 1: expected an integer > 0, got nan" in err


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        (None, "rows.parquet", "cannot read this file: No such file or directory"),
        (None, "rows.csv", "cannot read this file: No such file or directory"),
        (b"PAR1 no", "rows.parquet", "cannot read this file: "),
        (lambda good: good[:0], "rows.csv", "expected at least one row, got none"),
        (
            lambda good: good.drop(columns="system"),
            "rows.csv",
            "system: expected this column, got family, ",
        ),
        (
            lambda good: good.drop(columns="num_gpus"),
            "rows.csv",
            "num_gpus: expected this column for family nccl, got family, ",
        ),
    ],
)
def test_bad_files(validate, rows, name, message, row_of):
    if callable(rows):
        rows = rows(pd.DataFrame([row_of("nccl")]))
    code, _, err, _ = validate(rows, name=name)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_bad_options(validate, monkeypatch, capsys, mixed):
    code, _, err, _ = validate(mixed, "--mode", "best")
    assert (code, err) == (2, "error: --mode: expected calibrated or spec, got 'best'\n")
    monkeypatch.setattr(sys, "argv", ["moesim", "validate", "comm", "--out", "x.csv"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: --out: expected --rows FILE, too")
