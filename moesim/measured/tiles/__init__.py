"""Timed tiles of this project's grouped GEMMs: read them, fit the tile model to them, score it."""
