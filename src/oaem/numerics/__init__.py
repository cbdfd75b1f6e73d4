"""What formulas of every room compute with: float32 products, and work in chunks."""
