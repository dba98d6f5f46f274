"""Layers over several processes or GPUs of this host."""
