"""Measured loads: how often every expert of OLMoE and of Mixtral was chosen, by domain and layer.

The counts come from allenai/OLMoE (Apache-2.0, ``routing_output``): 208,896 tokens of each of five
domains, for OLMoE-1B-7B (64 experts, top 8) in layers 0, 7 and 15, and Mixtral-8x7B (8 experts,
top 2) in layers 0, 15 and 31. The maximum over the mean of these counts is 2.5-7.8 for OLMoE in one
domain, 2.1-2.8 over all five, and 1.08-1.33 for Mixtral.

Shape legend: E experts, N domains.
"""

import json
from functools import cache
from importlib.resources import files

import numpy as np

from moesim.errors import ConfigError

#: routing name -> (model, domains); an empty tuple stands for all domains merged into one
PRESETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "olmoe-c4": ("olmoe", ("c4",)),
    "olmoe-github": ("olmoe", ("github",)),
    "olmoe-arxiv": ("olmoe", ("arxiv",)),
    "olmoe-book": ("olmoe", ("book",)),
    "olmoe-wikipedia": ("olmoe", ("wikipedia",)),
    "olmoe-mix": ("olmoe", ()),
    "olmoe-domains": ("olmoe", ("c4", "github", "arxiv", "book", "wikipedia")),
    "mixtral": ("mixtral", ("c4",)),
    "mixtral-mix": ("mixtral", ()),
    "mixtral-domains": ("mixtral", ("c4", "github", "arxiv", "book", "wikipedia")),
}
#: layer that represents the model if none is named: the middle one
DEFAULT_LAYER = {"olmoe": 7, "mixtral": 15}


@cache
def _models() -> dict:
    return json.loads(
        (files("moesim.routing") / "data" / "expert_counts.json").read_text(encoding="utf-8")
    )["models"]


def layers(preset: str) -> tuple[int, ...]:
    """Return the layers of a preset's model that were counted."""
    counts = _models()[PRESETS[preset][0]]["counts"]
    return tuple(sorted(int(layer) for layer in next(iter(counts.values()))))


def counts_NE(preset: str, layer: int | None = None) -> np.ndarray:
    """Return the number of choices of each expert in each domain of a preset.

    Args:
        preset: A name in `PRESETS`.
        layer: Layer of the model; by default the middle one.

    Returns:
        ndarray of shape (N, E), int64; N = 1 except for presets that keep domains apart.

    Raises:
        ConfigError: The layer was not counted.
    """
    model, domains = PRESETS[preset]
    layer = DEFAULT_LAYER[model] if layer is None else layer
    if layer not in layers(preset):
        raise ConfigError(
            f"routing: {preset}: expected layer {', '.join(map(str, layers(preset)))}, got {layer}"
        )
    counts = _models()[model]["counts"]
    found = np.array([counts[name][str(layer)] for name in domains or counts], dtype=np.int64)
    return found if domains else found.sum(axis=0, keepdims=True)


def stretched(counts: np.ndarray, num_experts: int, rng: np.random.Generator) -> np.ndarray:
    """Stretch a measured profile to another number of experts by its quantiles, in random order
    (assumed).

    Args:
        counts: ndarray of shape (M,): counts of the M measured experts.
        num_experts: Number of experts E; for E = M the counts are returned unchanged and in order.
        rng: Source of the random order.

    Returns:
        ndarray of shape (E,): weights of the experts.
    """
    if num_experts == len(counts):
        return counts.astype(np.float64)
    at = (np.arange(num_experts) + 0.5) / num_experts * len(counts) - 0.5
    return rng.permutation(np.interp(at, np.arange(len(counts)), np.sort(counts)))
