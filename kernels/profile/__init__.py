"""Measure device profiles on this machine."""
