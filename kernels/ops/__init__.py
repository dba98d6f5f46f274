"""The kernels of one layer, each beside its torch reference, and the layer made of them."""
