"""Make the models of a search over architectures."""

from dataclasses import replace
from functools import lru_cache

from moesim.model.architecture import Architecture
from moesim.model.derive import dense_part_of, layer_of
from moesim.model.hf_config import Model


@lru_cache(maxsize=4096)
def changed(model: Model, architecture: Architecture) -> Model:
    """Return a model with changes. Granularity stays relative to the model's own dense width.

    Raises:
        ConfigError: The changes contradict the model or each other.
    """
    if architecture == Architecture():
        return model
    spec = replace(model.spec, blocks=architecture.blocks(model.spec))
    layer, rounded = layer_of(spec, model.layer.precision)
    dense = model.dense_part
    return replace(
        model,
        spec=spec,
        layer=layer,
        dense_part=dense_part_of(spec, layer, dense.dense_intermediate_size, dense.weight_bytes),
        notes=tuple(dict.fromkeys((*model.notes, *rounded))),
    )
