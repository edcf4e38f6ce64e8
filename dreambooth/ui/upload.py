"""The first tab: photos with their crop boxes and what the coach says of them, and the words for the subject."""

from __future__ import annotations

import base64
import functools
import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from PIL import Image, ImageDraw, ImageFont

from dreambooth import toybox
from dreambooth.coach import Finding, coach
from dreambooth.config import TOYBOX, Config
from dreambooth.errors import ConfigError, PhotoError
from dreambooth.photos import IMAGE_SUFFIXES, SHOWN, Crop, Prepared, show_crop
from dreambooth.toybox.world import CLASSES
from dreambooth.ui import crops as boxes
from dreambooth.ui import identifier as lookup
from dreambooth.ui.crops import Boxes, Editor, Photos, aligned, prepared
from dreambooth.ui.studio import QUIET, Studio, in_plain_words, refuse_too_many

SUBJECTS = Path(toybox.__file__).parent / "subjects"
PEOPLE_AND_MORE = ("person", "toy", "watch", "shoe", "bottle", "plant")
OF_ALL = ("too_few", "too_many", "same_background", "same_pose")
"""Findings about the photos as a set."""
WAITING = """<div class="empty"><strong>No photos yet.</strong> Drop three to five, each from another angle and in
another place: that is how the model tells your subject from its surroundings.</div>"""


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


def build(studio: Studio) -> Subject:
    """Lay the tab out and wire it."""
    crops = gr.State({})
    # No state: in Gradio 6.31 an event past the queue tells no change of one.
    base_model = gr.Textbox(studio.default_model, label="Base model", visible="hidden")
    given_crops = gr.JSON(label="crops", visible=False)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=3, min_width=320):
            photos = gr.Gallery(
                label="Photos of your subject", interactive=True, type="filepath", file_types=sorted(IMAGE_SUFFIXES),
                columns=5, height="auto", object_fit="cover", buttons=[], elem_id="photos",
            )  # fmt: skip
            samples = _sample_buttons()
            marked = gr.Gallery(
                label="Crop boxes: choose a photo to move its box", columns=5, height="auto", object_fit="contain",
                interactive=False, allow_preview=False, visible=False, buttons=[], format="jpeg", elem_id="crops",
            )  # fmt: skip
            editor = boxes.editor()
            findings = gr.HTML(WAITING, label="Advice", elem_id="findings")
        with gr.Column(scale=2, min_width=300):
            class_noun = gr.Dropdown(
                [*CLASSES, *PEOPLE_AND_MORE], value="dog", allow_custom_value=True, label="Class noun",
                info="What kind of thing it is; your own word will do. The toybox knows the first twelve.",
                elem_id="class-noun",
            )  # fmt: skip
            identifier = gr.Textbox(
                "sks", label="Identifier", max_length=60, elem_id="identifier",
                info="A rare word that will mean your subject, so that no other meaning gets in its way.",
            )  # fmt: skip
            lookup.build(studio, identifier, base_model)
            prompts = gr.HTML(show_prompts("sks", "dog"), elem_id="prompts")
            to_training = gr.Button("Next: train", variant="primary")
    subject = Subject(photos, class_noun, identifier, to_training, crops, given_crops, base_model)
    _wire_photos(studio, subject, editor, samples, marked, findings)
    subject_words = [identifier, class_noun]
    gr.on([c.change for c in subject_words], show_prompts, subject_words, prompts, trigger_mode="always_last", **QUIET)
    return subject


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
) -> None:
    photos, crops = subject.photos, subject.crops

    @in_plain_words
    def check_photos(photos: Photos | None, kept: Boxes, crops: list | None = None) -> tuple[gr.Gallery, str]:
        return look_at(studio.resolution, [path for path, _ in photos or []], aligned(photos, kept, crops))

    def taking(name: str) -> Callable[[], tuple[list[str], str]]:
        @in_plain_words
        def take() -> tuple[list[str], str]:
            paths, class_noun = load_sample(name)
            return [photos.move_resource_to_block_cache(path) for path in paths], class_noun

        take.__name__ = f"sample_{name.replace('-', '_')}"  # what an MCP server calls it
        return take

    check = {
        "fn": check_photos, "inputs": [photos, crops, subject.given_crops], "outputs": [marked, findings],
        "show_progress_on": findings, "trigger_mode": "always_last",
    }  # fmt: skip
    photos.change(
        **check, api_name="check_photos",
        api_description=f"The photos with their crop boxes drawn, and what would be better. {boxes.HELP}",
    )  # fmt: skip
    forget = boxes.wire(studio, editor, photos, marked, crops, check)
    photos.change(**forget)
    for button in samples:
        taken = button.click(
            take := taking(button.value), None, [photos, subject.class_noun], api_name=take.__name__,
            api_description="A sample subject's photos and class noun.",
        )  # fmt: skip
        # Gradio 6.31: a gallery filled by a function tells no change.
        taken.success(**forget).success(**check, api_visibility="private")


# ----------------------------------------------------------------------------------------------------------- photos


def sample_subjects() -> list[str]:
    """The names of the installed sample subjects: a class, and a number where there are several of it."""
    return sorted(path.parent.name for path in SUBJECTS.glob("*/00.png"))


def load_sample(name: str) -> tuple[list[Path], str]:
    """The photos of a sample subject, and its class noun."""
    if name not in sample_subjects():
        raise ConfigError(f"There is no sample subject {name!r}.", f"Choose {', '.join(sample_subjects())}.")
    return sorted((SUBJECTS / name).glob("*.png")), re.sub(r"-\d+$", "", name)


def look_at(resolution: int, paths: Sequence[str], crops: Sequence[Crop | None]) -> tuple[gr.Gallery, str]:
    """Each photo with its crop box, and the coach's advice as HTML; photos that can't be used are named there."""
    if not paths:
        return gr.Gallery([], visible=False), WAITING
    refuse_too_many(paths)
    photos: list[Prepared | PhotoError] = []
    for path, crop in zip(paths, crops, strict=True):
        try:
            photos.append(prepared(path, resolution, crop))
        except PhotoError as error:
            photos.append(error)
    shown = [
        (show_crop(photo), photo.name) if isinstance(photo, Prepared) else (_blank(), "Can't be used")
        for photo in photos
    ]
    return gr.Gallery(shown, visible=True), _advice(photos)


@functools.cache
def _blank() -> Image.Image:
    """Stands for a photo that can't be used, so that pictures and photos have the same places."""
    tile = Image.new("RGB", (SHOWN, SHOWN), "#7b7266")
    font = ImageFont.load_default(size=SHOWN // 4)
    ImageDraw.Draw(tile).text((SHOWN / 2, SHOWN / 2), "?", "white", font, anchor="mm")
    return tile


def _advice(photos: Sequence[Prepared | PhotoError]) -> str:
    """What the coach finds: on top what concerns all photos, then each photo with what concerns it."""
    usable = [photo for photo in photos if isinstance(photo, Prepared)]
    findings = coach(usable)
    of_all = [_remark(f.severity, f.message) for f in findings if f.code in OF_ALL]
    if not findings and len(usable) == len(photos):
        of_all = [_remark("good", f"{len(usable)} photos, and nothing to improve.")]
    rows, number = [], 0
    for photo in photos:
        if isinstance(photo, Prepared):
            rows.append(_row(photo, [f for f in findings if number in f.photos and f.code not in OF_ALL]))
            number += 1
        else:
            rows.append(f"<li>{_remarks([_remark('error', str(photo))])}</li>")
    return f"<h3>The photo coach</h3>{_remarks(of_all)}<ol class='coached'>{''.join(rows)}</ol>"


def _row(photo: Prepared, findings: Sequence[Finding]) -> str:
    """A photo as training sees it, and beside it what concerns it."""
    file = io.BytesIO()
    photo.preview.resize((144, 144), Image.Resampling.LANCZOS).save(file, "JPEG", quality=80)
    name = html.escape(photo.name)
    remarks = [_remark(f.severity, _without(photo.name, f)) for f in findings]
    return (
        f"<li><img src='data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}' alt='Crop of {name}'>"
        f"<div><strong>{name}</strong>{_remarks(remarks) or ' <span>Good as it is.</span>'}</div></li>"
    )


def _without(name: str, finding: Finding) -> str:
    """What is said of a photo, where its name stands beside it."""
    about_one = finding.message.removeprefix(f"{name} ") if len(finding.photos) == 1 else finding.message
    return about_one[0].upper() + about_one[1:]


def _remark(kind: str, text: str) -> str:
    word = {"error": "Can't be used", "warning": "Better change", "tip": "Tip", "good": "Ready"}[kind]
    return f"<li class='{kind}'><strong>{word}</strong> {html.escape(text)}</li>"


def _remarks(items: Iterable[str]) -> str:
    lines = "".join(items)
    return f"<ul class='findings'>{lines}</ul>" if lines else ""


# ------------------------------------------------------------------------------------------------------------ words


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
