"""Device profiles, measured on this machine."""
