"""Price kernels by kind of device: GPUs, systolic arrays, CPUs."""
