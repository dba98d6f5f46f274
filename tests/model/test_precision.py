"""Number formats: bytes by hand, one line for what is wrong, and every recipe through the whole
simulator.
"""

import pytest

from moesim import Candidate, Parallelism, Workload, load_cluster, simulate
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.model.precision import FORMATS, RECIPES, Precision


@pytest.mark.parametrize(
    ("recipe", "elements", "dispatch", "combine", "weight"),
    [
        ("bf16", 7168, 2 * 7168, 2 * 7168, 2.0),
        ("fp16", 7168, 2 * 7168, 2 * 7168, 2.0),
        ("fp8", 7168, 7168 + 4 * 56, 2 * 7168, 1 + 4 / 128**2),
        ("fp8", 129, 129 + 4 * 2, 2 * 129, 1 + 4 / 128**2),
        ("fp8_tensor", 7168, 7168, 2 * 7168, 1.0),
        ("int8", 7168, 7168, 2 * 7168, 1.0),
        ("int4", 7168, 2 * 7168, 2 * 7168, 0.5 + 2 / 128),
        ("mxfp4", 7168, 2 * 7168, 2 * 7168, 0.5 + 1 / 32),
        ("mxfp4_a8", 7168, 7168 + 224, 2 * 7168, 0.5 + 1 / 32),
        ("nvfp4", 7168, 3584 + 448, 2 * 7168, 0.5 + 1 / 16),
        ("nvfp4_a16", 7168, 2 * 7168, 2 * 7168, 0.5 + 1 / 16),
    ],
)
def test_bytes_count_their_scales(recipe, elements, dispatch, combine, weight):
    precision = Precision.named(recipe)
    assert precision.token_bytes("dispatch", elements) == dispatch
    assert precision.token_bytes("combine", elements) == combine
    assert precision.weight_bytes == pytest.approx(weight, rel=1e-12)
    assert precision.name == recipe


def test_narrow_tokens_count_the_scales_of_their_blocks():
    tokens = Precision(weights="nvfp4", dispatch="mxfp4", combine="nvfp4")
    assert tokens.token_bytes("dispatch", 100) == 50 + 4
    assert tokens.token_bytes("combine", 100) == 50 + 7


def test_what_a_recipe_does_to_the_kernels():
    assert {name for name, p in RECIPES.items() if p.block_scaled} == {"fp8", "mxfp4_a8"}
    weight_only = {"int4", "mxfp4", "mxfp4_a8", "nvfp4_a16"}
    assert {name for name, p in RECIPES.items() if p.weight_only} == weight_only
    assert len(set(RECIPES.values())) == len(RECIPES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Precision(weights="int3"),
            f"precision.weights: expected one of {', '.join(FORMATS)}, got 'int3'",
        ),
        (
            lambda: Precision(combine="bf16"),
            f"precision.combine: expected one of {', '.join(FORMATS)}, got 'bf16'",
        ),
        (
            lambda: Precision(scale_block=-1),
            "precision.scale_block: expected an integer >= 0, got -1",
        ),
        (
            lambda: Precision(scale_block=1.5),
            "precision.scale_block: expected an integer >= 0, got 1.5",
        ),
        (
            lambda: Precision(activations="float8_e4m3"),
            (
                "precision.activations: expected a format at least as wide as the weights' "
                "bfloat16, got 'float8_e4m3'"
            ),
        ),
        (
            lambda: Precision.named("int3"),
            f"precision: expected one of {', '.join(RECIPES)}, got 'int3'",
        ),
    ],
)
def test_wrong_ones(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("cluster", toml.names("clusters"))
def test_every_recipe_on_every_shipped_cluster_runs_or_says_why_not(cluster, recipe, make_layer):
    cluster = load_cluster(cluster)
    precision = Precision.named(recipe)
    candidate = Candidate(
        layer=make_layer(num_experts=4 * cluster.num_devices, precision=precision),
        parallelism=Parallelism(ep=cluster.num_devices),
    )
    lacks = [p.name for p, _ in cluster.groups if precision.activations not in p.peak_flops_per_s]
    if not lacks:
        result = simulate(candidate, cluster, Workload(num_tokens_per_device=64))
        assert result.layer_time_low_s < result.layer_time_s < result.layer_time_high_s
        assert result.row()["precision"] == recipe
    else:
        with pytest.raises(
            ConfigError, match=f"^{lacks[0]}: no compute rate for {precision.activations}; it has "
        ):
            simulate(candidate, cluster, Workload(num_tokens_per_device=64))


def test_narrower_weights_read_faster_in_decode(hgx, make_candidate):
    """Few tokens, many experts: time is weights, so fewer bytes are faster."""
    work = Workload(num_tokens_per_device=16, phase="decode")
    sizes = {"hidden_size": 4096, "expert_intermediate_size": 4096, "num_experts": 64, "top_k": 8}
    wide, narrow = (
        simulate(make_candidate(**sizes, precision=Precision.named(r)), hgx, work).experts_time_s
        for r in ("bf16", "int4")
    )
    assert narrow < wide


def test_blocks_that_tensor_parallelism_cuts_are_named():
    """Qwen3-30B-A3B in fp8 over four devices, which vLLM and SGLang refuse to load."""
    fp8, bf16 = RECIPES["fp8"], RECIPES["bf16"]
    said = fp8.cut_block(768, 4)
    assert said.startswith("experts of 768 over tp 4 are 192 wide, no multiple of the fp8 blocks")
    assert said.endswith("tp 2 divides it")
    assert fp8.cut_block(768, 2) == fp8.cut_block(768, 1) == bf16.cut_block(768, 4) == ""
    assert RECIPES["fp8_tensor"].cut_block(768, 4) == ""
    assert "divides it" not in fp8.cut_block(100, 2)
