"""Models as files: fetched, saved as adapters, merged, and exported for other programs."""
