"""What keeps a studio safe: who may ask, for how much, whose turn it is, and room on the disk."""
