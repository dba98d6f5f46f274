"""Simulate one forward pass of one MoE layer: prepare a design once, lower it, run it, and say how
far to trust the result.
"""
