"""The first tab: photos and what the coach says of them, the words for the subject, and the prompts these make."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gradio as gr

from dreambooth import toybox
from dreambooth.coach import Finding, coach
from dreambooth.config import TOYBOX, Config
from dreambooth.errors import ConfigError, PhotoError
from dreambooth.photos import IMAGE_SUFFIXES, prepare_photo
from dreambooth.toybox.world import CLASSES
from dreambooth.ui.studio import QUIET, Studio, in_plain_words, refuse_too_many

SUBJECTS = Path(toybox.__file__).parent / "subjects"
PEOPLE_AND_MORE = ("person", "toy", "watch", "shoe", "bottle", "plant")
WAITING = """<div class="empty"><strong>No photos yet.</strong> Drop three to five, each from another angle and in
another place: that is how the model tells your subject from its surroundings.</div>"""


@dataclass(frozen=True)
class Subject:
    """The components that say who or what is taught."""

    photos: gr.Gallery
    class_noun: gr.Dropdown
    identifier: gr.Textbox
    to_training: gr.Button


def build(studio: Studio) -> Subject:
    """Lay the tab out and wire it."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=3, min_width=320):
            photos = gr.Gallery(
                label="Photos of your subject", interactive=True, type="filepath", file_types=sorted(IMAGE_SUFFIXES),
                columns=5, height="auto", object_fit="cover", buttons=[], elem_id="photos",
            )  # fmt: skip
            samples = _sample_buttons()
            findings = gr.HTML(WAITING, label="Advice", elem_id="findings")
            crops = gr.Gallery(
                label="What training sees", columns=5, height="auto", object_fit="contain", interactive=False,
                visible=False, buttons=["fullscreen"], elem_id="crops",
            )  # fmt: skip
        with gr.Column(scale=2, min_width=300):
            class_noun = gr.Dropdown(
                [*CLASSES, *PEOPLE_AND_MORE], value="dog", allow_custom_value=True, label="Class noun",
                info="What kind of thing it is; your own word will do. The toybox knows the first twelve.",
                elem_id="class-noun",
            )  # fmt: skip
            identifier = gr.Textbox(
                "sks", label="Identifier", max_length=60, elem_id="identifier",
                info="A rare word that will mean your subject: sks, ohwx, zwx, pkblz.",
            )  # fmt: skip
            prompts = gr.HTML(show_prompts("sks", "dog"), elem_id="prompts")
            to_training = gr.Button("Next: train", variant="primary")

    @in_plain_words
    def check_photos(photos: list[tuple[str, str | None]] | None) -> tuple[dict, str]:
        return look_at(studio.resolution, [path for path, _ in photos or []])

    @in_plain_words
    def sample_subject(name: str) -> tuple[list[str], str]:
        paths, class_noun = load_sample(name)
        return [photos.move_resource_to_block_cache(path) for path in paths], class_noun

    check = {"fn": check_photos, "inputs": photos, "outputs": [crops, findings], "show_progress_on": findings}
    photos.change(
        **check, api_name="check_photos", api_description="Crop photos as training would; say what would be better."
    )
    for button in samples:
        taken = button.click(
            partial(sample_subject, button.value), None, [photos, class_noun],
            api_name=f"sample_{button.value.replace('-', '_')}",
            api_description="A sample subject's photos and class noun.",
        )  # fmt: skip
        taken.success(**check, api_visibility="private")  # Gradio 6.31: a gallery filled by a function tells no change
    subject_words = [identifier, class_noun]
    gr.on([c.change for c in subject_words], show_prompts, subject_words, prompts, trigger_mode="always_last", **QUIET)
    return Subject(photos, class_noun, identifier, to_training)


def _sample_buttons() -> list[gr.Button]:
    """A button for each sample subject that is installed."""
    if not (names := sample_subjects()):
        return []
    gr.HTML("<p class='aside'>No photos at hand? Take a sample subject:</p>")
    with gr.Row(elem_classes="samples"):
        return [
            gr.Button(name, icon=str(SUBJECTS / name / "00.png"), size="sm", min_width=108, scale=0) for name in names
        ]


def sample_subjects() -> list[str]:
    """The names of the installed sample subjects: a class, and a number where there are several of it."""
    return sorted(path.parent.name for path in SUBJECTS.glob("*/00.png"))


def load_sample(name: str) -> tuple[list[Path], str]:
    """The photos of a sample subject, and its class noun."""
    if name not in sample_subjects():
        raise ConfigError(f"There is no sample subject {name!r}.", f"Choose {', '.join(sample_subjects())}.")
    return sorted((SUBJECTS / name).glob("*.png")), re.sub(r"-\d+$", "", name)


def look_at(resolution: int, paths: Sequence[str]) -> tuple[dict, str]:
    """The crops of the photos, and the coach's advice as HTML; photos that can't be used are named there."""
    if not paths:
        return gr.Gallery([], visible=False), WAITING
    refuse_too_many(paths)
    prepared, refusals = [], []
    for path in paths:
        try:
            prepared.append(prepare_photo(path, resolution))
        except PhotoError as error:
            refusals.append(error)
    crops = [(photo.preview, photo.name) for photo in prepared]
    return gr.Gallery(crops, visible=bool(crops)), _advice(coach(prepared), refusals, len(prepared))


def _advice(findings: Sequence[Finding], refusals: Sequence[PhotoError], count: int) -> str:
    items = [("error", "Can't be used", str(error)) for error in refusals]
    items += [("warning", "Better change", f.message) for f in findings if f.severity == "warning"]
    items += [("tip", "Tip", f.message) for f in findings if f.severity == "tip"]
    if not items:
        items = [("good", "Ready", f"{count} photos, and nothing to improve.")]
    lines = [f"<li class='{kind}'><strong>{word}</strong> {html.escape(text)}</li>" for kind, word, text in items]
    return f"<h3>The photo coach</h3><ul class='findings'>{''.join(lines)}</ul>"


def show_prompts(identifier: str | None, class_noun: str | None) -> str:
    """The prompts that the words make, as HTML, or what is wrong with the words."""
    try:
        config = Config.from_dict(
            {"base_model": TOYBOX, "subject": {"photos": ".", **words(identifier, class_noun)}}, source="Words"
        )
    except ConfigError as error:
        return f"<div class='empty'>{html.escape(str(error))}</div>"
    rows = (("Your subject will be", config.instance_prompt), ("Its class stays", config.class_prompt))
    cells = "".join(f"<dt>{label}</dt><dd>{html.escape(prompt)}</dd>" for label, prompt in rows)
    return f"<dl class='prompts'>{cells}</dl>"


def words(identifier: str | None, class_noun: str | None) -> dict[str, str]:
    """Identifier and class noun as settings; raises `ConfigError` where one is not given."""
    if not (class_noun or "").strip():
        raise ConfigError("The class noun is empty.", "Say what kind of thing your subject is: dog, backpack, person.")
    if not (identifier or "").strip():
        raise ConfigError("The identifier is empty.", "Give a rare word that will mean your subject, such as sks.")
    return {"identifier": identifier, "class_noun": class_noun}
