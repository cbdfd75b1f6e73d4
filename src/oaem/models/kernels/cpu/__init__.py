"""For the CPU."""
