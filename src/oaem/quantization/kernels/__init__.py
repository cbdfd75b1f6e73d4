"""Fast paths of the formulas, by device; each is held to its formula by tests."""
