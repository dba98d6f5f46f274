"""Designs of a training run: how a model is spread, what a step computes, what is kept."""
