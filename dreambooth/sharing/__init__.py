"""Runs as model repos on the Hub: published, with a card, and found again."""
