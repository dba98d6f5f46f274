"""Measured kernels of the expert phase: rows, predictions, calibration, scores."""
