"""The fifth tab: a run becomes a model repo."""
