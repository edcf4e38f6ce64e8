"""The first tab: photos with their crop boxes and what the coach says of them, and the words for the subject."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth import toybox
from dreambooth.errors import ConfigError
from dreambooth.photos.folder import IMAGE_SUFFIXES
from dreambooth.toybox.identities import CLASSES
from dreambooth.ui import QUIET, in_plain_words, served
from dreambooth.ui.photos import crops as boxes
from dreambooth.ui.photos import identifier as lookup
from dreambooth.ui.photos.advice import WAITING, look_at
from dreambooth.ui.photos.crops import Boxes, Editor, Photos, aligned
from dreambooth.ui.photos.several import Several
from dreambooth.ui.photos.taught import show_prompts
from dreambooth.ui.studio import Studio

SUBJECTS = Path(toybox.__file__).parent / "subjects"
PEOPLE_AND_MORE = ("person", "toy", "watch", "shoe", "bottle", "plant")
CHOOSE = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-subject]");
  if (button) trigger("click", {subject: Number(button.dataset.subject), act: button.dataset.act});
});"""
"""Tells which button of which subject in the list was clicked."""


@dataclass(frozen=True)
class Subject:
    """The components that say who or what is taught."""

    photos: gr.Gallery
    class_noun: gr.Dropdown
    identifier: gr.Textbox
    to_training: gr.Button
    crops: gr.State
    """The crop boxes that the visitor chose, by photo (`Boxes`)."""
    given_crops: gr.JSON
    """Never shown: how an API caller gives crop boxes. `aligned` takes both."""
    base_model: gr.Textbox
    """Never shown: the name of the base model in whose vocabulary identifiers are looked up, set where it is chosen."""
    new_word: gr.Checkbox
    """Never shown: whether the identifier becomes a new word, set where the method is chosen."""
    kept: gr.State
    """The subjects that are set aside, a list of `Kept`."""
    changed: gr.Number
    """Never shown: counts changes of `kept`, which tells of none itself."""

    @property
    def all(self) -> list[gr.components.Component]:
        """What `taught` takes."""
        return [self.photos, self.crops, self.identifier, self.class_noun, self.kept]


def build(studio: Studio) -> Subject:
    """Lay the tab out and wire it."""
    crops = gr.State({})
    # No state: in Gradio 6.31 an event past the queue tells no change of one.
    base_model = gr.Textbox(studio.default_model, label="Base model", visible="hidden")
    new_word = gr.Checkbox(False, label="New word", visible="hidden")
    kept, changed = gr.State([]), gr.Number(0, precision=0, visible="hidden")
    given_crops = gr.JSON(label="crops", visible=False)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=3, min_width=320):  # the photos
            photos = gr.Gallery(
                label="Photos of your subject",
                interactive=True,
                type="filepath",
                file_types=sorted(IMAGE_SUFFIXES),
                columns=5,
                height="auto",
                object_fit="cover",
                buttons=[],
                elem_id="photos",
            )
            samples = _sample_buttons()
            marked = gr.Gallery(
                label="Crop boxes: choose a photo to move its box",
                columns=5,
                height="auto",
                object_fit="contain",
                interactive=False,
                allow_preview=False,
                visible=False,
                buttons=[],
                format="jpeg",
                elem_id="crops",
            )
            editor = boxes.editor()
            findings = gr.HTML(WAITING, label="Advice", elem_id="findings")
        with gr.Column(scale=2, min_width=300):  # the words
            class_noun = gr.Dropdown(
                [*CLASSES, *PEOPLE_AND_MORE],
                value="dog",
                allow_custom_value=True,
                label="Class noun",
                info="What kind of thing it is; your own word will do. The toybox knows the first twelve.",
                elem_id="class-noun",
            )
            identifier = gr.Textbox(
                "sks",
                label="Identifier",
                max_length=60,
                elem_id="identifier",
                info="A rare word that will mean your subject, so that no other meaning gets in its way.",
            )
            lookup.build(studio, identifier, base_model, new_word)
            prompts = gr.HTML(show_prompts("sks", "dog"), elem_id="prompts")
            listed = gr.HTML(elem_id="subjects", js_on_load=CHOOSE, apply_default_css=False)
            to_training = gr.Button("Next: train", variant="primary")
            another = gr.Button("Teach another subject too", size="sm", elem_id="another-subject")
    subject = Subject(
        photos, class_noun, identifier, to_training, crops, given_crops, base_model, new_word, kept, changed
    )
    checked = _wire_photos(studio, subject, editor, samples, marked, findings)
    _wire_several(studio, subject, another, listed, checked)
    show_in(prompts, subject)
    return subject


def show_in(prompts: gr.HTML, subject: Subject) -> None:
    """Keep the prompts of all subjects in `prompts`."""
    given = (subject.identifier, subject.class_noun, subject.new_word, subject.photos)
    changes = [*(part.change for part in given), subject.changed.change]
    gr.on(changes, show_prompts, [*given, subject.kept], prompts, trigger_mode="always_last", **QUIET)


def _sample_buttons() -> list[gr.Button]:
    """A button for each sample subject that is installed."""
    if not (names := sample_subjects()):
        return []
    gr.HTML("<p class='aside'>No photos at hand? Take a sample subject:</p>")
    with gr.Row(elem_classes="samples"):
        return [
            gr.Button(name, icon=str(SUBJECTS / name / "00.png"), size="sm", min_width=108, scale=0) for name in names
        ]


def _wire_photos(
    studio: Studio, subject: Subject, editor: Editor, samples: list[gr.Button], marked: gr.Gallery, findings: gr.HTML
) -> list[dict[str, Any]]:
    """Wire the photos; returns what follows where a function fills them, since Gradio 6.31 tells no such change."""
    photos, crops = subject.photos, subject.crops

    @in_plain_words
    def check_photos(photos: Photos | None, kept: Boxes, crops: list[Any] | None = None) -> tuple[gr.Gallery, str]:
        return look_at(studio.resolution, [path for path, _ in photos or []], aligned(photos, kept, crops))

    def taking(name: str) -> Callable[[], tuple[list[str], str]]:
        @in_plain_words
        def take() -> tuple[list[str], str]:
            paths, class_noun = load_sample(name)
            return [served(photos, path) for path in paths], class_noun

        take.__name__ = f"sample_{name.replace('-', '_')}"  # what an MCP server calls it
        return take

    check: dict[str, Any] = {
        "fn": check_photos,
        "inputs": [photos, crops, subject.given_crops],
        "outputs": [marked, findings],
        "show_progress_on": findings,
        "trigger_mode": "always_last",
    }
    photos.change(
        **check,
        api_name="check_photos",
        api_description=f"The photos with their crop boxes drawn, and what would be better. {boxes.HELP}",
    )
    forget = boxes.wire(studio, editor, photos, marked, crops, check)
    photos.change(**forget)
    for button in samples:
        taken = button.click(
            take := taking(button.value),
            None,
            [photos, subject.class_noun],
            api_name=take.__name__,
            api_description="A sample subject's photos and class noun.",
        )
        taken.success(**forget).success(**check, api_visibility="private")
    return [forget, check | {"api_visibility": "private"}]


def _wire_several(
    studio: Studio, subject: Subject, another: gr.Button, listed: gr.HTML, checked: list[dict[str, Any]]
) -> None:
    """Let subjects be set aside, taken up again and removed."""
    actions = Several(studio, subject.photos)
    # Queued: Gradio 6.31 shows no errors of others.
    loud: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    filled = [subject.photos, subject.crops, subject.identifier, subject.class_noun, subject.kept]
    shown = [subject.changed.change, subject.new_word.change]
    gr.on(shown, actions.show, [subject.kept, subject.new_word], listed, **QUIET)
    for event in (
        another.click(actions.set_aside, subject.all, filled, **loud),
        listed.click(actions.act, subject.all, filled, **loud),
    ):
        event = event.success(lambda count: (count or 0) + 1, subject.changed, subject.changed, **QUIET)
        for following in checked:
            event = event.success(**following)


# ----------------------------------------------------------------------------------------------------------- photos


def sample_subjects() -> list[str]:
    """The names of the installed sample subjects: a class, and a number where there are several of it."""
    return sorted(path.parent.name for path in SUBJECTS.glob("*/00.png"))


def load_sample(name: str) -> tuple[list[Path], str]:
    """The photos of a sample subject, and its class noun."""
    if name not in sample_subjects():
        raise ConfigError(f"There is no sample subject {name!r}.", f"Choose {', '.join(sample_subjects())}.")
    return sorted((SUBJECTS / name).glob("*.png")), re.sub(r"-\d+$", "", name)


# ------------------------------------------------------------------------------------------------------------ words
