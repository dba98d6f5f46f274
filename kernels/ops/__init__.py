"""Compute one layer: the kernels, each with its torch reference, and the layer made of them."""
