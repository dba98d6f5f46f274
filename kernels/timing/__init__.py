"""Times of kernels on the GPU that is here, and tiles found by timing."""
