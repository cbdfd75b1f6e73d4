"""The folder that transformers loads with the aqlm library, and its model card."""
