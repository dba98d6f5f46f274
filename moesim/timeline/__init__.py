"""Turn simulated programs, request loops, pipelines and days into timelines."""
