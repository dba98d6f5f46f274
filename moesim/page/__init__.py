"""The report of a study: one page without a network, and the same figures as SVG and PDF."""
