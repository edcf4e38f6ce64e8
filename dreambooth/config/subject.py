"""The settings of one subject, and its name in prompts."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator

from dreambooth.config.validation import Settings

Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
Crop = tuple[int, int, int, int]


def is_new_word(text: str) -> bool:
    """Whether it is written as new words of a vocabulary are: in angle brackets and, as CLIP's tokenizer takes all
    text, in small letters."""
    return re.fullmatch(r"<[\w-]+>", text) is not None and text == text.lower()


def identifier_in(identifier: str) -> re.Pattern[str]:
    """What finds the identifier as a word of its own in a prompt: `sks` is not in "desks", and SKS is the same word, as
    CLIP's tokenizer takes all text in small letters."""
    return re.compile(rf"(?<!\w){re.escape(identifier)}(?!\w)", re.IGNORECASE)


def fields_of(template: str) -> set[str]:
    """What `template` asks to be filled in; raises `ValueError` for an unmatched brace."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r} has an unmatched brace ({error})") from None
    # `{identifier:>9999999}` would be taken by str.format; a prompt needs names alone.
    return {
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in parsed
        if name is not None
    }


class SubjectConfig(Settings):
    """Who or what the model is taught."""

    photos: Path = Field(description="Folder with the subject's photos; the paper uses 3 to 5.")
    identifier: str = Field(
        "sks",
        min_length=1,
        max_length=60,
        description="The rare word that will mean this subject; `tokens` advises. Source: paper §3.2; `sks` is the "
        "word of most published runs.",
    )
    class_noun: str = Field(
        min_length=1, max_length=60, description="What kind of thing it is, in a word or two: dog, backpack, person."
    )
    instance_prompt: Prompt = Field(
        "a photo of {identifier} {class_noun}",
        description="What every photo of the subject is captioned with. Source: paper §3.2, 'a [identifier] [class "
        "noun]'.",
    )
    captions: bool = Field(
        False,
        description="Caption each photo with the text file of its name (dog1.txt, dog1.caption or dog1.jpg.txt for "
        "dog1.jpg) or its row in metadata.jsonl or metadata.csv (file_name, text), which may use {identifier} and "
        "{class_noun}; photos without one keep the instance prompt.",
    )
    crops: dict[str, Crop] = Field(
        default_factory=dict,
        description="Square crop boxes by photo file name, (left, top, right, bottom) in pixels of the upright photo; "
        "photos not named are cropped around what stands out.",
    )

    @field_validator("photos", mode="before")
    @classmethod
    def _not_blank(cls, path: Any) -> Any:
        if path is None or (isinstance(path, str) and not path.strip()):
            raise ValueError("is empty; give the folder that holds the photos")
        return path

    @field_validator("identifier", "class_noun")
    @classmethod
    def _plain_words(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is empty; give a word")
        if any(c in text for c in "{}\n\r\t") or not text.isprintable():
            raise ValueError(f"{text!r} holds braces, a line break or unprintable characters; give plain words")
        return text.strip()

    @field_validator("instance_prompt")
    @classmethod
    def _names_the_identifier(cls, template: str) -> str:
        if unknown := fields_of(template) - {"identifier", "class_noun"}:
            raise ValueError(f"uses {{{min(unknown)}}}; only {{identifier}} and {{class_noun}} are filled in")
        return template

    def fill(self, template: str) -> str:
        """`template` with {identifier} and {class_noun} filled in."""
        return template.format(identifier=self.identifier, class_noun=self.class_noun)

    def is_named_in(self, prompt: str) -> bool:
        """Whether a prompt, filled in, holds the identifier as a word of its own."""
        return identifier_in(self.identifier).search(prompt) is not None

    def without_identifier(self, prompt: str) -> str:
        """A prompt, filled in, less the identifier, which means nothing to a CLIP that judges by the words."""
        return " ".join(identifier_in(self.identifier).sub("", prompt).split())


def together_prompt(subjects: Iterable[SubjectConfig]) -> str:
    """What a picture of all the subjects is captioned with."""
    return f"a photo of {' and '.join(subject.fill('{identifier} {class_noun}') for subject in subjects)}"
