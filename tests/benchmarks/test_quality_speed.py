"""Cost of an estimated loss: one candidate, the same sizes again, and a screening pass."""

from dataclasses import replace

import numpy as np

from moesim import load_preset
from moesim.quality import estimate_loss, estimate_losses, loss_mid

MODEL = load_preset("qwen3-235b-a22b")


def test_estimate_loss_of_new_sizes(benchmark):
    layers = iter([replace(MODEL.layer, num_experts=128 + i) for i in range(2000)])
    benchmark.pedantic(
        lambda: estimate_loss(next(layers), MODEL.dense_part, train_tokens=2e12), rounds=2000
    )


def test_estimate_loss_of_known_sizes(benchmark):
    estimate_loss(MODEL.layer, MODEL.dense_part, train_tokens=2e12)
    benchmark(lambda: estimate_loss(MODEL.layer, MODEL.dense_part, train_tokens=2e12))


def sizes(number=100_000):
    rng = np.random.default_rng(0)
    ends = ((1, 1e4), (1e8, 1e10), (1e9, 1e12), (0.5, 64))
    return [np.exp(rng.uniform(np.log(low), np.log(high), number)) for low, high in ends]


def test_loss_mid_of_100_000(benchmark):
    given = sizes()
    benchmark(lambda: loss_mid(*given))


def test_estimate_losses_of_100_000(benchmark):
    given = sizes()
    benchmark(lambda: estimate_losses(*given))
