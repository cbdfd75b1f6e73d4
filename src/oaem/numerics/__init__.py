"""What formulas of every room compute with: the choice of a fast path, float32 products, and work in chunks."""
