"""Load models by name, or from published configurations: a ``config.json`` of Hugging Face's
classes or a ``params.json`` of Mistral.

`load` finds a model by name or path, `files` the configuration of the language model in a file or
folder. `reader` makes it a `moesim.model.spec.ModelSpec`: `families` holds what each configuration
class implies; `layout` finds the order of layers (`mixer_order`, `block_order`); `attention`,
`linear` and `blocks` read one layer; `formats` finds the format of the experts (`quantization`,
`modules`, `schemes`); `ignored` judges the keys that nothing has read.
"""

from moesim.model.hf_config.load import Model, is_file, load_model, read_config

__all__ = ["Model", "is_file", "load_model", "read_config"]
