"""Text: where documents come from, which part of them serves what, and how windows of tokens are cut from them."""
