"""What can be checked of the benchmark without a GPU: its routing, its shapes, its statistics."""

import pytest
import torch
from moesim_kernels.timing.bench import Timing, prepare_expert_phase, random_ids

from moesim.model import MoELayer

LAYER = MoELayer(hidden_size=48, expert_intermediate_size=40, num_experts=6, top_k=2)


def test_prepared_call_computes_the_layer(device):
    call = prepare_expert_phase(LAYER, random_ids(33, 6, 2, skew=1.0, device=device), seed=3)
    out_TH = call()
    assert (out_TH.shape, out_TH.dtype) == ((33, 48), torch.bfloat16)
    assert out_TH.isfinite().all()
    assert torch.equal(out_TH, call())


def test_prepare_refuses_another_top_k(device):
    with pytest.raises(ValueError, match=r"ids_TK: expected shape \(T, 2\)"):
        prepare_expert_phase(LAYER, random_ids(4, 6, 3, device=device))


def test_random_ids_are_distinct_and_seeded():
    ids_TK = random_ids(500, 16, 4, seed=1)
    assert ids_TK.dtype == torch.int32
    assert (ids_TK.sort(1).values.diff(dim=1) > 0).all()
    assert torch.equal(ids_TK, random_ids(500, 16, 4, seed=1))
    assert not torch.equal(ids_TK, random_ids(500, 16, 4, seed=2))
    counts = ids_TK.flatten().bincount(minlength=16)
    assert counts.min() > 0.7 * counts.float().mean()


def test_skew_follows_zipf():
    counts = random_ids(20000, 8, 1, skew=1.0).flatten().bincount(minlength=8) / 20000
    harmonic = 1 / torch.arange(1, 9)
    torch.testing.assert_close(counts, harmonic / harmonic.sum(), rtol=0.1, atol=0)


def test_random_ids_refuse():
    with pytest.raises(ValueError, match="top_k: expected 1 to 4, got 5"):
        random_ids(1, 4, 5)


def test_timing_quantiles():
    timing = Timing.of([float(i) for i in range(11)], flushed=True)
    assert (timing.p10_s, timing.median_s, timing.p90_s, timing.num_calls) == pytest.approx(
        (1.0, 5.0, 9.0, 11)
    )
