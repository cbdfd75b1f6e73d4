"""A model quantised block after block on calibration text: observed, put together, kept as artefacts, resumed."""
