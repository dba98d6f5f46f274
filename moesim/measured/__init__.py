"""Measurements: where they come from, what exactly each one times, and how simulation compares with
them.
"""
