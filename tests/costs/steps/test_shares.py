"""A device's share of a mixer: what all devices hold together is the mixer, and ranks are whole."""

import pytest

from moesim.costs.steps.shares import channel_params, kv_heads_of, products_of
from moesim.model.latent import LatentAttention
from moesim.model.mixers import GroupedAttention
from moesim.model.recurrent import GatedDeltaNet
from moesim.model.state_space import Mamba2

HIDDEN = 4096
GQA = GroupedAttention(num_heads=64, num_kv_heads=8, head_size=128)
MLA = LatentAttention(
    num_heads=128, head_size=128, rope_size=64, value_size=128, q_rank=1536, kv_rank=512
)
DELTA = GatedDeltaNet(num_key_heads=16, num_value_heads=32, key_size=128, value_size=128, kernel=4)
MAMBA = Mamba2(num_heads=64, head_size=64, state_size=128, num_groups=8, kernel=4)


@pytest.mark.parametrize("mixer", [GQA, MLA, DELTA, MAMBA], ids=lambda m: type(m).__name__)
def test_one_device_holds_all(mixer):
    products = sum(n * k for n, k in products_of(mixer, HIDDEN, 1))
    assert products + channel_params(mixer, HIDDEN, 1) == pytest.approx(mixer.params(HIDDEN))


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_heads_divide(tp):
    whole = sum(n * k for n, k in products_of(GQA, HIDDEN, 1))
    assert sum(n * k for n, k in products_of(GQA, HIDDEN, tp)) == pytest.approx(whole / tp)


def test_a_device_holds_at_least_one_head_of_keys():
    assert [kv_heads_of(GQA, tp) for tp in (1, 4, 8, 16)] == [8, 2, 1, 1]
    # q and o divide by 16, k and v by 8 only
    q, kv = 64 * 128 * HIDDEN, 8 * 128 * HIDDEN
    share = sum(n * k for n, k in products_of(GQA, HIDDEN, 16))
    assert share == pytest.approx(2 * q / 16 + 2 * kv / 8)


def test_ranks_of_latent_attention_are_whole():
    down = (1536 + 512 + 64) * HIDDEN
    whole = sum(n * k for n, k in products_of(MLA, HIDDEN, 1))
    assert sum(n * k for n, k in products_of(MLA, HIDDEN, 8)) == pytest.approx(
        down + (whole - down) / 8
    )


def test_what_reads_the_same_tokens_is_one_gemm():
    assert len(products_of(GQA, HIDDEN, 1)) == 2
    # down to both ranks, up from each, output
    assert len(products_of(MLA, HIDDEN, 1)) == 4
