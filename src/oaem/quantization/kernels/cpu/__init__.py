"""Compiled for the CPU by numba."""
