"""The toybox's vocabulary: the world's words and rare ones are single tokens."""

import json

import numpy as np

from dreambooth.toybox import world
from dreambooth.toybox.tokenizer import MAX_LENGTH, RARE_WORDS, build_tokenizer


def test_the_worlds_words_and_rare_ones_are_single_tokens(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    for word in (*world.vocabulary(), *RARE_WORDS):
        assert len(tokenizer.tokenize(word)) == 1, word
    rng = np.random.default_rng(0)
    captions = [world.caption(world.random_scene(rng), rng) for _ in range(300)]
    ids = tokenizer(captions).input_ids
    assert max(map(len, ids)) <= MAX_LENGTH
    rare = set(tokenizer.convert_tokens_to_ids([word + "</w>" for word in RARE_WORDS]))
    assert not rare & {i for row in ids for i in row}, "never trained"
    assert len(tokenizer.tokenize("🐶 Ünïcödé")) > 1, "any text is taken"


def test_learning_it_twice_numbers_words_alike(tmp_path):
    """Ties between merges were broken by chance once, so that "cat" and "car" changed places."""
    learned = [build_tokenizer(tmp_path / str(k)).get_vocab() for k in range(4)]
    assert all(other == learned[0] for other in learned)


def test_a_folder_keeps_the_tokenizer_that_it_has(tmp_path):
    build_tokenizer(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    vocabulary["cat</w>"], vocabulary["car</w>"] = vocabulary["car</w>"], vocabulary["cat</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer.json").unlink()
    assert build_tokenizer(tmp_path).get_vocab() == vocabulary
