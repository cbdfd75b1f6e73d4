"""Measurements as one table, metrics.csv: evaluation writes it, and all that is shown is made of it."""
