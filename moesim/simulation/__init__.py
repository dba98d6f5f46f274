"""One forward pass of one MoE layer: prepare a design once, lower it, run it, say how far to trust
it.
"""
