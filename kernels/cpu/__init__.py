"""A whole layer on this CPU, timed by phase."""
