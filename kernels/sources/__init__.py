"""Offer what moesim finds through its entry points: measurement sources and kernel tools."""
