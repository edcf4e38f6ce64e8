"""What pictures are measured by: the formulas, and the encoders that look at them."""
