"""Memory of a device that serves a whole model, against figures of the models' makers."""

from dataclasses import replace

import pytest

from moesim import load_profile
from moesim.costs.steps.memory import memory_on
from moesim.design.served import ServedModel
from moesim.design.step import Layout
from moesim.errors import CapacityError
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.units import GIB


@pytest.fixture(scope="module")
def deepseek():
    model = load_model("deepseek-v3")
    return ServedModel(
        name=model.name,
        spec=model.spec,
        layout=Layout.parse("tp8"),
        precision=Precision.named("fp8"),
        dense_format="fp8_block",
    )


@pytest.fixture(scope="module")
def h200():
    return load_profile("h200-sxm")


def test_weights_are_those_of_the_checkpoint(deepseek, h200):
    """671 B weights of one byte, of which embedding and head have two (arXiv 2412.19437)."""
    memory = memory_on(deepseek, h200, step_tokens=0)
    total = 8 * (memory.experts_bytes + memory.dense_bytes)
    # the ranks of latent attention and gates are on every device
    assert 671e9 < total < 1.06 * 671e9
    assert memory.kv_bytes_per_token == pytest.approx(61 * 576 * 2)


def test_an_fp8_cache_holds_twice_the_tokens(deepseek, h200):
    plain = memory_on(deepseek, h200, step_tokens=8192)
    narrow = memory_on(replace(deepseek, kv_format="fp8"), h200, step_tokens=8192)
    assert narrow.kv_blocks(16) == pytest.approx(2 * plain.kv_blocks(16), abs=2)


def test_attention_ranks_hold_the_dense_part_whole(deepseek, h200):
    shared = memory_on(deepseek, h200, step_tokens=0)
    whole = memory_on(replace(deepseek, layout=Layout.parse("dp8 ep8")), h200, step_tokens=0)
    assert whole.experts_bytes == pytest.approx(shared.experts_bytes)
    assert whole.dense_bytes > 4 * shared.dense_bytes


def test_stages_share_the_layers(deepseek, h200):
    one = memory_on(deepseek, h200, step_tokens=0)
    two = memory_on(replace(deepseek, layout=Layout.parse("tp8 pp2")), h200, step_tokens=0)
    assert two.experts_bytes == pytest.approx(one.experts_bytes / 2)
    assert two.kv_bytes_per_token == pytest.approx(one.kv_bytes_per_token / 2)


def test_what_does_not_fit_says_by_how_much(deepseek):
    memory = memory_on(deepseek, load_profile("h100-sxm"), step_tokens=8192)
    over = -memory.left_bytes / GIB
    with pytest.raises(CapacityError, match=rf"{over:.1f} GiB over"):
        memory.check("deepseek-v3", "hgx-h100-8 as tp8")
