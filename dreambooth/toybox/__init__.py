"""The built-in world, its base model and its sample subjects: the whole method on a laptop, without a network."""
