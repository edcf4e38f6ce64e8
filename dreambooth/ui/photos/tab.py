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
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw, ImageFont

from dreambooth import toybox
from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import MOST_SUBJECTS, Config, together_prompt
from dreambooth.errors import ConfigError, PhotoError
from dreambooth.photos.coach import Finding, coach
from dreambooth.photos.prepare import IMAGE_SUFFIXES, SHOWN, Crop, Prepared, show_crop
from dreambooth.toybox.identities import CLASSES
from dreambooth.ui.doors.limits import MAX_SUBJECTS
from dreambooth.ui.inputs import numbers, said
from dreambooth.ui.photos import crops as boxes
from dreambooth.ui.photos import identifier as lookup
from dreambooth.ui.photos.crops import Boxes, Editor, Photos, aligned, prepared
from dreambooth.ui.report import counted
from dreambooth.ui.studio import QUIET, Studio, Upload, in_plain_words, refuse_too_many

SUBJECTS = Path(toybox.__file__).parent / "subjects"
PEOPLE_AND_MORE = ("person", "toy", "watch", "shoe", "bottle", "plant")
OF_ALL = ("too_few", "too_many", "same_background", "same_pose")
"""Findings about the photos as a set."""
WAITING = """<div class="empty"><strong>No photos yet.</strong> Drop three to five, each from another angle and in
another place: that is how the model tells your subject from its surroundings.</div>"""
MORE_STEPS = "Several subjects take more steps: two about four times as many as one."
"""Said where there are several. Source: `python -m benchmarks.two_subjects`, 800 steps beside the toybox's 200."""
CHOOSE = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-subject]");
  if (button) trigger("click", {subject: Number(button.dataset.subject), act: button.dataset.act});
});"""
"""Tells which button of which subject in the list was clicked."""


@dataclass(frozen=True)
class Kept:
    """A subject that is set aside while another one is filled in."""

    photos: tuple[str, ...]
    crops: Boxes
    identifier: str
    class_noun: str


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
        with gr.Column(scale=3, min_width=320):
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
        with gr.Column(scale=2, min_width=300):
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
    given = [subject.identifier, subject.class_noun, subject.new_word, subject.photos, subject.kept]
    changes = [*(part.change for part in given[:-1]), subject.changed.change]
    gr.on(changes, show_prompts, given, prompts, trigger_mode="always_last", **QUIET)


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
    loud = {"show_progress": "hidden", "api_visibility": "private"}  # queued: Gradio 6.31 shows no errors of others
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


# -------------------------------------------------------------------------------------------------- several subjects


@dataclass(frozen=True)
class Several:
    """What is done with subjects that are set aside; a handler gives the form and those set aside."""

    studio: Studio
    gallery: gr.Gallery

    @in_plain_words
    def set_aside(
        self, photos: Photos | None, crops: Boxes, identifier: str | None, class_noun: str | None, kept: list[Kept]
    ) -> list[Any]:
        """Keep the subject that is in the form, and empty it for another one."""
        kept = [*kept, self._checked(photos, crops, identifier, class_noun, kept)]
        taken = {one.identifier for one in kept}
        word = next((word for word in lookup.RARE_WORDS if word not in taken), "")
        return [None, {}, word, class_noun, kept]

    @in_plain_words
    def act(
        self,
        photos: Photos | None,
        crops: Boxes,
        identifier: str | None,
        class_noun: str | None,
        kept: list[Kept],
        event: gr.EventData,
    ) -> list[Any]:
        """Remove a subject, or take it into the form, whose own takes its place."""
        [number] = numbers(event, "subject", 1)
        if number not in range(len(kept)):  # gone meanwhile
            return [gr.skip()] * 5
        chosen, others = kept[number], [*kept[:number], *kept[number + 1 :]]
        if said(event, "act") == "remove":
            return [*[gr.skip()] * 4, others]
        if photos:
            others.insert(number, self._checked(photos, crops, identifier, class_noun, others))
        moved = {path: self.gallery.move_resource_to_block_cache(path) for path in chosen.photos}
        boxes = {moved[path]: crop for path, crop in chosen.crops.items()}
        return [list(moved.values()), boxes, chosen.identifier, chosen.class_noun, others]

    def show(self, kept: list[Kept], new_word: bool) -> str:
        """The list of those set aside."""
        return subjects_html(self.studio.resolution, kept, new_word)

    def _checked(
        self, photos: Photos | None, crops: Boxes, identifier: str | None, class_noun: str | None, kept: list[Kept]
    ) -> Kept:
        """The subject in the form; raises `DreamBoothError` for what no training would take."""
        if not photos:
            raise PhotoError("There are no photos of this subject yet.", "Add 3 to 5 before you go on to another one.")
        given = words(identifier, class_noun)
        subject = Kept(tuple(path for path, _ in photos), crops, **{name: word.strip() for name, word in given.items()})
        if subject.identifier in {one.identifier for one in kept}:
            raise ConfigError(f"Another subject is called {subject.identifier} already.", "Give each its own word.")
        most = MAX_SUBJECTS if self.studio.public else MOST_SUBJECTS
        if len(kept) + 2 > most:
            raise ConfigError(f"A run takes {most} subjects at most here.", "Train the others in a run of their own.")
        refuse_too_many(*(one.photos for one in (*kept, subject)))
        for path in subject.photos:
            prepared(path, self.studio.resolution, crops.get(path))
        return subject


def subjects_html(resolution: int, kept: Sequence[Kept], new_word: bool = False) -> str:
    """The subjects that are set aside, each with a photo and buttons; nothing where there are none. Identifiers are as
    training writes them, in angle brackets where they become new words."""
    rows = []
    for number, one in enumerate(kept):
        first = prepared(one.photos[0], resolution, one.crops.get(one.photos[0]))
        identifier = lookup.as_word(one.identifier) if new_word else one.identifier
        name = html.escape(f"{identifier} {one.class_noun}", quote=True)
        buttons = "".join(
            f"<button type='button' data-subject='{number}' data-act='{act}' aria-label='{what} {name}'>{what}</button>"
            for act, what in (("change", "Change"), ("remove", "Remove"))
        )
        count = counted(len(one.photos), "photo") + ("" if number else " · the first, which is measured")
        rows.append(f"<li>{_thumbnail(first)}<span><strong>{name}</strong><small>{count}</small></span>{buttons}</li>")
    if not rows:
        return ""
    return f"<h3 class='heading'>In the same training</h3><ul class='subjects'>{''.join(rows)}</ul>"


def taught(
    photos: Photos | None,
    crops: Boxes,
    identifier: str | None,
    class_noun: str | None,
    kept: Sequence[Kept],
    new_word: bool = False,
    given_crops: list | None = None,
) -> tuple[list[Upload], list[dict[str, str]]]:
    """The photos and the words of every subject: of those set aside, and of the one in the form unless it is empty.

    `given_crops` are an API caller's, for the form's photos. Raises `DreamBoothError` for words that are missing, and
    boxes that are none.
    """
    uploads = [Upload(one.photos, [one.crops.get(path) for path in one.photos]) for one in kept]
    said = [words(one.identifier, one.class_noun, new_word) for one in kept]
    if photos or not kept:
        uploads.append(Upload([path for path, _ in photos or []], aligned(photos, crops, given_crops)))
        said.append(words(identifier, class_noun, new_word))
    return uploads, said


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
    name = html.escape(photo.name)
    remarks = [_remark(f.severity, _without(photo.name, f)) for f in findings]
    said = _remarks(remarks) or " <span>Good as it is.</span>"
    return f"<li>{_thumbnail(photo)}<div><strong>{name}</strong>{said}</div></li>"


def _thumbnail(photo: Prepared) -> str:
    file = io.BytesIO()
    photo.preview.resize((144, 144), Image.Resampling.LANCZOS).save(file, "JPEG", quality=80)
    name, data = html.escape(photo.name, quote=True), base64.b64encode(file.getvalue()).decode()
    return f"<img src='data:image/jpeg;base64,{data}' alt='Crop of {name}'>"


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


def show_prompts(
    identifier: str | None,
    class_noun: str | None,
    new_word: bool = False,
    photos: Photos | None = None,
    kept: Sequence[Kept] = (),
) -> str:
    """The prompts that the words of all subjects make, as HTML, or what is wrong with the words."""
    try:
        _, said = taught(photos, {}, identifier, class_noun, kept, new_word)
        subject, *more = ({"photos": "."} | one for one in said)
        method = "custom_diffusion" if new_word else "full"  # which refuses what is no new word
        config = Config.from_dict(
            {"base_model": TOYBOX, "method": method, "subject": subject, "more_subjects": more}, source="Words"
        )
    except ConfigError as error:
        return f"<div class='empty'>{html.escape(str(error))}</div>"
    one = len(said) == 1
    rows = [
        ("Your subject will be" if one else "Your subjects will be", config.instance_prompts),
        ("Its class stays" if len(config.class_prompts) == 1 else "Their classes stay", config.class_prompts),
        *([] if one else [("Together they are", [together_prompt(config.subjects)])]),
    ]
    asides = [
        *([] if photos or not kept else ["The subject in the form counts once it has photos."]),
        *([] if one else [MORE_STEPS]),
    ]
    cells = "".join(
        f"<dt>{label}</dt>{''.join(f'<dd>{html.escape(prompt)}</dd>' for prompt in prompts)}" for label, prompts in rows
    )
    return f"<dl class='prompts'>{cells}</dl>" + "".join(f"<p class='aside'>{said}</p>" for said in asides)


def words(identifier: str | None, class_noun: str | None, new_word: bool = False) -> dict[str, str]:
    """Identifier, in angle brackets where it becomes a new word, and class noun as settings; raises `ConfigError`
    where one is not given."""
    if not (class_noun or "").strip():
        raise ConfigError("The class noun is empty.", "Say what kind of thing your subject is: dog, backpack, person.")
    if not (identifier or "").strip():
        raise ConfigError("The identifier is empty.", "Give a rare word that will mean your subject, such as sks.")
    return {"identifier": lookup.as_word(identifier) if new_word else identifier, "class_noun": class_noun}
