"""Lower a training step: layers forward and backward, and the pipeline over their times."""
