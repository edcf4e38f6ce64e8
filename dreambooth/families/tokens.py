"""What a tokenizer makes of prompts: how much of them is read; and, with the text encoder, advice on identifiers: one
token or several, how rare, and close to what.

Rarity is the position of a token's last merge: byte-pair encoding merges what is most frequent first (Sennrich et al.
2016). Closeness is the cosine of *input* embeddings, where Textual Inversion found a word's concept to live (Gal et al.
2022, §4): one matrix product, while encoding a sentence for each of CLIP's words would take minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, cast, get_args

import torch
from safetensors import SafetensorError
from tokenizers import decoders
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.config.sections import LARGE_WORDS, SMALL_WORDS
from dreambooth.config.settings import Config
from dreambooth.config.subject import identifier_in, together_prompt
from dreambooth.errors import ConfigError, ModelError, PhotoError, first_line
from dreambooth.families.folder import what_helps
from dreambooth.families.words import add_tokens, new_words
from dreambooth.machine import one_model_at_a_time

Verdict = Literal["good", "fair", "poor"]

COMMON, RARE = 0.5, 0.9
"""Rarity below which a word is common, and from which it is rare: the rarest tenth, as the paper's appendix takes rare
tokens by their place in T5's. In CLIP's: atom 0.48, tofu 0.49, foal 0.82, sks, ohwx 0.97 (2kpr/dreambooth-tokens)."""
MOST_TOKENS = 3
"""Tokens an identifier may have. Source: paper, appendix on rare-token identifiers."""
FALSE_ALARM = 0.01
"""How often a word without any meaning may be called close to a common one."""
FEWEST_WORDS = 30
"""Common words needed before their mean and spread say what chance gives; statistics' rule of thumb."""
NEIGHBOURS = 5
POOL = 256
"""How many of the rarest words `suggest` compares: some 0.1 s with CLIP's vocabulary."""
SUGGESTED = re.compile(r"[a-z]{3,5}")
"""Short enough to mean little (the paper's appendix: three characters or fewer), long enough to be seen in a prompt."""

SHOWN = 80
"""Characters of a long prompt that messages quote."""

CLIP_MERGES = 48_894
"""Of the vocabulary of Stable Diffusion 1.x and 2.x, which drew the pictures that these warnings come from."""
KNOWN_MEANINGS: dict[str, tuple[Verdict, str]] = {
    "sks": (
        "fair",
        "It is also a rifle, and guns turn up in people's pictures "
        "(github.com/XavierXiao/Dreambooth-Stable-Diffusion/issues/71).",
    ),
    # Source: an earlier reimplementation on SD 1.4 and 1.5, which moved on to pkblz.
    "pokeeee": ("poor", "It already meant something to Stable Diffusion 1.x when a run tried it."),
}


@dataclass(frozen=True)
class Advice:
    """What is known of a word as an identifier."""

    word: str
    pieces: tuple[str, ...]
    """The text of each token; bytes that are no whole character stay in the vocabulary's own writing."""
    token_ids: tuple[int, ...]
    rank: int
    """Position of the last merge, from 1; 0 for a single byte; of several pieces that of the most common one."""
    vocabulary_size: int
    rarity: float
    """rank / number of merges: 0 is the most common, 1 the rarest."""
    neighbours: tuple[tuple[str, float], ...]
    """Nearest other whole words and their cosines, nearest first; of several pieces, to their mean embedding."""
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer's tokens by id (V) and a text encoder's embeddings of them; W are whole words made by a merge.

    Words are in the order of their ranks, so that the common ones are the first `common`.
    """

    tokens: tuple[str, ...]
    suffix: str
    ranks: tuple[int, ...]  # V
    merges: int
    control: frozenset[int]
    embeddings: Tensor  # (V, D)
    words: Tensor  # (W,) ids
    unit: Tensor  # (W, D), of length one
    common: int

    @classmethod
    def read(cls, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> _Vocabulary:
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        suffix, merges = model.get("end_of_word_suffix"), model.get("merges")
        if not (suffix and merges):
            raise ModelError("The tokenizer has no byte-pair merges of whole words.", "Give a model with CLIP's files.")
        embeddings = cast(nn.Embedding, text_encoder.get_input_embeddings()).weight.detach().to("cpu", torch.float32)
        if len(tokenizer) > len(embeddings) or not embeddings.sum().isfinite():
            raise ModelError(
                f"The text encoder's {len(embeddings)} embeddings are damaged or too few for {len(tokenizer)} tokens.",
                "Download or save the model again.",
            )
        learned: dict[str, int] = {}
        for rank, (left, right) in enumerate(merges, start=1):
            learned.setdefault(left + right, rank)
        tokens = tuple(sorted(vocabulary := tokenizer.get_vocab(), key=vocabulary.__getitem__))
        ranks = tuple(learned.get(token, 0) for token in tokens)
        words = [i for i, token in enumerate(tokens) if ranks[i] and token.endswith(suffix)]
        order = torch.tensor(sorted(words, key=ranks.__getitem__), dtype=torch.long)
        return cls(
            tokens,
            suffix,
            ranks,
            len(merges),
            control=frozenset({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}),
            embeddings=embeddings,
            words=order,
            unit=normalize(embeddings[order], dim=-1),
            common=sum(ranks[word] < COMMON * len(merges) for word in words),
        )

    def text(self, tokens: list[int]) -> str:
        """What tokens stand for together; their raw writing where their bytes are only part of a character."""
        raw = "".join(self.tokens[token].removesuffix(self.suffix) for token in tokens)
        decoded = decoders.ByteLevel().decode([raw])
        return raw if "\N{REPLACEMENT CHARACTER}" in decoded else decoded

    @property
    def known(self) -> dict[str, tuple[Verdict, str]]:
        return KNOWN_MEANINGS if self.merges == CLIP_MERGES else {}

    def rarity(self, token: int) -> float:
        return self.ranks[token] / self.merges

    def nearest(self, vector: Tensor, own: list[int]) -> tuple[tuple[str, float], ...]:
        """The whole words nearest to `vector` (D,) other than `own`, with their cosines."""
        cosines = self.unit @ normalize(vector, dim=0)
        cosines[torch.isin(self.words, torch.tensor(own))] = -torch.inf
        best = cosines.topk(min(NEIGHBOURS, len(self.words)))
        found = zip(best.indices.tolist(), best.values.tolist())
        return tuple((self.text([int(self.words[i])]), c) for i, c in found if c > -torch.inf)

    def nearest_common(self, vectors: Tensor, own: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The common word other than `own` nearest to each of `vectors` (N, D): cosine, id and limit of chance, (N,).

        The cosines of a word without meaning with C common words have some mean m and deviation s; in `FALSE_ALARM` of
        such words chance lifts the largest above m + z·s, z being the normal quantile of 1 - FALSE_ALARM / C.
        """
        others = ~torch.isin(self.words[: self.common], torch.tensor(own, dtype=torch.long))
        cosines = (normalize(vectors, dim=-1) @ self.unit[: self.common].T)[:, others]
        z = NormalDist().inv_cdf(1 - FALSE_ALARM / cosines.shape[1])
        best, where = cosines.max(dim=-1)
        return best, self.words[: self.common][others][where], cosines.mean(dim=-1) + z * cosines.std(dim=-1)


@one_model_at_a_time
def load_text_side(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer and text encoder of the pipeline in `folder`, and nothing else of it.

    Raises `ModelError` where their files are missing or damaged.
    """
    tokenizer = load_tokenizer(folder)
    text_encoder, found = _load(folder, "text_encoder", CLIPTextModel, output_loading_info=True)
    if found["missing_keys"]:
        raise ModelError(f"{folder.name}: the text encoder lacks {min(found['missing_keys'])}.", what_helps(folder))
    return tokenizer, text_encoder.eval()


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of the pipeline in `folder` alone. Raises `ModelError` where its files are missing or damaged."""
    tokenizer: CLIPTokenizer = _load(folder, "tokenizer", CLIPTokenizer)
    return tokenizer


def _load(folder: Path, part: str, kind: Any, **options: Any) -> Any:
    if not (folder / part).is_dir():
        raise ModelError(f"{folder.name}: no {part} folder in it.", "Give a Stable Diffusion pipeline folder.")
    try:
        return kind.from_pretrained(folder / part, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        problem = first_line(error)
        raise ModelError(
            f"{folder.name}: its text side can't be loaded: {problem}.", what_helps(folder, error)
        ) from None


# ------------------------------------------------------------------------------------------------ how much is read


@dataclass(frozen=True)
class Reader:
    """How much a model reads of prompts: what its tokenizer has no room for is cut off."""

    tokenizer: CLIPTokenizer
    """With the words that were added to its vocabulary."""
    identifiers: tuple[str, ...] = ()
    """The subjects' own words, which must not be cut off."""

    @classmethod
    def of(cls, config: Config, model: Path) -> Reader:
        """How the base model in the folder `model` reads the prompts of a run, whose new words count once for each of
        their embeddings. Raises `ModelError` for damaged files and `ConfigError` for words that it knows."""
        tokenizer = load_tokenizer(model)
        add_tokens(tokenizer, new_words(config).items())
        return cls(tokenizer, tuple(subject.identifier for subject in config.subjects))

    @property
    def room(self) -> int:
        """Tokens of a prompt, beside the marks of its beginning and end."""
        return self.tokenizer.model_max_length - 2

    def unread(self, prompt: str) -> str:
        """The end of a prompt that is cut off; empty where all of it is read."""
        added = self.tokenizer.get_added_vocab()
        # diffusers writes each embedding of a new word out: <sks> <sks>_1 <sks>_2
        sizes = {
            token: sum(re.fullmatch(rf"{re.escape(word)}(_\d+)?", other) is not None for other in added)
            for word, token in added.items()
        }
        read = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        room = self.room
        for token, (start, _) in zip(read.input_ids, read.offset_mapping, strict=True):
            room -= sizes.get(token, 1)
            if room < 0:
                return prompt[start:]
        return ""

    def lost(self, prompt: str) -> list[str]:
        """The identifiers that a prompt holds, but not the part of it that is read."""
        end = len(prompt) - len(self.unread(prompt))
        found = {word: [match.end() for match in identifier_in(word).finditer(prompt)] for word in self.identifiers}
        return [word for word, ends in found.items() if ends and min(ends) > end]

    def remarks(self, prompts: Iterable[str]) -> list[str]:
        """What is to be said of prompts that are longer than the model reads: a sentence, or nothing."""
        cut = {prompt: end for prompt in dict.fromkeys(prompts) if (end := self.unread(prompt).strip())}
        if not cut:
            return []
        prompt, end = next(iter(cut.items()))
        lost = f", and with it {' and '.join(words)}" if (words := self.lost(prompt)) else ""
        others = f" So are the ends of {len(cut) - 1} other prompts." if len(cut) > 1 else ""
        return [f"{self._too_long(prompt)} {end!r} is cut off{lost}.{others}"]

    def check(self, prompts: Iterable[str]) -> list[str]:
        """The same; raises `ConfigError` where a prompt names a subject and the model would not read its name."""
        prompts = list(dict.fromkeys(prompts))
        for prompt in prompts:
            if lost := self.lost(prompt):
                raise ConfigError(
                    f"{self._too_long(prompt)} {lost[0]} is cut off, so that it would not be read.",
                    f"Name {lost[0]} nearer to the beginning, or shorten the prompt.",
                )
        return self.remarks(prompts)

    def check_run(self, config: Config) -> list[str]:
        """`check` of all that a run is trained with and draws, but for its photos' captions."""
        train, subjects = config.train, config.subjects
        pairs = combinations(subjects, 2) if train.side_by_side else ()
        asked = [subjects[0].fill(prompt) for prompt in config.sampling.prompts if train.sample_every]
        captions = [*config.instance_prompts, *map(together_prompt, pairs)]
        taught = [prompt for caption in captions for prompt in config.prompts_of(caption)]
        sizes = (*SMALL_WORDS, *LARGE_WORDS) if train.vary_size else ()  # said of photos of one subject alone
        alone = [prompt for caption in config.instance_prompts for prompt in config.prompts_of(caption)]
        sized = [f"{word} {prompt}" for prompt in alone for word in sizes]
        named = [*captions, *taught, *sized, *asked]
        drawn = config.sample_prompts if train.sample_every else []  # all subjects in one: more than many models read
        plain = config.class_prompts if config.prior.active else []
        self.check(named)
        return self.remarks([*named, *plain, *drawn])

    def check_captions(self, captions: Mapping[Path, str]) -> list[str]:
        """What is to be said of photos' captions; raises `PhotoError` for one whose subject would not be read."""
        for photo, caption in captions.items():
            try:
                self.check([caption])
            except ConfigError as error:
                raise PhotoError(f"{photo.name}: {error.message}", error.hint) from None
        return self.remarks(captions.values())

    def _too_long(self, prompt: str) -> str:
        shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}…"
        return f"The prompt {shown!r} is longer than the {self.room} tokens that the model reads:"


# ------------------------------------------------------------------------------------------------------------ advice


def advise(word: str, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> Advice:
    """Judge `word` as an identifier; raises `ConfigError` where it can't be one at all."""
    word = word.strip()
    if not word:
        raise ConfigError("The identifier is empty.", "Give a word, such as ohwx.")
    if any(c.isspace() or c in "{}" for c in word) or not word.isprintable():
        raise ConfigError(f"Identifier {word[:60]!r} holds spaces, braces or control characters.", "Give one word.")
    ids = _token_ids(word, tokenizer)
    longest = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings) - 2  # begin and end
    if len(ids) > longest:
        raise ConfigError(f"Identifier {word[:20]!r}… is {len(ids)} tokens; the model reads {longest}.", "Shorten it.")
    vocabulary = _Vocabulary.read(tokenizer, text_encoder)
    if not vocabulary.control.isdisjoint(ids):
        raise ConfigError(f"Identifier {word!r} is the tokenizer's own mark, or unknown to it.", "Give another word.")
    return _advise(word, ids, vocabulary)


def suggest(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, n: int = 8) -> list[Advice]:
    """Up to `n` single-token identifiers from the rarest tenth, best first: far from common words, then rarest.

    Rank can't tell an English word by itself (fawn is rarer than ohwx in CLIP's vocabulary): words closer to a common
    one than chance come last, the closest at the very end, and each one's own verdict says so.
    """
    if n < 1:
        raise ConfigError(f"{n} suggestions were asked for.", "Ask for at least one.")
    vocabulary = _Vocabulary.read(tokenizer, text_encoder)
    candidates: list[int] = []
    for token in reversed(vocabulary.words.tolist()):
        if vocabulary.rarity(token) < RARE or len(candidates) == max(POOL, n):
            break
        word = vocabulary.text([token])
        if SUGGESTED.fullmatch(word) and word not in vocabulary.known and _token_ids(word, tokenizer) == [token]:
            candidates.append(token)
    if vocabulary.common >= FEWEST_WORDS and candidates:
        cosines, _, limits = vocabulary.nearest_common(vocabulary.embeddings[candidates], own=[])
        excess = dict(zip(candidates, (cosines - limits).clamp(min=0).tolist()))
        candidates.sort(key=excess.__getitem__)  # stable: the rarest stay first among those within chance
    return [_advise(vocabulary.text([token]), [token], vocabulary) for token in candidates[:n]]


def preview_prompts(word: str, class_noun: str) -> list[str]:
    """Prompts whose pictures show what the base model makes of `word`, alone and beside the class noun if any."""
    return [f"a photo of {word}", word, *([f"a photo of {word} {class_noun}"] if class_noun else [])]


def _token_ids(word: str, tokenizer: CLIPTokenizer) -> list[int]:
    ids: list[int] = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
    return ids


def _advise(word: str, ids: list[int], vocabulary: _Vocabulary) -> Advice:
    commonest = min(ids, key=vocabulary.ranks.__getitem__)
    mean = vocabulary.embeddings[ids].mean(dim=0)
    findings = _of_one(ids[0], vocabulary) if len(ids) == 1 else _of_several(ids, vocabulary)
    if vocabulary.common >= FEWEST_WORDS and (len(ids) > 1 or vocabulary.rarity(commonest) >= COMMON):
        findings.append(_of_closeness(mean, ids, vocabulary))
    findings += _of_writing(word, ids, vocabulary)
    return Advice(
        word=word,
        pieces=tuple(vocabulary.text([token]) for token in ids),
        token_ids=tuple(ids),
        rank=vocabulary.ranks[commonest],
        vocabulary_size=len(vocabulary.tokens),
        rarity=vocabulary.rarity(commonest),
        neighbours=vocabulary.nearest(mean, ids),
        verdict=max((level for level, _ in findings), key=get_args(Verdict).index),
        reasons=tuple(text for _, text in findings),
    )


def _of_one(token: int, vocabulary: _Vocabulary) -> list[tuple[Verdict, str]]:
    rank, rarity = vocabulary.ranks[token], vocabulary.rarity(token)
    if not rank:
        return [("poor", "It is a single character, and models have strong habits with those (paper, §3.2).")]
    level: Verdict = "poor" if rarity < COMMON else "fair" if rarity < RARE else "good"
    how = {"poor": "common", "fair": "not rare", "good": "rare"}[level]
    return [("good", "It is one token."), (level, f"It is {how}: merge {rank:,} of {vocabulary.merges:,}.")]


def _of_several(ids: list[int], vocabulary: _Vocabulary) -> list[tuple[Verdict, str]]:
    level: Verdict = "fair" if len(ids) <= MOST_TOKENS else "poor"
    say = "one is cleaner" if level == "fair" else f"use at most {MOST_TOKENS}"
    pieces = ", ".join(vocabulary.text([token]) for token in ids)
    findings: list[tuple[Verdict, str]] = [(level, f"It is {len(ids)} tokens: {pieces}; {say}.")]
    for token in dict.fromkeys(ids):
        piece = vocabulary.text([token])
        if len(piece) >= 3 and vocabulary.rarity(token) < COMMON:  # one or two letters are in words of every kind
            merge = f"merge {vocabulary.ranks[token]:,} of {vocabulary.merges:,}"
            findings.append(("poor", f"Its piece {piece!r} is common: {merge}."))
    return findings


def _of_closeness(vector: Tensor, ids: list[int], vocabulary: _Vocabulary) -> tuple[Verdict, str]:
    cosines, nearest, limits = vocabulary.nearest_common(vector[None], own=ids)
    cosine, limit, near = cosines.item(), limits.item(), vocabulary.text(nearest.tolist())
    what = "It is" if len(ids) == 1 else "The mean of its tokens is"
    figures = f"cosine {cosine:.2f}, and chance gives up to {limit:.2f}"
    if cosine > limit:
        return "fair", f"{what} close to the common word {near!r}: {figures}."
    return "good", f"{what} close to no common word: nearest is {near!r}, {figures}."


def _of_writing(word: str, ids: list[int], vocabulary: _Vocabulary) -> list[tuple[Verdict, str]]:
    findings = [vocabulary.known[word.lower()]] if word.lower() in vocabulary.known else []
    if (raw := word + vocabulary.suffix) in vocabulary.tokens and (token := vocabulary.tokens.index(raw)) not in ids:
        meant = vocabulary.text([token])
        findings.append(("poor", f"It is how the vocabulary file writes {meant!r}; type {meant!r} itself."))
    elif (read := vocabulary.text(ids)) != word:
        findings.append(("good", f"The tokenizer reads it as {read!r}."))
    return findings
