"""Causal language models: where they come from, how they are read block by block, what their blocks are called with."""
