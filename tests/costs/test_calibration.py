"""Calibration files: factors of a device, levels, intervals, and what is said when one is wrong."""

import math

import pytest

from moesim.costs.calibration import CalibrationFile, load_calibration
from moesim.errors import ConfigError, UnknownNameError
from moesim.files import toml

TEXT = """
title = "T"
created = "2026-01-01"
moesim_version = "0"
command = "none"
fitted_on = "nothing"
sources = []
calibrated_profiles = ["h100-sxm"]
[parameters]
start_us = 8.0
rate = 0.5
[device_factors.h100-sxm]
start_us = 0.25
[residuals]
calibrated-alltoall = {low = 0.9, high = 1.2, kind = "k", rows = 3}
"""


@pytest.fixture
def load(tmp_path, h100):
    def make(old="", new="", profile=h100):
        assert old in TEXT
        (tmp_path / "c.toml").write_text(TEXT.replace(old, new) if old else TEXT)
        return load_calibration(str(tmp_path / "c.toml"), profile)

    return make


def test_device_factors_multiply(load):
    calibration = load()
    assert (calibration["start_us"], calibration["rate"], calibration.level) == (
        2.0,
        0.5,
        "calibrated",
    )
    assert calibration.interval("alltoall") == (0.9, 1.2)


def test_another_device_has_no_factors_and_the_level_of_a_spec_sheet(load):
    from moesim import load_profile

    calibration = load(profile=load_profile("a100"))
    assert (calibration["start_us"], calibration.level) == (8.0, "spec_sheet")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate = 0.5", "rate = 'x'", "c.toml: parameters.rate: expected a number, got 'x'"),
        (
            "low = 0.9, high = 1.2",
            "low = 1.3, high = 1.2",
            "c.toml: residuals.calibrated-alltoall.high: expected a number >= low = 1.3, got 1.2",
        ),
        (
            "rows = 3",
            "rows = -3",
            "c.toml: residuals.calibrated-alltoall.rows: expected a number >= 0, got -3",
        ),
        ('title = "T"', 'titel = "T"', "c.toml: title: expected a value, got nothing"),
    ],
)
def test_one_line_errors(load, old, new, message):
    with pytest.raises(ConfigError) as caught:
        load(old, new)
    assert str(caught.value) == message


def test_a_parameter_the_model_needs_and_the_file_lacks(load):
    """A calibration of an older version, say: one line, and no KeyError."""
    with pytest.raises(ConfigError, match=r"^c: parameters.ramp_kb: expected "):
        load()["ramp_kb"]


def test_unknown_calibration_comes_with_near_ones(h100):
    with pytest.raises(
        UnknownNameError, match=r"^unknown calibration 'triton-mo': did you mean triton-moe"
    ):
        load_calibration("triton-mo", h100)


@pytest.mark.parametrize("name", toml.names("calibration"))
def test_shipped_ones_are_plausible(name):
    path = toml.find("calibration", name)
    file = toml.parse(path.read_text(encoding="utf-8"), CalibrationFile, path.name)
    assert file.fitted_on
    # what was fitted to nothing is called so, calibrates nothing, and its interval is the assumed
    # one
    assumed = name.endswith("-assumed")
    assert bool(file.residuals or file.cells) != assumed
    assert not (assumed and file.calibrated_profiles)
    for key, value in file.parameters.items():
        assert math.isfinite(value), key
        assert value >= 0, key
        assert value <= 1 or not key.endswith(("_efficiency", "_share", "_saving")), key
    spreads = file.residuals | {f"{c.device} {c.format} {c.ep}": c for c in file.cells}
    for key, spread in spreads.items():
        assert spread.low <= spread.high, key
        assert spread.low > 0.2, key
        assert spread.high < 5, key
    for device in (*file.calibrated_profiles, *file.device_factors, *file.few_shot_factors):
        assert toml.find("devices", device).is_file(), device
