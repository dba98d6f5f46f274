"""Price the parts of a training step: passes, reduction of gradients, optimizer, memory."""
