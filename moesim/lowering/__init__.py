"""The only bridge from MoE to programs: candidate x cluster x routing -> `Program`.

Import from its modules: they load numba, which `import moesim` does not.
"""
