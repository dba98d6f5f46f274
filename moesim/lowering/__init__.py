"""Lower a candidate, a cluster and a routing to a `Program`; no other package does.

Import from its modules directly: they load numba, which `import moesim` does not.
"""
