"""Subjects that Custom Diffusion learned apart, in one adapter: the paper's constrained optimisation.

Each subject's words must be read as its own projections W₁, W₂, … read them, and all other text as the base model's W₀
does, as nearly as that leaves room for (Kumari et al. 2023, arXiv 2212.04488, eq. 4 and 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dreambooth.config.names import TOYBOX
from dreambooth.config.sections import MOST_SUBJECTS
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.families.family import Family
from dreambooth.families.folder import shown_name
from dreambooth.families.words import read_words, write_words
from dreambooth.files import atomic_folder, refuse_taken
from dreambooth.methods.custom_diffusion import projections, read_weights, save_weights
from dreambooth.models.adapters import Adapter, fetch_base, is_adapter, load_model, read_adapter, write_adapter
from dreambooth.prompts import LIVE_CLASSES, paper_prompts
from dreambooth.toybox.identities import CLASSES
from dreambooth.toybox.world import caption, random_scene

CAPTIONS = 1000
"""Ordinary captions of the toybox's world. Source: the paper's number."""
RIDGE = 1e-2
"""Share of the captions' mean square that counts as well in every direction. Without it, changes pile up where these
captions have nothing to say and other text has: of 1 to 1e-6 this misreads text of things that the toybox does not know
least (0.6 times as much as 1e-6), and captions 1.1 times as much as 1e-6 (`python -m benchmarks.merging`)."""
ALIKE = 1e-6
"""Words that differ in less than this share of the largest of them, squared, are taken for the same: to read them
differently would take changes a thousand times as large as the difference."""
PROMPT = "a photo of {}"  # the words before a name shape how the text encoder understands it
BATCH = 64  # captions encoded at once


class Part(NamedTuple):
    """One adapter to merge."""

    folder: Path
    names: tuple[str, ...]
    """What its subjects are called in prompts: identifier and class noun, `<sks> dog`."""


def part_of(model: Path, config: Config | None) -> Part:
    """The adapter in the folder `model` as a part, named by the settings it was trained with; where they are unknown,
    by identifiers alone."""
    nouns = {s.identifier: s.class_noun for s in config.subjects} if config else {}
    words = read_adapter(model).identifiers if is_adapter(model) else ()
    return Part(model, tuple(f"{word} {nouns[word]}" if word in nouns else word for word in words))


def merge(parts: Sequence[Part], out: Path, captions: Sequence[str] | None = None, base: Path | None = None) -> None:
    """Write Custom Diffusion's adapters of one base model as one adapter into the new folder `out`.

    `captions` are ordinary text whose reading should stay as it is, by default `ordinary_captions`: the paper takes
    about a thousand, and fewer protect less. `base` is the base model's folder if known. Raises `ConfigError` for
    adapters that can't be merged and for an `out` that is taken, else what `fetch_base` and `load_model` raise.
    """
    refuse_taken(out)
    facts = _check(parts)
    base = base or fetch_base(facts[0])
    pipe, family = load_model(parts[0].folder, base, scale=0, adapters=[(part.folder, 0) for part in parts[1:]])
    layers = projections(pipe, family)  # the base model's: at a scale of 0 an adapter gives its words alone
    names = {name: name_rows(pipe, family, name) for part in parts for name in part.names}
    features = [torch.cat([names[name] for name in part.names]) for part in parts]
    words = torch.cat(features)
    ordinary = second_moment(pipe, family, captions or ordinary_captions(facts[0].base_model))
    check_told_apart(names, ordinary)
    spread = directions(words, ordinary)
    trained = [read_weights(part.folder, layers) for part in parts]
    for name, layer in layers.items():
        wanted = torch.cat([w[name].double() @ rows.T for w, rows in zip(trained, features, strict=True)], 1)
        layer.weight.data = constrained(layer.weight.detach().double(), words, wanted, spread).float()
    with atomic_folder(out) as folder:
        learned = {word: rows for part in parts for word, rows in read_words(part.folder).items()}
        write_words(learned, folder)
        save_weights(pipe, family, folder)
        identifiers = tuple(identifier for one in facts for identifier in one.identifiers)
        write_adapter(folder, facts[0].model_copy(update={"identifiers": identifiers}))
        load_model(folder, base)  # what can't be read again is not kept


def _check(parts: Sequence[Part]) -> list[Adapter]:
    """What the adapters say of themselves. Raises `ConfigError` where they can't be merged."""
    if len(parts) < 2:
        raise ConfigError(f"{len(parts)} model is given.", "Give two or more to merge.")
    facts = []
    for part in parts:
        method = read_adapter(part.folder).method if is_adapter(part.folder) else "full"
        if method != "custom_diffusion":
            raise ConfigError(
                f"{shown_name(part.folder)} is of method {method}.", "Only those of custom_diffusion can be merged."
            )
        facts.append(read_adapter(part.folder))
        if facts[-1].base_fingerprint != facts[0].base_fingerprint:
            raise ConfigError(
                f"{shown_name(part.folder)} has another base model ({facts[-1].base_model}) than "
                f"{shown_name(parts[0].folder)} ({facts[0].base_model}).",
                "Merge adapters of one base model.",
            )
    words = [word for one in facts for word in one.identifiers]
    if twice := [word for word in words if words.count(word) > 1]:
        raise ConfigError(f"Two subjects have the identifier {twice[0]}.", "Train one of them with another word.")
    if len(words) > MOST_SUBJECTS:
        raise ConfigError(f"{len(words)} subjects are too many for one adapter.", f"Merge at most {MOST_SUBJECTS}.")
    return facts


def ordinary_captions(base_model: str) -> list[str]:
    """Text without any subject: captions of the toybox's world for the toybox, else the paper's prompts for every class
    noun that `prompts.py` and the toybox know."""
    if base_model == TOYBOX:
        rng = np.random.default_rng(0)
        return [caption(random_scene(rng), rng) for _ in range(CAPTIONS)]
    nouns = dict.fromkeys((*CLASSES, *sorted(LIVE_CLASSES)))
    return [
        " ".join(prompt.format(identifier="", class_noun=noun).split())
        for noun in nouns
        for prompt in paper_prompts(noun)
    ]


def directions(words: Tensor, ordinary: Tensor, ridge: float = RIDGE) -> Tensor:
    """The changes of a projection that alter how captions are read least, one for each of the words' features.

    For the words' features C (s, width) and the captions' mean square C_regᵀ C_reg (width, width), both in 64 bits,
    this is D = (d Cᵀ)⁻¹ d with d = C (C_regᵀ C_reg + `ridge` × its mean diagonal)⁻¹, (s, width); D Cᵀ is the identity.
    Raises `ConfigError` where words have the same features or are more than the width: no projection can read them all
    as wanted then.
    """
    d = _unscaled(words, ordinary, ridge)
    if _alike(d @ words.T):
        raise ConfigError(
            f"The subjects' words ({len(words)} tokens) can't be told apart.",
            "Merge fewer, or train a word longer or from another word.initializer.",
        )
    found: Tensor = torch.linalg.solve(d @ words.T, d)
    return found


def check_told_apart(names: Mapping[str, Tensor], ordinary: Tensor) -> None:
    """Raise `ConfigError` with the names of two subjects whose words' features (tokens, width) are as good as the same,
    as those of words are that started from one embedding and were hardly trained."""
    for (one, rows), (other, others) in combinations(names.items(), 2):
        both = torch.cat([rows, others])
        if _alike(_unscaled(both, ordinary, RIDGE) @ both.T):
            raise ConfigError(
                f"{one!r} and {other!r} can't be told apart: their words came out alike.",
                "Train one of them longer, or from another word.initializer.",
            )


def _unscaled(words: Tensor, ordinary: Tensor, ridge: float) -> Tensor:
    everywhere = ridge * ordinary.diagonal().mean() * torch.eye(len(ordinary), dtype=ordinary.dtype)
    return torch.cholesky_solve(words.T, torch.linalg.cholesky(ordinary + everywhere)).T


def _alike(products: Tensor) -> bool:
    return bool(torch.linalg.matrix_rank(products, rtol=ALIKE, hermitian=True) < len(products))


def constrained(base: Tensor, words: Tensor, values: Tensor, spread: Tensor) -> Tensor:
    """The projection W (out, width) nearest to `base` for ordinary captions, with W Cᵀ = `values` (out, s) exactly.

    W = W₀ + (V − W₀ Cᵀ) D, for words C (s, width) and `spread` D, what `directions` gave for them.
    """
    return base + (values - base @ words.T) @ spread


def name_rows(pipe: DiffusionPipeline, family: Family, name: str, prompt: str = PROMPT) -> Tensor:
    """The text encoder's features of a name's tokens in `prompt` with it for {}, (tokens, width) in 64 bits.

    Raises `ConfigError` where the name is cut off.
    """
    ids, features = encode(pipe, family, [prompt.format(name)])
    tokenizer = getattr(pipe, family.tokenizers[0])
    wanted = tokenizer(pipe.maybe_convert_prompt(name, tokenizer), add_special_tokens=False).input_ids
    tokens = ids[0].tolist()
    start = next((i for i in range(len(tokens)) if tokens[i : i + len(wanted)] == wanted), None)
    if start is None:
        raise ConfigError(f"{name!r} is longer than the model reads.", "Train it with a shorter class noun.")
    return features[0, start : start + len(wanted)]


def second_moment(pipe: DiffusionPipeline, family: Family, captions: Sequence[str]) -> Tensor:
    """The mean of f fᵀ, (width, width) in 64 bits, over all that the denoiser reads of the captions: the features of
    their tokens, with begin, end and padding, which it gives much attention."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for start in range(0, len(captions), BATCH):
        rows = encode(pipe, family, list(captions[start : start + BATCH]))[1].flatten(0, 1)
        total, count = total + rows.T @ rows, count + len(rows)
    return total / count


@torch.no_grad()
def encode(pipe: DiffusionPipeline, family: Family, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids (B, tokens), and what the denoiser reads of them, (B, tokens, width) in 64 bits."""
    ids = family.tokenize(pipe, prompts)
    return ids, family.encode_text(pipe, ids)["encoder_hidden_states"].double()
