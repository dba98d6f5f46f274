"""Compare simulation with measurements, and say where each measurement comes from and what it
times.
"""
