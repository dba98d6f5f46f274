"""Price the parts of a step that are no experts."""
