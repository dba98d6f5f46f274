"""Compile every kernel for GPUs that are not in this machine."""
