"""Identifier advice on small vocabularies: a learned one of generated words, and the tiny pipeline's."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth.errors import ConfigError, ModelError
from dreambooth.families import tokens
from dreambooth.families.load import load_pipeline
from dreambooth.families.words import add_words
from dreambooth.toybox.tokenizer import RARE_WORDS, build_tokenizer
from tests import tiny


def learned_tokenizer(n_words: int = 3000) -> CLIPTokenizer:
    """CLIP's layout (bytes, bytes ending a word, merges, marks) with merges learned from words of falling frequency."""
    rng = random.Random(0)
    words = {
        "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4))): None
        for _ in range(n_words)
    }
    counts = {word: 3 + 4000 // (i + 1) for i, word in enumerate(words)} | {"xqj": 2, "wwx": 2, "💟": 3}
    stock = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = stock.normalizer, stock.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        (word for word, n in counts.items() for _ in range(n)),
        trainers.BpeTrainer(
            vocab_size=6000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False, min_frequency=2
        ),
    )
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    vocab: dict[str, int] = {}
    for token in [
        *alphabet,
        *(a + "</w>" for a in alphabet),
        *map("".join, merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]:
        vocab.setdefault(token, len(vocab))
    return CLIPTokenizer(vocab, merges, model_max_length=24)


def encoder_for(tokenizer: CLIPTokenizer, width: int = 48) -> CLIPTextModel:
    torch.manual_seed(1)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def merges_of(tokenizer: CLIPTokenizer) -> list[str]:
    return ["".join(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def whole_words(tokenizer: CLIPTokenizer) -> list[str]:
    """Words that a merge made, the most common first."""
    return [merge.removesuffix("</w>") for merge in dict.fromkeys(merges_of(tokenizer)) if merge.endswith("</w>")]


def plant(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, word: str, near: str) -> None:
    """Give `word` nearly the embedding of `near`."""
    vocab, table = tokenizer.get_vocab(), encoder.get_input_embeddings().weight.data
    table[vocab[word + "</w>"]] = table[vocab[near + "</w>"]] + 0.3 * table[vocab[word + "</w>"]]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return learned_tokenizer()


@pytest.fixture
def encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return encoder_for(tokenizer)


@pytest.fixture(scope="module")
def tiny_side() -> tuple[CLIPTokenizer, CLIPTextModel]:
    return tiny.tokenizer(), encoder_for(tiny.tokenizer(), width=16)


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """A pipeline folder of which only the text side is there."""
    folder = tiny.stable_diffusion(tmp_path / "model")
    for part in ("unet", "vae", "scheduler"):
        shutil.rmtree(folder / part)
    (folder / "model_index.json").unlink()
    return folder


def test_a_rare_word_of_one_token_is_good(tokenizer, encoder):
    rare = next(word for word in reversed(whole_words(tokenizer)) if word.isascii())
    advice = tokens.advise(rare, tokenizer, encoder)
    assert (advice.word, advice.pieces) == (rare, (rare,))
    assert advice.token_ids == (tokenizer.get_vocab()[rare + "</w>"],)
    assert advice.vocabulary_size == len(tokenizer) > 3000
    assert advice.verdict == "good", advice.reasons
    assert "It is one token." in advice.reasons


def test_rank_is_the_place_of_the_last_merge(tokenizer, encoder):
    merges = merges_of(tokenizer)
    for word in whole_words(tokenizer)[::400]:
        advice = tokens.advise(word, tokenizer, encoder)
        assert advice.rank == merges.index(word + "</w>") + 1
        assert advice.rarity == advice.rank / len(merges)


def test_verdict_follows_rarity(tokenizer, encoder):
    words = whole_words(tokenizer)
    verdicts = [tokens.advise(word, tokenizer, encoder).verdict for word in (words[5], words[len(words) * 7 // 10])]
    assert verdicts == ["poor", "fair"]
    assert tokens.advise("z", tokenizer, encoder).verdict == "poor"


@pytest.mark.parametrize(("word", "verdict"), [("qxq", "fair"), ("qxqxqxqx", "poor")])
def test_several_tokens_are_listed_and_judged_by_their_number(tokenizer, encoder, word, verdict):
    advice = tokens.advise(word, tokenizer, encoder)
    assert "".join(advice.pieces) == word
    assert (len(advice.pieces) <= 3) == (verdict == "fair")
    assert advice.verdict == verdict
    assert ", ".join(advice.pieces) in advice.reasons[0]


def test_a_common_piece_is_named(tiny_side):
    advice = tokens.advise("photox", *tiny_side)
    assert advice.pieces[-1] == "x"
    assert advice.rank == 0  # of the letter x, the most common piece
    tokenizer = learned_tokenizer(300)
    merges = [m for m in merges_of(tokenizer) if not m.endswith("</w>") and len(m) >= 4]
    advice = tokens.advise(merges[0] + "xq", tokenizer, encoder_for(tokenizer))
    assert advice.verdict == "poor"
    assert any(f"piece {merges[0]!r} is common" in reason for reason in advice.reasons)


@pytest.mark.parametrize("word", ["xqj", "xqjwwx"])
def test_neighbours_agree_with_numpy(tokenizer, encoder, word):
    table = encoder.get_input_embeddings().weight.detach().numpy().astype(np.float64)
    vocab, ids = tokenizer.get_vocab(), tokenizer(word, add_special_tokens=False).input_ids
    mean = table[ids].mean(axis=0)
    expected = {
        other: table[vocab[other + "</w>"]] @ mean / np.linalg.norm(table[vocab[other + "</w>"]]) / np.linalg.norm(mean)
        for other in whole_words(tokenizer)
        if vocab[other + "</w>"] not in ids and other.isascii()
    }
    nearest = sorted(expected, key=expected.__getitem__, reverse=True)[:5]
    found = tokens.advise(word, tokenizer, encoder).neighbours
    assert [name for name, _ in found] == nearest
    np.testing.assert_allclose([cosine for _, cosine in found], [expected[name] for name in nearest], atol=1e-5)


def test_a_rare_word_close_to_a_common_one_is_only_fair(tokenizer, encoder):
    common = whole_words(tokenizer)[10]
    plant(encoder, tokenizer, "xqj", near=common)
    advice = tokens.advise("xqj", tokenizer, encoder)
    assert advice.verdict == "fair"
    assert advice.neighbours[0][0] == common
    assert any(f"close to the common word {common!r}" in reason for reason in advice.reasons)


def test_words_without_meaning_are_seldom_called_close(tokenizer, encoder):
    found = tokens.suggest(tokenizer, encoder, n=200)
    assert len(found) > 100
    assert sum(advice.verdict != "good" for advice in found) <= 5  # 1 in 100 is expected


def test_a_handful_of_words_is_not_called_near_or_far(tiny_side):
    advice = tokens.advise("sks", *tiny_side)
    assert advice.pieces == ("sks",)
    assert not any("chance" in reason for reason in advice.reasons)


def test_suggestions_are_rare_single_tokens_away_from_common_words(tokenizer, encoder):
    words, vocab = whole_words(tokenizer), tokenizer.get_vocab()
    plant(encoder, tokenizer, "xqj", near=words[10])
    found = tokens.suggest(tokenizer, encoder, n=8)
    assert len({advice.word for advice in found}) == 8
    for advice in found:
        assert advice.token_ids == (vocab[advice.word + "</w>"],)
        assert advice.verdict == "good"
        assert advice.rarity >= 0.9
        assert 3 <= len(advice.word) <= 5
        assert advice.word.isascii()
        assert advice.word.islower()
    assert [a.rank for a in found] == sorted((a.rank for a in found), reverse=True)
    everything = tokens.suggest(tokenizer, encoder, n=1000)
    assert everything[-1].word == "xqj"
    assert everything[-1].verdict == "fair"
    assert not {advice.word for advice in everything} & set(words[: len(words) // 2])


def test_toybox_suggestions_are_its_rare_words(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    assert {advice.word for advice in tokens.suggest(tokenizer, encoder_for(tokenizer), n=6)} <= set(RARE_WORDS)


def test_known_meanings_count_for_clip_alone(tokenizer, encoder, monkeypatch):
    monkeypatch.setitem(tokens.KNOWN_MEANINGS, "xqj", tokens.KNOWN_MEANINGS["sks"])
    assert tokens.advise("xqj", tokenizer, encoder).verdict == "good"
    assert "xqj" in {advice.word for advice in tokens.suggest(tokenizer, encoder, n=300)}
    monkeypatch.setattr(tokens, "CLIP_MERGES", len(merges_of(tokenizer)))
    advice = tokens.advise("xqj", tokenizer, encoder)
    assert advice.verdict == "fair"
    assert "rifle" in advice.reasons[-1]
    assert "xqj" not in {advice.word for advice in tokens.suggest(tokenizer, encoder, n=300)}


def test_emoji_are_shown_as_typed_and_their_bytes_explained(tokenizer, encoder):
    assert tokens.advise("💟", tokenizer, encoder).pieces == ("💟",)
    advice = tokens.advise("ðŁĴŁ", tokenizer, encoder)
    assert advice.verdict == "poor"
    assert "type '💟' itself" in advice.reasons[-1]
    assert tokens.advise("🦄", tokenizer, encoder).verdict in ("fair", "poor")


def test_capitals_are_said_to_be_lost(tokenizer, encoder):
    advice = tokens.advise("XQJ", tokenizer, encoder)
    assert advice.pieces == ("xqj",)
    assert "reads it as 'xqj'" in advice.reasons[-1]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("two words", "spaces"),
        ("a\nb", "spaces"),
        ("{identifier}", "braces"),
        ("bell\x07", "control"),
        ("zero\u200bwidth", "control"),
        ("q" * 200, "200 tokens; the model reads 22"),
        ("<|endoftext|>", "own mark"),
    ],
)
def test_bad_words_are_refused_in_one_line(tokenizer, encoder, word, says):
    with pytest.raises(ConfigError, match=says) as error:
        tokens.advise(word, tokenizer, encoder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_character_the_tokenizer_lacks_is_refused(tiny_side):
    with pytest.raises(ConfigError, match="unknown to it"):
        tokens.advise("日", *tiny_side)


def test_no_suggestions_is_refused(tiny_side):
    with pytest.raises(ConfigError, match="0 suggestions"):
        tokens.suggest(*tiny_side, n=0)


@settings(max_examples=40, deadline=None)
@given(word=st.text(max_size=12))
def test_any_text_is_judged_or_refused(tiny_side, word):
    try:
        advice = tokens.advise(word, *tiny_side)
    except ConfigError:
        return
    assert advice.verdict in ("good", "fair", "poor")
    assert len(advice.pieces) == len(advice.token_ids) > 0


def test_loading_needs_only_the_text_side(text_folder):
    assert {path.name for path in text_folder.iterdir()} == {"tokenizer", "text_encoder"}
    advice = tokens.advise("ohwx", *tokens.load_text_side(text_folder))
    assert advice.pieces == ("ohwx",)


def test_the_classic_layout_gives_the_same_ranks(text_folder):
    before = tokens.advise("ohwx", *tokens.load_text_side(text_folder))
    folder = text_folder / "tokenizer"
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    (folder / "tokenizer.json").unlink()
    assert tokens.advise("ohwx", *tokens.load_text_side(text_folder)) == before


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("tokenizer", None),
        ("text_encoder", None),
        ("tokenizer/tokenizer.json", None),
        ("tokenizer/tokenizer.json", b"{"),
        ("tokenizer/tokenizer.json", b"{}"),
        ("text_encoder/config.json", b"{"),
        ("text_encoder/model.safetensors", None),
        ("text_encoder/model.safetensors", b"cut"),
    ],
)
def test_a_damaged_folder_is_a_model_error_in_one_line(text_folder, path, content):
    target = text_folder / path
    if content is not None:
        target.write_bytes(content)
    elif target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    with pytest.raises(ModelError) as error:
        tokens.advise("ohwx", *tokens.load_text_side(text_folder))
    assert "\n" not in str(error.value)


def test_an_encoder_of_another_vocabulary_is_refused(tokenizer, tiny_side):
    with pytest.raises(ModelError, match="too few"):
        tokens.advise("xqj", tokenizer, tiny_side[1])


def test_preview_prompts_show_the_word_alone_and_with_its_class():
    assert tokens.preview_prompts("ohwx", "dog") == ["a photo of ohwx", "ohwx", "a photo of ohwx dog"]
    assert tokens.preview_prompts("ohwx", "") == ["a photo of ohwx", "ohwx"]


def test_advice_and_suggestions_are_quick(tokenizer, encoder):
    start = time.process_time()
    tokens.advise("xqj", tokenizer, encoder)
    tokens.suggest(tokenizer, encoder)
    assert time.process_time() - start < 2


# ---- How much of a prompt is read (the tiny tokenizer has room for 14 tokens)

LONG = "a photo of the cat in the snow in the snow in the snow of a sks dog"
"""17 tokens; the identifier is the 16th."""


@pytest.fixture
def reader(tiny_model) -> tokens.Reader:
    return tokens.Reader(tokens.load_tokenizer(tiny_model), ("sks", "ohwx"))


@settings(deadline=None)
@given(words=st.lists(st.sampled_from([*tiny.WORDS, "Cat", "beside", "été,", "犬", "DOG!", " \n"]), max_size=20))
def test_what_is_unread_is_what_the_pipeline_cuts_off(words):
    """Against diffusers' own way: tokenize with and without truncation."""
    tokenizer, prompt = tiny.tokenizer(), " ".join(words)
    whole = tokenizer(prompt, add_special_tokens=False).input_ids
    kept = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids[1:-1]
    unread = tokens.Reader(tokenizer).unread(prompt)
    assert bool(unread) == (len(whole) > len(kept))
    assert prompt.endswith(unread)
    assert unread.strip() or not unread, "blanks are nothing"
    read = prompt[: len(prompt) - len(unread)]
    if read[-1:].isspace() and unread[:1].isascii():  # a word or a letter that is cut in two is other tokens by itself
        assert tokenizer(read, add_special_tokens=False).input_ids == kept


@pytest.mark.parametrize("vectors", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 3, 7, 13, 14, 15])
def test_a_new_word_takes_as_many_tokens_as_it_has_embeddings(make_config, tiny_model, count, vectors):
    """Against the ids that the pipeline with the word makes."""
    config = make_config(
        method="textual_inversion",
        subject={"identifier": "<sks>"},
        train={"text_encoder": False},
        prior={"enabled": False},
        word={"vectors": vectors},
    )
    pipe, family = load_pipeline(tiny_model)
    add_words(pipe, family, config)
    prompt = " ".join(["<sks>", *["dog"] * count])
    dog = pipe.tokenizer("dog", add_special_tokens=False).input_ids[0]
    left = family.tokenize(pipe, [prompt])[0].tolist().count(dog)
    for reader in (tokens.Reader.of(config, tiny_model), tokens.Reader(pipe.tokenizer)):
        assert len(reader.unread(prompt).split()) == count - left


@pytest.mark.parametrize(
    ("prompt", "lost"),
    [
        ("a sks dog", []),
        (LONG, ["sks"]),
        (f"sks {LONG}", []),  # it is read once
        ("a photo of the cat in the snow in the snow in the desks", []),  # it is in none of it
        (LONG.replace("sks", "desks"), []),
        (f"{LONG} and ohwx", ["sks", "ohwx"]),
        (f"ohwx {LONG}", ["sks"]),
        ("dog " * 14 + "sks", ["sks"]),
        ("dog " * 13 + "sks", []),
        ("dog " * 13 + "ohwxx", []),
    ],
)
def test_names_that_would_not_be_read_are_known(reader, prompt, lost):
    assert reader.lost(prompt) == lost


def test_a_name_that_is_cut_in_two_is_lost(tiny_model):
    reader = tokens.Reader(tokens.load_tokenizer(tiny_model), ("abc",))  # three tokens
    assert reader.lost("dog " * 12 + "abc") == ["abc"]
    assert reader.lost("dog " * 11 + "abc") == []


def test_long_prompts_are_told_with_what_is_cut_off(reader):
    assert reader.remarks(["a sks dog", ""]) == []
    assert reader.remarks([LONG, LONG, "dog " * 15]) == [
        f"The prompt {LONG!r} is longer than the 14 tokens that the model reads: 'of a sks dog' is cut off, and with "
        "it sks. So are the ends of 1 other prompts."
    ]
    with pytest.raises(ConfigError, match=r"sks is cut off, so that it would not be read\. Name sks nearer"):
        reader.check([LONG])
    assert reader.check([f"sks {LONG}"]) == reader.remarks([f"sks {LONG}"])


REFUSED = {
    "instance prompt": {"subject": {"instance_prompt": LONG.replace("sks", "{identifier}")}},
    "sample prompt": {"sampling": {"prompts": ["a photo of a dog", LONG]}},
    "identifier": {"subject": {"identifier": "0123456789abcde"}},
    "second subject": {
        "more_subjects": [
            {"photos": ".", "class_noun": "cat", "identifier": "ohwx", "instance_prompt": LONG.replace("sks", "ohwx")}
        ]
    },
    "two side by side": {"more_subjects": [{"photos": ".", "class_noun": "cat", "identifier": "abcdefghi"}]},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_a_run_is_refused_where_a_subjects_name_would_not_be_read(make_config, tiny_model, changes):
    config = make_config(**changes | {"train": {"sample_every": 2}})
    with pytest.raises(ConfigError, match="is cut off, so that it would not be read"):
        tokens.Reader.of(config, tiny_model).check_run(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"prior": {"class_prompt": "a photo of a {class_noun} " + "in the snow " * 4}},
        {"sampling": {"prompts": ["a {identifier} dog " + "in the snow " * 4]}},
        {"subject": {"instance_prompt": "a {identifier} {class_noun} " + "in the snow " * 4}},
    ],
)
def test_what_a_run_cuts_off_else_is_said(make_config, tiny_model, changes):
    config = make_config(**changes | {"train": {"sample_every": 2}})
    [said] = tokens.Reader.of(config, tiny_model).check_run(config)
    assert said.endswith("snow' is cut off.")
    assert tokens.Reader.of(make_config(), tiny_model).check_run(make_config()) == []
