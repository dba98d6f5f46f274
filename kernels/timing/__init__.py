"""Time kernels on the GPU of this machine, and find tiles by timing."""
