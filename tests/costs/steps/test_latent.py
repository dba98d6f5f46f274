"""The prefill of latent attention: projected up, or absorbed where an indexer picks keys."""

from dataclasses import replace

import pytest

from moesim.costs.dense.prices import dense_prices
from moesim.costs.steps.mixers import DensePricing, core
from moesim.design.step import Step
from moesim.hardware import load_profile
from moesim.model.latent import LatentAttention
from moesim.model.mixers import Indexer

#: DeepSeek-V3's, and V3.2's indexer
DENSE = LatentAttention(
    num_heads=128, head_size=128, rope_size=64, value_size=128, kv_rank=512, q_rank=1536
)
SPARSE = replace(DENSE, indexer=Indexer(num_heads=64, head_size=128, top_k=2048))
TOKENS = 16384


def seconds(mixer, device, tokens=TOKENS):
    pricing = DensePricing(prices=dense_prices(load_profile(device)), hidden_size=7168)
    step = Step(prefills=1.0, new_tokens=tokens)
    return float(core(mixer, pricing, step).solo_s_D()[0])


# FlashAttention-3 runs forward at up to 740 TFLOP/s on H100 (arXiv 2407.08608)
@pytest.mark.parametrize("device", ["h100-sxm", "b200-sxm"])
def test_dense_prompts_run_like_attention_with_heads_of_192_and_128(device):
    flops = 2.0 * 128 * (192 + 128) * TOKENS**2 / 2.0
    share = flops / seconds(DENSE, device) / load_profile(device).peak("bfloat16")
    assert 0.5 < share < 0.8


# FlashMLA's README: sparse prefill up to 640 TFLOP/s on H800, 1,450 on B200, each .65 of the peak
@pytest.mark.parametrize("device", ["h100-sxm", "b200-sxm"])
def test_picked_keys_stay_absorbed(device):
    pairs = 2048 * (TOKENS - 1024.0)
    flops = 2.0 * 128 * (576 + 512) * pairs
    index = 2.0 * 64 * 128 * TOKENS**2 / 2.0
    peak = load_profile(device).peak("bfloat16")
    assert flops / seconds(SPARSE, device) / peak < 0.8
    assert (flops + index) / seconds(SPARSE, device) / peak > 0.4


def test_an_indexer_takes_its_kernels_however_short_the_context():
    """Eleven kernels and the scores, of about 3 us each (aiconfigurator 0.12 prices such kernels
    alike); a longer context adds only its scores.
    """
    pricing = DensePricing(prices=dense_prices(load_profile("h100-sxm")), hidden_size=7168)

    def decode(mixer, context):
        return float(core(mixer, pricing, Step(sequences=1, context=context)).solo_s_D()[0])

    short, long = (decode(SPARSE, c) - decode(DENSE, min(c, 2048)) for c in (2048, 32768))
    assert 25e-6 < short < long < 55e-6


def test_a_prompt_that_is_read_whole_is_dense_beside_its_indexer():
    sparse, dense = (seconds(mixer, "h100-sxm", 2048) for mixer in (SPARSE, DENSE))
    assert dense < sparse < 1.5 * dense
