"""Load models by name or from a configuration file: the whole architecture, and the MoE layer and
dense part that designs are made of.

A file is a ``config.json`` of Hugging Face's classes or a ``params.json`` of Mistral; see
`moesim.model.hf_config`. A selection bias (``topk_method: noaux_tc``) belongs to training and is
ignored, as it is in presets. Nothing is downloaded.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from moesim.errors import ConfigError, UnknownNameError
from moesim.model.dense import DensePart
from moesim.model.derive import dense_part_of, dense_width_of, layer_of, memory_notes
from moesim.model.hf_config.files import find_config
from moesim.model.hf_config.reader import read
from moesim.model.layer import MoELayer
from moesim.model.precision import Precision
from moesim.model.presets import load_preset, preset_names
from moesim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model whose experts are to be placed.

    Attributes:
        name: Name of the preset, or of the folder or file that the model was read from.
        spec: The whole architecture.
        layer: One MoE layer of the model, the most frequent kind.
        dense_part: The rest of the model.
        source: The source of the sizes.
        published_as: Recipe of the format in which the weights are published; see
            `moesim.model.precision.RECIPES`.
        notes: The assumptions that were made, in words.
    """

    name: str
    spec: ModelSpec
    layer: MoELayer
    dense_part: DensePart
    source: str
    published_as: str = "bf16"
    notes: tuple[str, ...] = ()

    def with_precision(self, precision: Precision) -> "Model":
        """Return the same model in another format."""
        return replace(self, layer=replace(self.layer, precision=precision))


def is_file(name: str) -> bool:
    """Return whether the name of a model means a file or folder instead of a preset."""
    return name.endswith(".json") or os.path.isdir(name)


def load_model(name: str, lenient: bool = False) -> Model:
    """Load a preset, or a configuration file or the folder that holds one, in its published format.

    Args:
        name: Name of a preset, or path of a file or folder.
        lenient: Whether keys that contradict or are not understood become notes.

    Raises:
        UnknownNameError: The name is neither of these.
        ConfigError: The file does not exist or lacks a value that a simulation needs. The text
            names the file, the key, the expected value and the value found.
    """
    if is_file(name):
        return read_config(find_config(Path(name)), lenient)
    if name not in preset_names():
        try:
            load_preset(name)
        except UnknownNameError as error:
            raise ConfigError(f"{error} (or give the path of a config.json)") from None
    preset = load_preset(name)
    return Model(
        name=name,
        spec=preset.spec,
        layer=replace(preset.layer, precision=Precision.named(preset.published_as)),
        dense_part=preset.dense_part,
        source=preset.source,
        published_as=preset.published_as,
    )


def read_config(path: Path, lenient: bool = False) -> Model:
    """Read a model from its ``config.json`` or ``params.json``.

    Args:
        path: The file.
        lenient: Whether keys that contradict or are not understood become notes.

    Raises:
        ConfigError: The file does not exist, is not JSON or is not a Mixture-of-Experts model, or a
            key is missing, malformed, contradicts another or is not understood.
    """
    found = read(path, lenient)
    spec = found.spec
    try:
        layer, rounded = layer_of(spec, Precision.named(found.formats.experts))
        width, assumed = dense_width_of(spec, found.dense_width)
        dense = dense_part_of(spec, layer, width, found.formats.dense_bytes)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    file = path.resolve()
    generic = file.name in ("config.json", "params.json")
    return Model(
        name=file.parent.name if generic else file.stem,
        spec=spec,
        layer=layer,
        dense_part=dense,
        source=str(path),
        published_as=found.formats.experts,
        notes=(*found.notes, *rounded, *assumed, *memory_notes(spec)),
    )


__all__ = ["Model", "is_file", "load_model", "read_config"]
