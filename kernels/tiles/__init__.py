"""Tiles: their sizes, the choice among them, what a multiprocessor holds. Needs no torch."""
