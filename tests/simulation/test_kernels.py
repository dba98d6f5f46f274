"""Whose kernels run a design's experts: the fastest that is launched, the one that is named, and
what each price rests on.
"""

from dataclasses import replace

import pytest

from moesim import Candidate, MoELayer, Parallelism, Precision, Workload, load_cluster, simulate
from moesim.costs.libraries import able, running
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware.libraries import AUTO
from moesim.simulation.kernels import engines_of
from moesim.simulation.prepare import prepare
from moesim.simulation.screening import bounds_of

WORK = Workload(num_tokens_per_device=512, routing="power_law:1.2")


def design(precision="fp8", exchange="all_gather", kernels=AUTO, ep=8, **layer):
    return Candidate(
        layer=MoELayer(
            hidden_size=4096,
            num_experts=64,
            top_k=4,
            precision=Precision.named(precision),
            **{"expert_intermediate_size": 1536} | layer,
        ),
        parallelism=Parallelism(ep=ep),
        schedule=Schedule(exchange=exchange),
        kernels=kernels,
    )


@pytest.mark.parametrize(
    ("cluster", "precision"),
    [
        ("hgx-h100-8", "bf16"),
        ("hgx-h100-8", "fp8"),
        ("hgx-h100-8", "int4"),
        ("hgx-b200-8", "fp8"),
        ("hgx-b200-8", "nvfp4"),
        ("hgx-b200-8", "mxfp4_a8"),
        ("hgx-a100-8", "bf16"),
    ],
)
@pytest.mark.parametrize("tokens", [1, 512])
def test_auto_is_the_fastest_of_those_that_are_launched(cluster, precision, tokens):
    cluster, candidate = load_cluster(cluster), design(precision)
    work = replace(WORK, num_tokens_per_device=tokens)
    found = simulate(candidate, cluster, work)
    names = [
        one.name for one in able(cluster.profile, candidate, cluster.exchange(candidate.schedule))
    ]
    each = {name: simulate(replace(candidate, kernels=name), cluster, work) for name in names}
    # libraries are compared alone; copies of other devices that land meanwhile slow some a little
    assert found.experts_time_s <= 1.03 * min(one.experts_time_s for one in each.values())
    assert found.layer_time_s == each[found.kernels].layer_time_s
    assert engines_of(found, cluster)
    row = found.row()
    assert (row["kernels_asked"], row["kernels"]) == ("auto", found.kernels)
    assert Candidate.from_dict(row) == candidate


def test_the_library_prices_the_experts_and_nothing_else():
    cluster = load_cluster("hgx-h100-8")
    one, other = (
        simulate(design(kernels=name), cluster, WORK)
        for name in ("sglang-triton", "trtllm-cutlass")
    )
    assert one.phase_time_s["experts"] != other.phase_time_s["experts"]
    assert one.phase_time_s["gate"] == other.phase_time_s["gate"]
    assert one.phase_time_s["dispatch"] == other.phase_time_s["dispatch"]
    assert one.profile_hash != other.profile_hash
    assert one.candidate.key != other.candidate.key


def test_auto_keeps_to_an_engine():
    cluster = load_cluster("hgx-b200-8")
    for engine in ("sglang", "vllm", "trtllm"):
        candidate = design("nvfp4", exchange="nccl", kernels=f"auto:{engine}")
        name = simulate(candidate, cluster, WORK).kernels
        assert (
            name
            in {
                "sglang": ("flashinfer-trtllm-sglang", "flashinfer-cutlass"),
                "vllm": ("flashinfer-trtllm-vllm", "flashinfer-cutlass"),
                "trtllm": ("trtllm-cutlass", "trtllm-min-latency", "wideep-cutlass"),
            }[engine]
        )


def test_every_kind_of_device_has_its_own():
    mixed = load_cluster("mixed-h100-b200")
    candidate = design("fp8", exchange="nccl", ep=mixed.num_devices)
    prepared = prepare(candidate, mixed, WORK)
    names = prepared.kernels.split("+")
    assert len(names) == 2
    assert [profile.calibration for profile, _ in prepared.cluster.groups] != [
        profile.calibration for profile, _ in mixed.groups
    ]
    assert running(mixed, prepared.kernels) is prepared.cluster
    named = simulate(replace(candidate, kernels="sglang-triton"), mixed, WORK)
    assert named.kernels == "sglang-triton"


def test_what_is_no_gpu_keeps_its_kernels():
    tpu = load_cluster("tpu-v5e-4x4")
    candidate = design("bf16", exchange=None, ep=16)
    assert simulate(candidate, tpu, WORK).kernels == ""
    with pytest.raises(ConfigError, match="marlin runs on GPUs, and tpu-v5e is none"):
        simulate(replace(candidate, kernels="marlin"), tpu, WORK)


def test_where_nobody_measured_it_is_triton():
    assert simulate(design("int8"), load_cluster("hgx-h100-8"), WORK).kernels == "sglang-triton"
    assert simulate(design("bf16"), load_cluster("mi300x-8"), WORK).kernels == "sglang-triton"
    uneven = design("fp8", expert_intermediate_size=(1536, 768) * 32)
    assert simulate(uneven, load_cluster("hgx-h100-8"), WORK).kernels.endswith("-triton")


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (
            design("fp8", kernels="trtllm-gen"),
            "kernels: trtllm-gen has the formats mxfp4, mxfp4_a8, not fp8; others that do: "
            "flashinfer-cutlass, ",
        ),
        (
            design("int4", kernels="marlin", exchange="deepep_normal"),
            "kernels: marlin takes tokens of nccl, ",
        ),
        (
            design("int8", kernels="auto:trtllm"),
            "kernels: expected a design that trtllm has kernels for, got int8 after all_gather on "
            "h100-sxm",
        ),
    ],
)
def test_what_cannot_be_is_one_line(candidate, message):
    with pytest.raises(ConfigError) as caught:
        simulate(candidate, load_cluster("hgx-h100-8"), WORK)
    assert str(caught.value).startswith(message)


def test_unknown_libraries_are_refused_where_they_are_named():
    with pytest.raises(UnknownNameError, match="did you mean trtllm-cutlass"):
        design(kernels="trtlm-cutlas")


def test_screening_takes_the_fastest_of_each_width():
    """Widths of one frame that differ in the fastest library have the bounds of simulations."""
    cluster, work = load_cluster("hgx-h100-8"), replace(WORK, num_tokens_per_device=16)
    from moesim import load_preset

    dense = load_preset("qwen3-30b-a3b").dense_part
    widths = (128, 256, 512, 1024, 2048, 4096)
    every = [
        replace(design("bf16", exchange="nccl", expert_intermediate_size=w), dense_part=dense)
        for w in widths
    ]
    found = bounds_of(every, cluster, work)
    alone = [simulate(c, cluster, work, engine="bound") for c in every]
    assert found.layer_time_s_N == pytest.approx([r.layer_time_s for r in alone], rel=1e-12)
    assert len({r.kernels for r in alone}) > 1
