"""The gallery of published models."""
