"""Several subjects of one training: set aside, taken up again, removed, and their list on the page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.config.sections import MOST_SUBJECTS
from dreambooth.errors import ConfigError, PhotoError
from dreambooth.ui import in_plain_words, served
from dreambooth.ui.doors.limits import MAX_SUBJECTS
from dreambooth.ui.inputs import numbers, said
from dreambooth.ui.photos import identifier as lookup
from dreambooth.ui.photos.advice import thumbnail
from dreambooth.ui.photos.crops import Boxes, Photos, prepared
from dreambooth.ui.photos.taught import Kept, words
from dreambooth.ui.photos.uploads import refuse_too_many
from dreambooth.ui.report import counted
from dreambooth.ui.studio import Studio


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
        moved = {path: served(self.gallery, path) for path in chosen.photos}
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
        rows.append(f"<li>{thumbnail(first)}<span><strong>{name}</strong><small>{count}</small></span>{buttons}</li>")
    if not rows:
        return ""
    return f"<h3 class='heading'>In the same training</h3><ul class='subjects'>{''.join(rows)}</ul>"
