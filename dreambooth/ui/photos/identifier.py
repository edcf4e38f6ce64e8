"""What the page says of an identifier: how the base model's own vocabulary reads it, and rare words to take instead."""

from __future__ import annotations

import functools
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.config.names import TOYBOX
from dreambooth.errors import ConfigError, ModelError
from dreambooth.families.tokens import COMMON, RARE, Advice, advise, load_text_side, preview_prompts, suggest
from dreambooth.models.fetch import fetch_model
from dreambooth.ui import QUIET, in_plain_words
from dreambooth.ui.studio import Studio

SUGGESTIONS = 5
RARE_WORDS = ("ohwx", "zwx", "pkblz", "sks")
"""Suggested where the model's vocabulary can't be looked at; rare in that of Stable Diffusion 1.x."""
CHOICES = {"good": "A good choice.", "fair": "It will do.", "poor": "Better take another.", "unknown": "Not looked up."}
"""What the page says of an identifier, by its verdict."""
NOT_HERE = """This base model is not on this machine yet, and its vocabulary is not fetched just to look a word up. The
words below are rare in Stable Diffusion's."""
NEW = """<div class='word good'><p><strong>A new word.</strong> The chosen method adds <span class='token'>{word}</span>
to the model's vocabulary, where it means nothing else.</p></div>"""


def as_word(identifier: str) -> str:
    """An identifier as a new word is written: in angle brackets and small letters."""
    return f"<{identifier.strip().strip('<>').lower()}>"


def build(studio: Studio, identifier: gr.Textbox, base_model: gr.Textbox, new_word: gr.Checkbox) -> None:
    """Lay out the advice below the box for the identifier, with rare words to click, and wire it."""
    lookup = Lookup(studio)
    advice = gr.HTML(elem_id="identifier-advice")
    gr.HTML("<p class='aside'>Rare words to take:</p>")
    with gr.Row(elem_classes="chips", elem_id="suggestions"):
        chips = [gr.Button("", size="sm", min_width=60, scale=0, visible=False) for _ in range(SUGGESTIONS)]
    gr.on(None, lookup.show, [identifier, base_model, new_word], [advice, *chips], trigger_mode="always_last", **QUIET)
    for chip in chips:
        chip.click(lambda word: word, chip, identifier, **QUIET)
    gr.api(
        lookup.identifier_advice,
        api_name="identifier_advice",
        api_description="How a base model reads a word: tokens, how rare it is, and better words to mean a subject.",
    )


@dataclass(frozen=True)
class Lookup:
    """Looks words up in the vocabularies of the base models on offer, where they are on this machine."""

    studio: Studio

    @in_plain_words
    def identifier_advice(self, identifier: str, class_noun: str = "", base_model: str = "") -> dict[str, Any]:
        """Verdict, pieces, reasons and suggestions for the word, and prompts that show what it means so far."""
        advice, suggestions = self._look_up(identifier, base_model)
        return {
            "identifier": identifier.strip(),
            "verdict": advice.verdict if advice else "unknown",
            "pieces": list(advice.pieces) if advice else [],
            "reasons": list(advice.reasons) if advice else [NOT_HERE],
            "suggestions": list(suggestions),
            "prompts_to_try": preview_prompts(identifier.strip(), class_noun.strip()),
        }

    @in_plain_words
    def show(self, identifier: str | None, base_model: str, new_word: bool = False) -> list[Any]:
        """The advice as HTML, and the suggestions on their buttons; a `new_word` is not looked up."""
        if new_word:
            word = (identifier or "").strip()
            said = NEW.format(word=html.escape(as_word(word))) if word else ""
            return [said, *[gr.skip()] * SUGGESTIONS]
        try:
            advice, suggestions = self._look_up(identifier or "", base_model)
            said = _html(advice)
        except ConfigError as error:
            _, suggestions = self._look_up(RARE_WORDS[0], base_model)
            said = f"<div class='empty'>{html.escape(str(error))}</div>" if (identifier or "").strip() else ""
        missing = SUGGESTIONS - len(suggestions)
        return [said, *(gr.Button(word, visible=True) for word in suggestions), *[gr.Button(visible=False)] * missing]

    def _look_up(self, word: str, base_model: str) -> tuple[Advice | None, tuple[str, ...]]:
        """Advice and suggestions; no advice where the model is not on this machine."""
        model = self.studio.model(base_model or self.studio.default_model)
        if model != TOYBOX and not Path(model).is_dir():
            return None, RARE_WORDS
        folder = fetch_model(model)
        try:
            return advise(word, *_text_side(folder)), _suggestions(folder)
        except ModelError:  # the toybox is not installed, say; training will tell
            return None, RARE_WORDS


@functools.lru_cache(2)
def _text_side(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    tokenizer, text_encoder = load_text_side(folder)
    return tokenizer, text_encoder


@functools.cache
def _suggestions(folder: Path) -> tuple[str, ...]:
    found = suggest(*_text_side(folder), n=2 * SUGGESTIONS)
    found.sort(key=lambda advice: advice.verdict != "good")  # stable: the best stay first
    return tuple(advice.word for advice in found[:SUGGESTIONS])


def _html(advice: Advice | None) -> str:
    if advice is None:
        return f"<div class='word unknown'><p><strong>{CHOICES['unknown']}</strong> {NOT_HERE}</p></div>"
    if len(advice.pieces) > 1:
        what = f"{len(advice.pieces)} tokens"
    else:
        what = "One rare token" if advice.rarity >= RARE else "An ordinary word" if advice.rarity < COMMON else "A word"
    pieces = " ".join(f"<span class='token'>{html.escape(piece)}</span>" for piece in advice.pieces)
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in advice.reasons)
    trial = html.escape(preview_prompts(advice.word, "")[0])
    return f"""<div class='word {advice.verdict}'>
        <p><strong>{CHOICES[advice.verdict]}</strong> {what} to this model: {pieces}</p>
        <details><summary>Why, and what it means so far</summary><ul>{reasons}<li>To see what the model draws for it
        before training, try <q>{trial}</q> in the Generate tab.</li></ul></details></div>"""
