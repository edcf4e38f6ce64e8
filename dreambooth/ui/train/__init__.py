"""The second tab: a training's settings, and the visitor's runs."""
