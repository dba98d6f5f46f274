"""Communication kernels: what one exchange of tokens demands of ports and SMs, and what it waits.
"""
