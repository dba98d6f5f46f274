"""Simulate steps of a whole model: prefill, decode, and both at once."""
