"""The tables of the paper: laid out before any number is known, then filled from metrics.csv."""
