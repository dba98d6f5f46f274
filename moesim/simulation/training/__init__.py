"""Simulate a training step of a whole model."""
