"""The toybox's own small BPE vocabulary, in the file layout of `CLIPTokenizer`."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from dreambooth.toybox import world

MAX_LENGTH = 24  # tokens, with begin and end; the longest caption has 24
RARE_WORDS = ("sks", "ohwx", "zwx", "pkblz", "olis", "hta", "xjy", "qvz", "wjd", "btk", "vzk", "mrw")
"""Words that no caption ever holds, each one token: the identifiers people try first, and some more."""

OTHER_WORDS = """
a an the one in on at of with and or to from by its it is are this that my your top front behind next under over photo
picture painting drawing image style art oil portrait toy plush stuffed animal shoe boot cup bag car can bowl
sunglasses candle cartoon monster rc house tree mountain city street kitchen garden forest road sky sea sun moon night
day wearing hat santa rainbow scarf police chef outfit witch firefighter big small wet shiny cube shaped background
flowers autumn leaves table pillow rug aerial view eiffel tower bucket running sleeping swimming
""".split()
"""Ordinary English of users' prompts (the paper's prompt lists among them), so that most words are one token."""


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in `folder`; where there is none, learn the merges from the world's vocabulary and save it there.

    What was trained with one must keep it. Rare words are seen least often, so their merges come last: their rank says
    how rare they are, as in CLIP's own.
    """
    if (folder / "vocab.json").is_file():
        kept: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
        return kept
    counts = {word: 40 for word in OTHER_WORDS} | {word: 400 for word in world.vocabulary()}
    counts |= {word: 3 for word in RARE_WORDS}
    stock = CLIPTokenizer().backend_tokenizer  # CLIP's own normaliser and splitter
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = stock.normalizer, stock.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=2,
        end_of_word_suffix="</w>",
        initial_alphabet=LETTERS,
        # Letters that end a word are numbered beforehand: the trainer would as it meets them, in another order each
        # time, and by these numbers it breaks ties, so that "cat" and "car" changed places.
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in LETTERS)],
        show_progress=False,
    )
    bpe.train_from_iterator((word for word, n in counts.items() for _ in range(n)), trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocab = dict(sorted(learned["vocab"].items(), key=lambda item: item[1]))
    for letter in LETTERS:  # CLIP's layout: each byte inside and ending a word
        vocab.setdefault(letter, len(vocab))
        vocab.setdefault(letter + "</w>", len(vocab))
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = CLIPTokenizer(vocab, merges, model_max_length=MAX_LENGTH)  # type: ignore[arg-type]  # it takes pairs, too
    tokenizer.save_pretrained(folder)
    # transformers 5 saves tokenizer.json alone; the two classic files serve every older version.
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return tokenizer
