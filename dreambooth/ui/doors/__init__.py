"""What keeps a studio safe: who may ask, for how much, whose turn it is, and room on the disk."""


class RefusalError(Exception):
    """A request that gets an answer of the guard's own: a status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
