"""Designs: a candidate, the workload it serves and the schedule it runs by."""
