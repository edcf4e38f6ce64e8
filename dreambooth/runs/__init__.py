"""Runs: their directories, and what drives them."""
