"""Timed tiles: read, fitted, predicted, scored; what was fitted is what may be."""

import csv
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from moesim.costs.devices.tile_work import FORMS
from moesim.errors import ConfigError
from moesim.measured.tiles.calibrate import calibrate, shipped_rows
from moesim.measured.tiles.rows import COLUMNS, form_of, read_all, read_tiles
from moesim.measured.tiles.validate import predicted, scores

ROW = {
    "device": "NVIDIA H100 80GB HBM3",
    "hidden_size": "2048",
    "expert_intermediate_size": "1024",
    "num_experts": "64",
    "top_k": "8",
    "num_tokens": "16",
    "skew": "0.0",
    "active_experts": "57",
    "max_rows": "6",
    "gemm": "up",
    "path": "pointers",
    "block_m": "16",
    "block_n": "64",
    "block_k": "64",
    "num_warps": "4",
    "num_stages": "3",
    "group_m": "1",
    "row_tiles": "57",
    "median_us": "190.0",
}


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def shipped():
    return read_all(shipped_rows())


def test_what_is_fitted_may_be(shipped):
    """One H100, and not the layer that is kept for scoring."""
    assert {row["device"] for row in shipped.rows} == {"NVIDIA H100 80GB HBM3"}
    kept = (4096, 1536, 128, 8)
    names = ("hidden_size", "expert_intermediate_size", "num_experts", "top_k")
    assert kept not in {tuple(row[name] for name in names) for row in shipped.rows}
    assert set(shipped.work.form_R.tolist()) == set(range(len(FORMS)))


@pytest.mark.full
def test_the_shipped_calibration_is_this_fit(tmp_path):
    """To a thousandth: the last digits of a fit are the machine's."""
    import tomllib

    found = calibrate(tmp_path / "moesim-triton.toml")
    ours = tomllib.loads((tmp_path / "moesim-triton.toml").read_text(encoding="utf-8"))
    path = Path(str(files("moesim_hw_profiles"))) / "calibration" / "moesim-triton.toml"
    theirs = tomllib.loads(path.read_text(encoding="utf-8"))
    assert ours["parameters"].keys() == theirs["parameters"].keys()
    assert ours["scores"].keys() == theirs["scores"].keys()
    pairs = [(ours["scores"][name], values) for name, values in theirs["scores"].items()]
    pairs += zip(ours["cells"], theirs["cells"], strict=True)
    for own, values in pairs:
        for key, value in values.items():
            if isinstance(value, float):
                assert own[key] == pytest.approx(value, rel=0.02, abs=0.1)
    # Layers left out of the fit are predicted within a tenth, whatever the kernel.
    assert max(one["mape"] for one in found.values()) < 10.0


def test_the_shipped_rows_are_predicted_and_ranked(shipped):
    for row in scores(shipped, predicted(shipped)):
        assert row["mape"] < 8.0
        assert row["rank"] > 0.85
        assert row["regret"] < 3.0
        assert row["worst"] < 15.0


def test_a_row_is_predicted_as_its_kernel(tmp_path):
    rows = [ROW | {"path": path} for path in ("pointers", "wide_pointers", "descriptors")]
    table = read_tiles(write(tmp_path / "t.csv", rows))
    assert [FORMS[index] for index in table.work.form_R] == [
        "paired_pointers",
        "wide_pointers",
        "paired_descriptors",
    ]
    # The product of an up projection has gate and up columns.
    assert table.work.tile.block_n.tolist() == [128] * 3
    assert table.work.columns_R.tolist() == [2048] * 3
    assert len(set(predicted(table).tolist())) == 3
    assert form_of("down", "pointers") == "linear_pointers"
    assert form_of("down", "single_descriptors") == "single_descriptors"


def test_rows_without_times_are_predicted_and_not_scored(tmp_path):
    rows = [ROW, {**ROW, "median_us": ""}, {**ROW, "device": "NVIDIA H200"}]
    table = read_tiles(write(tmp_path / "t.csv", rows))
    found = predicted(table)
    assert np.isfinite(found).all()
    assert found[0] == found[1] > found[2]
    shown = {row["profile"]: row for row in scores(table, found)}
    assert shown["h100-sxm"]["rows"] == 1
    assert shown["h100-sxm"]["rank"] is None
    assert shown["h200-sxm"]["rows"] == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"block_m": "17"}, "row 2: block_m: expected a power of two, got '17'"),
        ({"num_tokens": "-1"}, "row 2: num_tokens: expected an integer >= 1, got '-1'"),
        ({"num_stages": ""}, "row 2: num_stages: expected an integer >= 1, got ''"),
        ({"path": "wide_pointers", "gemm": "down"}, "row 2: gemm, path: expected up or down"),
        ({"gemm": "sideways"}, "row 2: gemm, path: expected up or down"),
        ({"median_us": "fast"}, "row 2: median_us: expected a number > 0, got 'fast'"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, told):
    path = write(tmp_path / "t.csv", [ROW | change])
    with pytest.raises(ConfigError) as error:
        read_tiles(path)
    assert told in str(error.value)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read this file"):
        read_tiles(tmp_path / "none.csv")
    short = {name: value for name, value in ROW.items() if name != "row_tiles"}
    with pytest.raises(ConfigError, match="row_tiles is missing"):
        read_tiles(write(tmp_path / "t.csv", [short]))
    (tmp_path / "empty.csv").write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected rows of timed tiles"):
        read_tiles(tmp_path / "empty.csv")


def test_unknown_devices_and_lonely_layers_are_refused(tmp_path):
    table = read_tiles(write(tmp_path / "t.csv", [ROW | {"device": "Voodoo 2"}]))
    with pytest.raises(ConfigError, match="a GPU that a profile describes, got 'Voodoo 2'"):
        predicted(table)
    out = tmp_path / "c.toml"
    with pytest.raises(ConfigError, match="two layers or more"):
        calibrate(out, [write(tmp_path / "one.csv", [ROW])])
    mixed = [ROW, ROW | {"hidden_size": "4096", "device": "NVIDIA H200"}]
    with pytest.raises(ConfigError, match="one device"):
        calibrate(out, [write(tmp_path / "two.csv", mixed)])
    timeless = [ROW, ROW | {"hidden_size": "4096", "median_us": ""}]
    with pytest.raises(ConfigError, match="median_us > 0"):
        calibrate(out, [write(tmp_path / "three.csv", timeless)])
    assert not out.exists()
