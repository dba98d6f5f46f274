"""Prices of a layer's phases: gate, experts, moving tokens; and its memory."""
