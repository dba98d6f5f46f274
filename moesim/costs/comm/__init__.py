"""Price communication kernels: what one exchange demands of ports and SMs, and its latency."""
