"""Compare whole models that were simulated with measured serving runs."""
