"""Tiles by the simulator's model, and by tables of what was timed."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from moesim_kernels.ops.layer import LayerWeights, expert_phase
from moesim_kernels.tiles import choice
from moesim_kernels.tiles.choice import (
    Shape,
    choose_tiles,
    merged_rows,
    read_table,
    table_file,
    tuned_tile,
)
from moesim_kernels.tiles.modeled import best_tiles, expert_sizes
from moesim_kernels.tiles.tiles import LIMITS, tile_config
from moesim_kernels.timing.bench import random_ids

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.tile_choice import compiled_tiles, expected_counts
from moesim.costs.devices.tile_kernels import TileKernels
from moesim.costs.libraries import OWN_KERNELS
from moesim.costs.load import Load
from moesim.costs.work import GemmSpec
from moesim.errors import ConfigError
from moesim.hardware import load_profile
from moesim.hardware.drivers import profile_of_driver
from moesim.model import MoELayer

SHAPE = Shape(
    num_experts=8,
    top_k=2,
    hidden_size=64,
    expert_intermediate_size=48,
    dtype="bfloat16",
    operand_bits=16,
)


@pytest.mark.parametrize(
    ("rows", "experts"), [(0, 4), (1, 1), (2, 256), (300, 61), (8192, 128), (10**6, 8), (7, 10**6)]
)
def test_expected_counts_are_those_of_random_routing(rows, experts):
    counts = expected_counts(rows, experts)
    assert counts.shape == (experts,)
    assert (np.diff(counts) >= 0).all()
    assert (counts >= 0).all()
    assert abs(counts.sum() - rows) <= max(0.05 * rows, 1)
    drawn = np.random.default_rng(0).multinomial(rows, np.full(experts, 1 / experts))
    assert abs(int((counts > 0).sum()) - int((drawn > 0).sum())) <= max(0.1 * experts, 2)


def test_expected_counts_refuse():
    with pytest.raises(ValueError, match="num_rows >= 0 and num_experts >= 1"):
        expected_counts(-1, 4)


@pytest.mark.parametrize("name", ["h100-sxm", "a100-sxm", "mi300x"])
@pytest.mark.parametrize("skew", [0.0, 1.5])
@pytest.mark.parametrize("tokens", [1, 40, 3000])
def test_the_best_pair_is_the_models_least(name, skew, tokens):
    """Of all pairs that share their rows, by what the simulator charges for each GEMM."""
    profile, sizes = load_profile(name), expert_sizes(2048, 1536, 2, 16)
    counts_E = torch.bincount(random_ids(tokens, 16, 2, skew=skew).flatten(), minlength=16).numpy()
    pairs = best_tiles(counts_E, sizes, profile, most=10**6)
    kernels = TileKernels(profile=profile, calibration=load_calibration(OWN_KERNELS, profile))

    def charged(tile, columns, depth, up):
        load = Load.of(counts_E[None], counts_E.sum(keepdims=True), tile.block_m)
        about = {"fmt": "bfloat16", "weight_bytes": 2.0, "input_bytes": 2.0}
        wide = replace(tile, block_n=tile.block_n * (2 if up else 1))
        spec = GemmSpec(tile=wide, gather_inputs=up, row_copies=2.0 if up else 1.0, **about)
        return float(kernels.grouped_gemm(load, columns, depth, spec).solo_s_D()[0])

    seconds = [charged(u, 3072, 2048, True) + charged(d, 2048, 1536, False) for u, d in pairs]
    assert seconds == pytest.approx(sorted(seconds), rel=1e-9)
    assert all(up.block_m == down.block_m for up, down in pairs)
    assert len(pairs) == len(set(pairs))


def test_the_histogram_decides_where_the_mean_does_not():
    profile = load_profile("h100-sxm")
    even = np.full(128, 8)
    skewed = np.zeros(128, dtype=int)
    skewed[0] = even.sum()
    sizes = expert_sizes(4096, 1536, 8, 16)
    rows = [best_tiles(counts, sizes, profile)[0][0].block_m for counts in (even, skewed)]
    assert rows[0] < rows[1]


def test_profiles_are_found_by_what_drivers_call_gpus():
    for name, profile in (
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA H20", "h20-sxm"),
        ("AMD Instinct MI300X", "mi300x"),
    ):
        assert profile_of_driver(name).name == profile
    assert (
        profile_of_driver("h100").name
        == profile_of_driver("NVIDIA H100 SXM5 80GB").name
        == "h100-sxm"
    )
    assert (
        profile_of_driver("NVIDIA RTX PRO 6000 Blackwell Server Edition").name
        == profile_of_driver("rtx-pro-6000").name
    )


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA H200 NVL",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA H800 PCIe",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4080",
        "NVIDIA H20-3e",
        "Voodoo 2",
    ],
)
def test_a_card_or_a_slice_is_not_the_module_of_its_name(name):
    assert profile_of_driver(name) is None
    tiles = choose_tiles(name, SHAPE, 4096, LIMITS["sm_90"])
    assert tiles == choose_tiles("", SHAPE, 4096, LIMITS["sm_90"])


def _row(tokens, gemm, block_m=32, **changes):
    return {
        "device": "Some GPU",
        "num_experts": 8,
        "top_k": 2,
        "hidden_size": 64,
        "expert_intermediate_size": 48,
        "dtype": "bfloat16",
        "skew": 0.0,
        "num_tokens": tokens,
        "gemm": gemm,
        "block_m": block_m,
        "block_n": 16,
        "block_k": 64,
        "group_m": 1,
        "num_warps": 4,
        "num_stages": 2,
        "tuned_us": 1.0,
        "default_us": 2.0,
    } | changes


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def tables(monkeypatch, tmp_path):
    monkeypatch.setenv("MOESIM_HOME", str(tmp_path))
    monkeypatch.delenv("MOESIM_TILES", raising=False)
    choice.forget_tables()
    yield tmp_path
    choice.forget_tables()


def test_tuned_tiles_are_found_by_layer_and_nearest_tokens(tables):
    assert table_file("Some GPU (TM)") == tables / "kernel_tiles" / "some-gpu-tm.csv"
    _write(
        table_file("Some GPU"),
        [
            _row(16, "swiglu", 16),
            _row(16, "down", 16),
            _row(256, "swiglu", 64),
            _row(256, "down", 64),
        ],
    )
    assert [
        tuned_tile("Some GPU", SHAPE, "swiglu", tokens).block_m
        for tokens in (1, 16, 136, 137, 9999)
    ] == [16, 16, 16, 64, 64]
    assert tuned_tile("Another GPU", SHAPE, "swiglu", 16) is None
    up, down = choose_tiles("Some GPU", SHAPE, 300, LIMITS["sm_80"])
    assert (up.block_m, up.block_n, down.block_m, down.num_stages) == (64, 16, 64, 2)


def test_a_table_may_be_named(tables, monkeypatch):
    _write(tables / "mine.csv", [_row(16, "swiglu", 128)])
    monkeypatch.setenv("MOESIM_TILES", str(tables / "mine.csv"))
    assert tuned_tile("Some GPU", SHAPE, "swiglu", 1).block_m == 128
    monkeypatch.setenv("MOESIM_TILES", str(tables / "none.csv"))
    with pytest.raises(ConfigError, match=r"none.csv: cannot read this file"):
        tuned_tile("Some GPU", SHAPE, "swiglu", 1)


def test_tables_that_are_none_are_refused(tables):
    for changes in ({"block_m": 17}, {"num_warps": "four"}):
        _write(tables / "bad.csv", [_row(16, "swiglu", **changes)])
        with pytest.raises(ConfigError, match=r"bad.csv: expected a table of|tile.block_m"):
            read_table(tables / "bad.csv")


def test_rows_of_the_same_layer_are_replaced(tables):
    path = tables / "t.csv"
    assert merged_rows(path, [_row(16, "swiglu")]) == [_row(16, "swiglu")]
    _write(path, [_row(16, "swiglu"), _row(16, "down")])
    merged = merged_rows(path, [_row(16, "down", 128), _row(16, "down", 64, skew=1.0)])
    assert [(row["gemm"], row["block_m"], float(row["skew"])) for row in merged] == [
        ("swiglu", 32, 0.0),
        ("down", 128, 0.0),
        ("down", 64, 1.0),
    ]


def test_without_a_gpu_tiles_follow_the_mean_load(tables):
    for tokens in (0, 1, 64, 65, 500):
        for unknown in ("", "Voodoo 2"):
            up, down = choose_tiles(unknown, SHAPE, tokens, LIMITS["sm_80"])
            assert up == tile_config(tokens / 4, 48, num_accumulators=2)
            assert down == tile_config(tokens / 4, 64, block_m=up.block_m)


def test_a_known_gpu_gets_the_models_tiles_without_a_look_at_the_routing(tables):
    shape = Shape(
        num_experts=128,
        top_k=8,
        hidden_size=4096,
        expert_intermediate_size=1536,
        dtype="bfloat16",
        operand_bits=16,
    )
    sizes = expert_sizes(4096, 1536, 8, 16)
    for tokens, near in ((1, 1), (701, 704), (1024, 1024)):
        counts_E = expected_counts(near * 8, 128)
        for driver, name in (("NVIDIA A100-SXM4-80GB", "a100-sxm"), ("NVIDIA H200", "h200-sxm")):
            chosen = choose_tiles(driver, shape, tokens, LIMITS["sm_90"])
            assert chosen == best_tiles(counts_E, sizes, load_profile(name))[0]


@pytest.mark.parametrize(
    ("tokens", "block_m"), [(1, 16), (64, 16), (256, 32), (512, 64), (1024, 128), (99999, 128)]
)
def test_rows_of_a_tile_cover_an_experts_on_hopper(tables, tokens, block_m):
    shape = Shape(
        num_experts=128,
        top_k=8,
        hidden_size=4096,
        expert_intermediate_size=1536,
        dtype="bfloat16",
        operand_bits=16,
    )
    limits = LIMITS["sm_90"]
    up, down = choose_tiles("NVIDIA H100 80GB HBM3", shape, tokens, limits)
    assert up.block_m == down.block_m == block_m
    for tile, columns in ((up, 2 * up.block_n), (down, down.block_n)):
        assert (block_m + columns) * tile.block_k * 2 * tile.num_stages <= limits.shared_bytes
        assert block_m * columns <= limits.elements_per_warp * tile.num_warps
    scaled = replace(shape, dtype="float8_e4m3fn", operand_bits=8)
    assert choose_tiles("NVIDIA H100 80GB HBM3", scaled, tokens, limits) != (up, down)


def test_other_targets_choose_among_the_tiles_of_the_mean_load():
    """The table names what is compiled: the tiles of `tile_config`, but for 16 bits on Hopper."""
    for target, limits in LIMITS.items():
        for bits in (8, 16, 32):
            if (target, bits) == ("sm_90", 16) or (bits == 8 and not limits.fp8):
                continue
            described = target.startswith("sm_") and int(target[3:]) >= 90 and bits <= 16
            for gemm, accumulators in (("up", 2), ("down", 1)):
                assert compiled_tiles(target, bits, gemm) == tuple(
                    replace(
                        tile_config(
                            rows,
                            4096,
                            operand_bits=bits,
                            result_bits=max(bits, 16),
                            num_accumulators=accumulators,
                            block_m=rows,
                            limits=limits,
                        ),
                        descriptors=described,
                    )
                    for rows in (16, 32, 64, 128)
                )


def test_layers_run_with_the_tuned_tile(tables, monkeypatch, device):
    layer = MoELayer(hidden_size=64, expert_intermediate_size=48, num_experts=8, top_k=2)
    weights = LayerWeights.random(layer, 0, device=device)
    _write(table_file("Some GPU"), [_row(16, gemm, 128) for gemm in ("swiglu", "down")])
    monkeypatch.setattr("moesim_kernels.ops.layer.device_name", lambda: "Some GPU")
    planned = []
    from moesim_kernels.ops import layer as layer_module

    make_plan = layer_module.make_plan
    monkeypatch.setattr(
        layer_module, "make_plan", lambda *args: planned.append(make_plan(*args)) or planned[-1]
    )
    x_TH = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16().to(device)
    expert_phase(x_TH, random_ids(5, 8, 2, device=device), torch.ones(5, 2, device=device), weights)
    assert [plan.block_m for plan in planned] == [128]
