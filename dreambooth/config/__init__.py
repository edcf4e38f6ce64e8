"""Every setting of a run: what it may be, how files name it, and the recipes that come with the program."""
