"""Measured exchanges: rows, predictions, calibration, scores."""
