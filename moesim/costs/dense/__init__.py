"""Price the dense parts of a model: GEMMs, attention, and what only moves bytes."""
