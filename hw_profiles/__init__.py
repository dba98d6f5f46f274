"""Data: device and cluster profiles, calibration files, tile tables. One TOML per device and per
cluster.
"""
