"""Textual Inversion (Gal et al. 2022, arXiv 2208.01618): a new word is learned, and the model stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusers import DiffusionPipeline

from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.families.family import Family
from dreambooth.families.words import PATTERN, add_words, load_words, save_words
from dreambooth.machine import one_model_at_a_time
from dreambooth.methods.method import Method, Trainable, freeze, text_learning_rate


@one_model_at_a_time
def attach(pipe: DiffusionPipeline, family: Family, config: Config) -> Trainable:
    """Make the new words' embeddings trainable, everything else frozen."""
    freeze(pipe)
    words = add_words(pipe, family, config)
    modules = {name: getattr(pipe, name) for name in (family.denoiser, *family.text_encoders)}
    groups = [{"params": [words.learned]} | text_learning_rate(config)]
    return Trainable(modules, groups, lambda folder, _: save_words(words, config, folder))


def load(pipe: DiffusionPipeline, family: Family, adapters: Sequence[tuple[Path, float]]) -> None:
    """Put the words into the vocabulary. Raises `ConfigError` for weights other than 1: a word is there or not."""
    for folder, weight in adapters:
        if weight != 1:
            raise ConfigError(f"A learned word has no weight ({weight:g} was asked for).", "Leave the weight at 1.")
        load_words(pipe, family, folder)


METHOD = Method(
    "textual_inversion",
    "Textual Inversion",
    "Learns a new word and changes nothing else: a file of kilobytes, and the least faithful.",
    "{word}",
    "2208.01618",
    ("textual_inversion",),
    attach,
    load,
    (PATTERN,),
)
