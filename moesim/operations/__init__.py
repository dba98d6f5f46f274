"""Simulate what happens over hours and days around the steps."""
