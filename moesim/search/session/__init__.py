"""Run studies for people: watch, join, continue and export them."""
