"""Measured GEMMs and attention of whole models: read them, fit prices to them, score the prices."""
