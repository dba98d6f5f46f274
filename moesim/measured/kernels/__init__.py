"""Read, predict, calibrate and score measured kernels of the expert phase."""
