"""Who or what is taught: the words and the photos of every subject, and the prompts that they make."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import Config
from dreambooth.config.subject import together_prompt
from dreambooth.errors import ConfigError
from dreambooth.ui.photos import identifier as lookup
from dreambooth.ui.photos.crops import Boxes, Photos, aligned
from dreambooth.ui.photos.uploads import Upload

MORE_STEPS = "Several subjects take more steps: two about four times as many as one."
"""Said where there are several. Source: `python -m benchmarks.two_subjects`, 800 steps beside the toybox's 200."""


@dataclass(frozen=True)
class Kept:
    """A subject that is set aside while another one is filled in."""

    photos: tuple[str, ...]
    crops: Boxes
    identifier: str
    class_noun: str


def taught(
    photos: Photos | None,
    crops: Boxes,
    identifier: str | None,
    class_noun: str | None,
    kept: Sequence[Kept],
    new_word: bool = False,
    given_crops: list[Any] | None = None,
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
    if not class_noun or not class_noun.strip():
        raise ConfigError("The class noun is empty.", "Say what kind of thing your subject is: dog, backpack, person.")
    if not identifier or not identifier.strip():
        raise ConfigError("The identifier is empty.", "Give a rare word that will mean your subject, such as sks.")
    return {"identifier": lookup.as_word(identifier) if new_word else identifier, "class_noun": class_noun}
