"""A study as people run it: watched, joined, continued, exported."""
