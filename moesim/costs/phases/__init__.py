"""Price a layer's phases (gate, experts, moving tokens) and count its memory."""
