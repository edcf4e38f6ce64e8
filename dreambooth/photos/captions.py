"""What each photo is captioned with: the text file beside it, or its row of a table, as people bring them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dreambooth.config.subject import SubjectConfig, fields_of
from dreambooth.errors import PhotoError, first_line
from dreambooth.files import read_text
from dreambooth.photos.folder import TEXTS, find_photos, join_names

SUFFIXES = (".txt", ".caption")
"""Of text files: dog1.txt, dog1.caption or dog1.jpg.txt for dog1.jpg. Source: what kohya-ss/sd-scripts and the tools
that write captions for it leave."""
TABLES = ("metadata.jsonl", "metadata.csv")
"""Source: the `imagefolder` of the library `datasets`: a row for each picture, its name under `file_name`."""
COLUMNS = ("text", "caption", "prompt")
"""Where a row has its caption, the first that is there. Source: diffusers' scripts, `text`; others, data on the Hub."""

_PLAIN = "Write plain text; {identifier} and {class_noun} are filled in."


class Caption(NamedTuple):
    """A caption as it was found."""

    source: str
    """The file, and where it is a table the row's name."""
    text: str
    """On one line, nothing filled in."""


class Found(NamedTuple):
    """What a folder of photos says of them."""

    captions: dict[Path, Caption]
    """By photo; those without one are not here."""
    left_over: list[str]
    """Captions that belong to no photo, and other texts."""


def caption_photos(subject: SubjectConfig, photos: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The prompt that each photo is trained with, and what is to be said of them, in sentences.

    Raises `PhotoError` for captions that can't be used, for one that does not name the subject, and where they are
    asked for and there is none.
    """
    plain = subject.fill(subject.instance_prompt)
    if not subject.captions:
        try:
            count = len(find_captions(subject.photos, photos).captions)
        except PhotoError:  # nobody asked for them
            count = 0
        unused = (
            f"{count} of {len(photos)} photos have a caption beside them, which is not used: subject.captions is off."
        )
        return [plain] * len(photos), [unused] if count else []
    captions, left_over = find_captions(subject.photos, photos)
    if not captions:
        left_over += sorted(f"{p.parent.name}/{p.name}" for p in subject.photos.glob("*/*") if p.suffix in SUFFIXES)
        others = f"; there are {join_names(left_over)}" if left_over else ""
        raise PhotoError(
            f"{subject.photos}: subject.captions is on, but no photo has a caption{others}.",
            f"Write {photos[0].stem}.txt for {photos[0].name} and so on, or set subject.captions: false.",
        )
    remarks = []
    if bare := [photo.name for photo in photos if photo not in captions]:
        which = f"{join_names(bare)} {'has' if len(bare) == 1 else 'have'} no caption"
        remarks.append(f"{which}: trained with {plain!r}.")
    if left_over:
        remarks.append(f"{join_names(left_over)}: taken for no photo's caption.")
    filled = {photo: _filled(subject, caption) for photo, caption in captions.items()}
    return [filled.get(photo, plain) for photo in photos], remarks


def sources_of(subject: SubjectConfig) -> dict[str, str]:
    """What training on a subject rests on: by the name of each photo a hash of its file and of its prompt.

    Raises `PhotoError` where there are no photos, or their captions can't be used.
    """
    photos = find_photos(subject.photos)
    prompts, _ = caption_photos(subject, photos)
    pairs = zip(photos, prompts, strict=True)
    return {path.name: hashlib.sha256(path.read_bytes() + prompt.encode()).hexdigest() for path, prompt in pairs}


def find_captions(folder: Path, photos: Sequence[Path]) -> Found:
    """The captions of a folder's photos. Names match whatever their case, and however their accents are stored.

    Raises `PhotoError` for a text that can't be read and a photo with two different captions.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    names = [name for name in names if Path(name).suffix.lower() in TEXTS]
    tables = [name for name in names if name.lower() in TABLES]
    files = {name for name in names if Path(name).suffix.lower() in SUFFIXES}
    alike, rows, telling = defaultdict(list), defaultdict(list), set()
    for name in sorted(files):
        alike[_plain(name)].append(name)
    for table in tables:
        for name, text in _rows(folder / table):
            rows[_plain(name)].append(Caption(f"{table}: {name}", text))
            telling.add(table)
    used, captions = set(), {}
    for photo in photos:
        wanted = [stem + suffix for stem in (photo.stem, photo.name) for suffix in SUFFIXES]
        mine = [name for name in wanted if name in files] or [name for one in wanted for name in alike[_plain(one)]]
        found = [*(Caption(name, _read(folder / name)) for name in mine), *rows[_plain(photo.name)]]
        used |= {caption.source for caption in found}
        if len({caption.text for caption in found}) > 1:
            raise PhotoError(
                f"{photo.name} has different captions: {join_names([caption.source for caption in found])}.",
                "Keep one of them.",
            )
        if found:
            captions[photo] = found[0]
    others = [name for name in names if name not in telling]
    others += [caption.source for listed in rows.values() for caption in listed]
    return Found(captions, [name for name in others if name not in used])


def _plain(name: str) -> str:
    """A file's name for comparisons: Windows and macOS keep its case but do not tell by it, and macOS takes é apart."""
    return unicodedata.normalize("NFC", name).casefold()


def _read(path: Path) -> str:
    try:
        return " ".join(read_text(path).split())
    except (OSError, ValueError) as error:
        raise PhotoError(f"{path.name}: can't be read ({first_line(error)}).", _PLAIN) from None


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    """A table's file names and captions; rows without a caption have none."""
    try:
        text = read_text(path)
        if path.suffix.lower() == ".csv":
            header = text.partition("\n")[0]
            between = max(",;\t", key=header.count)  # spreadsheets write semicolons where the comma is in numbers
            rows = list(csv.DictReader(io.StringIO(text), delimiter=between, strict=True))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        for row in rows:
            caption = next((row[column] for column in COLUMNS if row.get(column) is not None), None)
            if caption is not None:
                yield str(row["file_name"]), " ".join(str(caption).split())
    except (OSError, ValueError, LookupError, AttributeError, TypeError, csv.Error, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise PhotoError(
            f"{path.name}: can't be read ({said}).", "Give each row a file_name and a text, or remove the file."
        ) from None


def _filled(subject: SubjectConfig, caption: Caption) -> str:
    """A caption as a prompt; raises `PhotoError` where it is none, or does not name the subject."""
    if not caption.text:
        raise PhotoError(f"{caption.source}: is empty.", "Say what the photo shows, or remove it.")
    try:
        unknown = fields_of(caption.text) - {"identifier", "class_noun"}
    except ValueError as error:
        raise PhotoError(f"{caption.source}: can't be used as a caption ({error}).", _PLAIN) from None
    if unknown:
        raise PhotoError(f"{caption.source}: can't be used as a caption (it has {{{min(unknown)}}}).", _PLAIN)
    prompt = subject.fill(caption.text)
    if not subject.is_named_in(prompt):
        raise PhotoError(
            f"{caption.source}: does not hold the identifier {subject.identifier!r} as a word of its own.",
            "Write {identifier} where the subject is named.",
        )
    return prompt
