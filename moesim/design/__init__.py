"""A design is a candidate with its schedule, together with the workload it serves."""
