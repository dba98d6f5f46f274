"""Readers of published model configurations: a ``config.json`` of Hugging Face's classes or a
``params.json`` of Mistral becomes a `moesim.model.spec.ModelSpec`.

`files` finds the configuration of the language model in a file or folder, `families` holds what
each configuration class implies, `layout` the order of layers, `mixers` and `feedforward` read one
layer, `formats` the format of the experts, `ignored` the keys that do not matter, and `reader` puts
these together.
"""
