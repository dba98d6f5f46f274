"""Load models by name, or from published configurations: a ``config.json`` of Hugging Face's
classes or a ``params.json`` of Mistral.

`load` finds a model by name or path, `files` the configuration of the language model in a file or
folder, `families` holds what each configuration class implies, `layout` the order of layers,
`attention`, `linear` and `blocks` read one layer, `formats` the format of the experts, `ignored`
the keys that do not matter, and `reader` puts these together to a `moesim.model.spec.ModelSpec`.
"""

from moesim.model.hf_config.load import Model, is_file, load_model, read_config

__all__ = ["Model", "is_file", "load_model", "read_config"]
