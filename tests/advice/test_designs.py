"""The designs that a recommendation tries: placements, exchanges, splits, formats and sizes."""

import pytest

from moesim import load_cluster
from moesim.advice.designs import (
    candidates,
    exchanges,
    formats,
    loss_delta,
    placements,
    splits,
)
from moesim.errors import ConfigError
from moesim.hardware.sizing import sized
from moesim.model.hf_config import load_model

QWEN = "qwen3-30b-a3b"


def test_placements_give_every_rank_equally_many_slots():
    assert placements(128, 8, several_nodes=False) == [
        ("contiguous", 0),
        ("balanced", 0),
        ("eplb", 8),
        ("eplb", 16),
        ("eplb", 32),
    ]
    for ep in (1, 3, 6, 64, 96):
        assert all(
            (128 + replicas) % ep == 0 for _, replicas in placements(128, ep, several_nodes=True)
        )
    assert ("eplb", 16) in placements(128, 48, several_nodes=True)
    assert placements(8, 1, several_nodes=False) == [("contiguous", 0)]


def test_exchanges_belong_to_the_fabric():
    """Those that no serving engine launches are left to simulations."""
    assert exchanges(load_cluster("hgx-h100-8"), "prefill") == ["deepep_normal", "all_gather"]
    assert exchanges(load_cluster("h100-rail-8x8"), "decode") == ["deepep_ll", "all_gather"]
    assert exchanges(load_cluster("mi300x-8"), "prefill") == ["all_gather"]
    assert exchanges(load_cluster("tpu-v5p-4x4x4"), "prefill") == ["ici"]
    assert exchanges(load_cluster("gb200-nvl72"), "prefill")[0] == "nvl72"
    assert exchanges(load_cluster("h100-sxm"), "prefill") == ["nccl"]


def test_splits_keep_tp_within_a_node():
    assert [(s.ep, s.tp) for s in splits(load_cluster("h100-rail-8x8"))] == [
        (64, 1),
        (32, 2),
        (16, 4),
        (8, 8),
    ]


def test_formats_are_those_the_device_runs(hgx):
    deepseek, oss = load_model("deepseek-v3"), load_model("gpt-oss-120b")
    assert formats(deepseek, hgx) == ["fp8"]
    assert formats(deepseek, load_cluster("hgx-b200-8")) == ["fp8", "nvfp4"]
    assert formats(load_model("qwen3-30b-a3b"), hgx) == ["bf16", "fp8"]
    assert formats(oss, hgx) == ["mxfp4"]
    assert formats(oss, load_cluster("hgx-b200-8")) == ["mxfp4", "mxfp4_a8"]
    assert formats(deepseek, load_cluster("hgx-a100-8")) == ["bf16"]
    assert formats(oss, load_cluster("hgx-a100-8")) == ["mxfp4", "bf16"]
    assert formats(oss, hgx, "int4, fp8,int4") == ["int4", "fp8"]
    # 4-bit weights fit into 8 bits; tokens in 8 bits are rounded all the same
    assert loss_delta(oss, "fp8") == pytest.approx((0.0015, 0.0, 0.005))
    assert loss_delta(oss, "mxfp4") == loss_delta(oss, "bf16") == (0.0, 0.0, 0.0)
    assert loss_delta(deepseek, "fp8") == loss_delta(deepseek, "bf16") == (0.0, 0.0, 0.0)
    assert loss_delta(deepseek, "nvfp4")[0] == pytest.approx(0.024 - 0.0015)
    with pytest.raises(
        ConfigError, match=r"a100-sxm has no rate for float8_e4m3, which fp8 multiplies in: it has "
    ):
        formats(deepseek, load_cluster("hgx-a100-8"), "fp8")
    with pytest.raises(ConfigError, match="unknown precision 'fp9': did you mean fp"):
        formats(deepseek, hgx, "fp9")


@pytest.mark.parametrize(
    ("name", "gpus", "devices", "nodes"),
    [
        ("h100-rail-8x8", 16, 16, 2),
        ("h100-rail-8x8", 4, 4, 1),
        ("hgx-h100-8", None, 8, 1),
        ("gb200-nvl72", 36, 36, 1),
    ],
)
def test_sizes(name, gpus, devices, nodes):
    cluster = sized(load_cluster(name), gpus)
    assert (cluster.num_devices, cluster.num_nodes) == (devices, nodes)


@pytest.mark.parametrize(
    ("name", "gpus", "line"),
    [
        (
            "hgx-h100-8",
            16,
            "gpus: expected at most 8, since hgx-h100-8 is one node without a network",
        ),
        (
            "h100-rail-8x8",
            12,
            (
                "gpus: expected a multiple of the 8 devices of a node of h100-rail-8x8, or "
                "fewer, got 12"
            ),
        ),
        ("h100-rail-8x8", 0, "gpus: expected a number >= 1, got 0"),
        (
            "tpu-v5e-4x4",
            12,
            (
                "gpus: expected a power of two times 16, or that divided by one, since tpu-v5e-4x4 "
                "is a torus of 4x4"
            ),
        ),
        (
            "mixed-h100-b200",
            8,
            "gpus: expected the 64 devices of mixed-h100-b200, which mixes devices, got 8",
        ),
    ],
)
def test_sizes_that_no_cluster_has(name, gpus, line):
    with pytest.raises(ConfigError) as caught:
        sized(load_cluster(name), gpus)
    assert str(caught.value).startswith(line)


def test_no_design_is_tried_twice(hgx):
    designs = list(
        candidates(load_model(QWEN), hgx, phase="prefill", names=["bf16", "fp8"], tokens=512)
    )
    assert len(designs) == len(set(designs))
    assert len({c.parallelism for c in designs}) == 4


@pytest.mark.parametrize(("asked", "axes"), [(8, [2, 4]), (4, [2, 2]), (64, [8, 8])])
def test_a_torus_is_cut_and_grown_as_slices_are(asked, axes):
    found = sized(load_cluster("tpu-v5e-4x4"), asked)
    assert (found.num_devices, found.file.scale_up.axes) == (asked, axes)
