"""New words of a pipeline's vocabulary: embeddings of their own beside the known ones, which stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dreambooth.config.sections import LEARNS_WORD, MOST_SUBJECTS, MOST_VECTORS
from dreambooth.config.settings import Config
from dreambooth.config.subject import is_new_word
from dreambooth.errors import ConfigError, ModelError, first_line
from dreambooth.families.family import Family
from dreambooth.families.folder import what_helps
from dreambooth.families.weights import why_unusable
from dreambooth.files import atomic_folder

PATTERN = "learned_embeds*.safetensors"
"""Names of the words' files: stock diffusers looks for the first one, and takes one word a file."""


class Words(nn.Module):
    """A text encoder's embedding layer with new words: ids from its vocabulary's size on are theirs."""

    def __init__(self, known: nn.Embedding, learned: Tensor):
        super().__init__()
        self.known, self.learned = known, nn.Parameter(learned)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, tokens) ids -> (B, tokens, width); gradients reach the new words alone."""
        size = self.known.num_embeddings
        learned = F.embedding((ids - size).clamp(min=0), self.learned)
        return torch.where((ids >= size)[..., None], learned, self.known(ids.clamp(max=size - 1)))


def add_words(pipe: DiffusionPipeline, family: Family, config: Config) -> Words:
    """Give the frozen pipeline each subject's identifier as a new word of `word.vectors` embeddings, ready to train.

    Each starts from the mean embedding of its `word.initializer`. Raises `ConfigError` for a word that it knows already
    and for families with several text encoders.
    """
    encoder, tokenizer = _text_side(pipe, family, config.method)
    known, rows = encoder.get_input_embeddings(), []
    for subject, initializer in zip(config.subjects, config.initializers, strict=True):
        add_tokens(tokenizer, [(subject.identifier, config.word.vectors)])
        ids = tokenizer(initializer, add_special_tokens=False).input_ids
        rows += [known.weight.detach()[ids].mean(0)] * config.word.vectors
        if not _fits(pipe, family, tokenizer, subject.identifier, config.word.vectors):
            raise ConfigError(
                f"Prompts can't hold {subject.identifier} with {config.word.vectors} embeddings.", "Lower word.vectors."
            )
    encoder.set_input_embeddings(words := Words(known, torch.stack(rows)))
    return words


def add_tokens(tokenizer: CLIPTokenizer, words: Iterable[tuple[str, int]]) -> None:
    """Give the tokenizer new words of so many tokens each, as diffusers names them: <sks>, <sks>_1, <sks>_2."""
    for word, vectors in words:
        names = [word, *(f"{word}_{i}" for i in range(1, vectors))]
        if tokenizer.add_tokens(names) < vectors:
            raise ConfigError(f"The word {word} is in the model's vocabulary.", "Choose another, in angle brackets.")


def save_words(words: Words, config: Config, folder: Path) -> None:
    """Write each word's embeddings, (vectors, width), under its name, for stock `load_textual_inversion`."""
    rows = words.learned.detach().cpu().split(config.word.vectors)
    write_words({subject.identifier: own for subject, own in zip(config.subjects, rows, strict=True)}, folder)


def write_words(words: Mapping[str, Tensor], folder: Path) -> None:
    """Write words, (vectors, width) each, into the folder, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (word, rows) in enumerate(words.items(), 1):
        save_file({word: rows.contiguous()}, folder / file_name(number))


def file_name(number: int) -> str:
    """The file of the first word, the second, …"""
    return "learned_embeds.safetensors" if number == 1 else f"learned_embeds-{number}.safetensors"


def read_words(folder: Path) -> dict[str, Tensor]:
    """The words in a folder that `save_words` wrote: (vectors, width) each. Raises `ModelError` where damaged."""
    words: dict[str, Tensor] = {}
    for path in sorted(folder.glob(PATTERN), key=lambda path: (len(path.name), path.name)):
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path.name} can't be read ({first_line(error)}).", what_helps(path, error)) from None
        word, rows = next(iter(state.items()), ("", torch.empty(0)))
        new = is_new_word(word) and word not in words  # a known word's embedding would change every prompt
        if not new or len(state) > 1 or rows.ndim != 2 or len(rows) > MOST_VECTORS or len(words) == MOST_SUBJECTS:
            raise ModelError(
                f"{path.name} holds no new word's embeddings.", "Give a run that learned one, or its model folder."
            )
        if why := why_unusable(rows):
            raise ModelError(f"{path.name} {why}.", "Train it again.")
        words[word] = rows
    return words


def load_words(pipe: DiffusionPipeline, family: Family, folder: Path) -> None:
    """Put the words in `folder` into the pipeline's vocabulary; raises `ModelError` where they do not fit."""
    encoder, tokenizer = _text_side(pipe, family, "A learned word")
    for word, rows in read_words(folder).items():
        known = encoder.get_input_embeddings().weight.detach()
        if rows.shape[1] != known.shape[1]:
            raise ModelError(
                f"The word {word} has embeddings of {rows.shape[1]} numbers; this base model's have {known.shape[1]}.",
                "Use the base model that it was learned with.",
            )
        if word in tokenizer.get_vocab():
            raise ModelError(f"The word {word} is in the model's vocabulary already.", "Use one of the two.")
        add_tokens(tokenizer, [(word, len(rows))])
        encoder.set_input_embeddings(nn.Embedding.from_pretrained(torch.cat([known, rows.to(known)])))
        encoder.config.vocab_size = len(tokenizer)
        if not _fits(pipe, family, tokenizer, word, len(rows)):
            raise ModelError(
                f"Prompts can't hold the word {word} with its {len(rows)} embeddings.", "Use another word of fewer."
            )


def _fits(pipe: DiffusionPipeline, family: Family, tokenizer: CLIPTokenizer, word: str, vectors: int) -> bool:
    """Whether a prompt with the newest word of the vocabulary gives all of its embeddings' ids."""
    first = len(tokenizer) - vectors
    ids = family.tokenize(pipe, [word])[0]
    return ids[ids >= first].tolist() == [*range(first, len(tokenizer))]


def learned_word(config: Config) -> Path:
    """The folder that holds the word of `word.learned`: a run's model, or what it saved."""
    run = config.word.learned
    assert run is not None, "asked only where a word was learned"
    return run / "model" if (run / "model").is_dir() else run


def keep_learned_word(config: Config, run: Path) -> Config:
    """Copy the word of `word.learned` into the run's `word/`, where it stays; the returned settings name the copy."""
    kept = run / "word"
    if config.word.learned is None:
        return config
    if not kept.is_dir():
        words = check_learned_word(config)
        with atomic_folder(kept) as folder:
            write_words(words, folder)
    return config.model_copy(update={"word": config.word.model_copy(update={"learned": kept})})


def check_learned_word(config: Config) -> dict[str, Tensor]:
    """What `word.learned` holds, (vectors, width) by word. Raises `ConfigError` where it lacks a subject's word."""
    if not (words := read_words(learned_word(config))):
        raise ConfigError(
            f"word.learned: {config.word.learned} holds no learned word.", "Give a finished textual_inversion run."
        )
    if lacking := [subject.identifier for subject in config.subjects if subject.identifier not in words]:
        raise ConfigError(
            f"word.learned: {config.word.learned} has learned {', '.join(words)}, not {lacking[0]}.",
            "Set subject.identifier to that word.",
        )
    return words


def new_words(config: Config) -> dict[str, int]:
    """The words that a run adds to the base model's vocabulary, with the number of embeddings that each has. Raises
    what `check_learned_word` raises."""
    if config.word.learned:
        return {word: len(rows) for word, rows in check_learned_word(config).items()}
    learns = config.method in LEARNS_WORD
    return {subject.identifier: config.word.vectors for subject in config.subjects} if learns else {}


def _text_side(pipe: DiffusionPipeline, family: Family, what: str) -> tuple[Any, Any]:
    """The only text encoder and its tokenizer."""
    if len(family.text_encoders) != 1:
        raise ConfigError(f"{what} needs a base model with one text encoder.", f"Not one of {family.name}.")
    encoder, tokenizer = getattr(pipe, family.text_encoders[0]), getattr(pipe, family.tokenizers[0])
    if encoder.get_input_embeddings().weight.shape[0] != len(tokenizer):
        raise ModelError("The text encoder and the tokenizer do not have as many words.", "Download the model again.")
    return encoder, tokenizer
