"""Price the parts of a step that are no experts: mixers, dense feed-forwards, what surrounds them."""
