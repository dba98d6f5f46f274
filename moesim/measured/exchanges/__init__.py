"""Read, predict, calibrate and score measured exchanges."""
