"""Records of kernel libraries: each is whole, agrees with its calibration, and refuses in words."""

import pytest

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.fused_formats import FORMATS, formats_of
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import load_profile
from moesim.hardware.exchanges import EXCHANGES
from moesim.hardware.libraries import (
    ENGINES,
    check_choice,
    kernel_libraries,
    kernel_library,
    known_library,
)
from moesim.model.precision import RECIPES

H100, B200, L40S = (load_profile(name) for name in ("h100-sxm", "b200-sxm", "l40s"))
#: library -> formats it has on Hopper and on Blackwell's data center parts
MEASURED = {
    "sglang-triton": ("bf16 fp16 fp8", "bf16 fp16 fp8"),
    "vllm-triton": ("bf16 fp16 fp8", "bf16 fp16 fp8"),
    "moesim-triton": ("bf16 fp16 fp8 fp8_tensor", ""),
    "trtllm-cutlass": ("bf16 fp8_tensor fp8", "bf16 fp8_tensor nvfp4"),
    "trtllm-cutlass-nongated": ("bf16 fp8_tensor", "nvfp4"),
    "trtllm-deepgemm": ("", "fp8"),
    "trtllm-gen": ("", "mxfp4 mxfp4_a8"),
    "trtllm-min-latency": ("", "nvfp4"),
    "flashinfer-trtllm-sglang": ("", "bf16 fp8 nvfp4 int4 mxfp4 mxfp4_a8"),
    "flashinfer-trtllm-vllm": ("", "bf16 fp8 fp8_tensor nvfp4 mxfp4 mxfp4_a8"),
    "flashinfer-cutlass": ("bf16 fp8_tensor fp8", "bf16 nvfp4"),
    "marlin": ("int4 mxfp4", ""),
    "deepep-deepgemm-contiguous": ("fp8", ""),
    "deepep-deepgemm-masked": ("fp8", ""),
    "wideep-cutlass": ("fp8", "nvfp4"),
}


def test_these_are_the_libraries():
    assert {library.name for library in kernel_libraries()} == set(MEASURED)


@pytest.mark.parametrize("name", MEASURED)
def test_a_record_is_whole(name):
    library = kernel_library(name)
    assert set(library.exchanges) <= set(EXCHANGES)
    assert set(library.launch) <= set(ENGINES)
    assert set(library.follows) == set(library.launch)
    assert all(library.launch.values())
    assert library.launches
    assert library.sources
    assert set(library.formats) <= set(RECIPES)
    for profile, formats in zip((H100, B200), MEASURED[name], strict=True):
        assert {f for f in library.formats if library.measured(profile, f)} == set(formats.split())


@pytest.mark.parametrize("name", MEASURED)
def test_its_formats_are_those_of_its_calibration(name):
    library = kernel_library(name)
    calibration = load_calibration(library.calibration, H100)
    if calibration.model != "fused":
        return
    fitted = formats_of(calibration)
    assert set(library.formats.values()) == set(fitted)
    for recipe, rows in library.formats.items():
        own = {generation // 10 for generation in fitted[rows]}
        assert own | set(calibration.also_serves.get(rows, ())) == set(library.generations[recipe])
        assert FORMATS[rows] == RECIPES[recipe]


@pytest.mark.parametrize(
    ("name", "profile", "recipe", "kind", "reason"),
    [
        ("trtllm-gen", H100, "mxfp4", {}, "was measured in mxfp4 on compute capability 10.x only"),
        ("trtllm-gen", B200, "fp8", {}, "has the formats mxfp4, mxfp4_a8, not fp8"),
        ("flashinfer-cutlass", B200, "fp8", {}, "compute capability 9.x only"),
        ("trtllm-cutlass", L40S, "bf16", {}, "which l40s has not"),
        ("trtllm-cutlass", H100, "bf16", {"gated": False}, "gated experts, not ungated ones"),
        ("trtllm-cutlass-nongated", H100, "bf16", {}, "ungated experts, not gated ones"),
        ("marlin", H100, "int4", {"uneven": True}, "experts of one width, and these differ"),
        ("marlin", load_profile("tpu-v5p"), "int4", {}, "runs on GPUs, and tpu-v5p is none"),
    ],
)
def test_what_it_refuses_it_says(name, profile, recipe, kind, reason):
    assert reason in kernel_library(name).refuses(profile, recipe, **kind)


def test_triton_runs_everywhere():
    for name in ("sglang-triton", "vllm-triton"):
        library = kernel_library(name)
        assert library.refuses(L40S, "int4", uneven=True, gated=False) is None
        assert not library.measured(L40S, "int4")


def test_flags_may_depend_on_the_format():
    library = kernel_library("flashinfer-trtllm-sglang")
    assert library.flags("sglang", "nvfp4") == "--moe-runner-backend flashinfer_trtllm"
    assert library.flags("sglang", "mxfp4") == "--moe-runner-backend flashinfer_mxfp4"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("marlim", "unknown kernel library 'marlim': did you mean marlin"),
        ("auto:vlm", "unknown serving engine 'vlm': did you mean vllm"),
        ("auto:", "expected auto, auto:ENGINE or a library, got 'auto:'"),
    ],
)
def test_bad_choices_are_one_line(choice, message):
    with pytest.raises(ConfigError, match=message):
        check_choice(choice)


def test_good_choices():
    assert [check_choice(c) for c in ("auto", "auto:vllm", "marlin")] == [
        "auto",
        "auto:vllm",
        "marlin",
    ]
    assert known_library("h100-local") is None


def test_a_library_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "libraries").mkdir()
    text = (
        'title = "t"\nabout = "a"\ncalibration = "marlin"\nrows = "r"\nexperts = ["gated"]\n'
        'exchanges = ["nccl"]\ntiles = "t"\npadding = "p"\nlaunches = ["one"]\n'
        '[formats]\nint4 = {rows = "int4_wo", generations = [9]}\n'
        '[launch]\nvllm = {flags = "--mine", exchanges = ["all_gather"]}\n'
        '[[sources]]\ntitle = "s"\n'
    )
    path = tmp_path / "libraries" / "mine.toml"
    path.write_text(text)
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    mine = kernel_library("mine")
    assert mine.exchanges == ("nccl", "all_gather")
    assert mine.engines("all_gather") == mine.engines(None) == ["vllm"]
    assert mine.engines("nccl") == []
    path.write_text(text.replace('"nccl"', '"pigeon"'))
    with pytest.raises(UnknownNameError, match="unknown exchange 'pigeon'"):
        kernel_library("mine")
    path.write_text(text.replace('about = "a"\n', ""))
    with pytest.raises(ConfigError, match=r"mine.toml: about: expected a value, got nothing"):
        kernel_library("mine")


def test_a_record_is_for_people_to_read():
    says = {row["what"]: row["says"] for row in kernel_library("trtllm-cutlass").rows_of_record()}
    assert says["formats"].startswith("bf16 on 9.x and 10.x; ")
    assert says["launch, trtllm"] == "backend: CUTLASS"
    assert "plateaus" in says["notes"]
    assert all(says.values())
