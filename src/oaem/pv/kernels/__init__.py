"""Fast paths of PV-tuning, by device; each is held to its formula by tests."""
