"""Measurements on a model, however it was made: perplexity and downstream tasks."""
