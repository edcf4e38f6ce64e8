"""One training: its loop, and what the loop is fed with, watched by and resumed from."""
