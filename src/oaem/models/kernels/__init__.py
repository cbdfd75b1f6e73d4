"""Fast paths of running a model, by device; each is held to its formula by tests."""
