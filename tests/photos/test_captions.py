"""Captions: in every layout and encoding that people bring they are read, or it is said what was not taken."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth.config.subject import SubjectConfig
from dreambooth.errors import PhotoError
from dreambooth.photos.captions import caption_photos, find_captions
from dreambooth.photos.folder import find_photos
from tests.test_files import SAVED

PLAIN = "a photo of sks dog"


@pytest.fixture
def captioned(tmp_path):
    """A function that makes a folder of photos and other files, and gives the prompts and what is said."""

    def make(files: dict[str, str], photos: tuple[str, ...] = ("dog0.jpg", "dog1.JPG"), **settings):
        for name in photos:
            (tmp_path / name).write_bytes(b"a photo")
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        subject = SubjectConfig(**{"photos": tmp_path, "class_noun": "dog", "captions": True} | settings)
        return caption_photos(subject, find_photos(tmp_path))

    return make


NAMES = [
    "dog0.txt",
    "dog0.TXT",
    "DOG0.txt",
    "dog0.caption",
    "dog0.Caption",
    "dog0.jpg.txt",
    "dog0.JPG.caption",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_file_beside_the_photo_is_its_caption(captioned, name):
    prompts, said = captioned({name: "{identifier} {class_noun} on\na  beach\n"})
    assert prompts == ["sks dog on a beach", PLAIN]
    assert said == [f"dog1.JPG has no caption: trained with {PLAIN!r}."]


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv", "METADATA.CSV"])
def test_a_table_captions_the_photos_that_it_names(captioned, table, column):
    rows = {"dog0.jpg": "sks dog, wet", "dog1.jpg": "{identifier} asleep"}
    lines = [json.dumps({"file_name": name, column: text}) for name, text in rows.items()]
    if table.lower().endswith("csv"):
        lines = [f"file_name,{column}", *(f'{name},"{text}"' for name, text in rows.items())]
    assert captioned({table: "\n".join(lines)}) == (["sks dog, wet", "sks asleep"], [])


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_table_of_a_spreadsheet_may_have_other_separators(captioned, between):
    table = f'file_name{between}text\r\ndog0.jpg{between}"sks, wet{between} cold"\r\ndog1.JPG{between}sks\r\n'
    assert captioned({"metadata.csv": table})[0] == [" ".join(f"sks, wet{between} cold".split()), "sks"]


def test_a_table_without_captions_does_not_stand_in_the_way_of_others(captioned):
    prompts, said = captioned({"metadata.csv": "file_name,label\ndog0.jpg,3", "dog0.txt": "sks", "dog1.txt": "sks"})
    assert (prompts, said) == (["sks", "sks"], ["metadata.csv: taken for no photo's caption."])


@pytest.mark.parametrize("encode", SAVED.values(), ids=SAVED)
def test_captions_are_read_as_every_editor_saves_them(captioned, tmp_path, encode):
    (tmp_path / "dog0.txt").write_bytes(encode("{identifier} dog à la plage\r\n"))
    assert captioned({})[0] == ["sks dog à la plage", PLAIN]


def test_an_encoding_that_can_only_be_guessed_is_refused_by_name(captioned, tmp_path):
    (tmp_path / "dog0.txt").write_bytes("sks собака".encode("cp1251"))
    with pytest.raises(PhotoError, match=r"dog0\.txt: can't be read \(line 1 is not UTF-8 text; save the file as UTF"):
        captioned({})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(
    name=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12), form=st.sampled_from(["NFC", "NFD"])
)
def test_a_name_is_the_same_however_its_accents_and_case_are_stored(tmp_path_factory, name, form):
    folder = tmp_path_factory.mktemp("named")
    photo = folder / f"{unicodedata.normalize('NFC', name)}.jpg"
    photo.write_bytes(b"")
    (folder / f"{unicodedata.normalize(form, name)}.txt").write_text("sks")
    assert [caption.text for caption in find_captions(folder, [photo]).captions.values()] == ["sks"]


def test_the_very_name_goes_before_one_of_another_case(captioned):
    photos = ("Dog.jpg", "dog.jpg")
    prompts, said = captioned({"Dog.txt": "sks, large", "dog.txt": "sks, small"}, photos)
    assert sorted(prompts) == ["sks, large", "sks, small"]
    assert said == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no photo has a caption. Write dog0.txt for dog0.jpg"),
        ({"cat.txt": "a cat", "tags.json": "{}"}, "no photo has a caption; there are cat.txt and tags.json. Write"),
        ({"metadata.jsonl": '{"file_name": "dog7.jpg", "text": "sks"}'}, "there are metadata.jsonl: dog7.jpg. Write"),
        ({"dog0.txt": "sks in snow", "dog0.caption": "sks in sun"}, "dog0.jpg has different captions: dog0.txt and"),
        ({"dog0.txt": "sks", "metadata.csv": "file_name,text\ndog0.jpg,a sks"}, "and metadata.csv: dog0.jpg. Keep"),
        ({"metadata.csv": "file_name,label\ndog0.jpg,3"}, "no photo has a caption; there are metadata.csv. Write"),
        ({"captions/dog0.txt": "sks", "captions/a.txt": "sks"}, "there are captions/a.txt and captions/dog0.txt."),
        ({"dog0.txt": " \n"}, "dog0.txt: is empty"),
        ({"dog0.txt": "a dog under two desks"}, "dog0.txt: does not hold the identifier 'sks' as a word of its own"),
        ({"dog0.txt": "a {noun} of sks"}, "dog0.txt: can't be used as a caption (it has {noun})"),
        ({"dog0.txt": "sks {identifier.upper}"}, "(it has {identifier.upper})"),
        ({"dog0.txt": "sks {identifier:>9999999}"}, "(it has {identifier:>9999999})"),
        ({"dog0.txt": "sks {"}, "dog0.txt: can't be used as a caption"),
        ({"metadata.jsonl": "sks"}, "metadata.jsonl: can't be read"),
        ({"metadata.jsonl": "[1]"}, "metadata.jsonl: can't be read"),
        ({"metadata.jsonl": '{"text": "sks"}'}, "metadata.jsonl: can't be read (no 'file_name'). Give each row a"),
        ({"metadata.csv": "name,text\ndog0.jpg,sks"}, "metadata.csv: can't be read (no 'file_name')"),
    ],
)
def test_captions_that_are_asked_for_are_found_or_it_is_said_why_not(captioned, files, words):
    with pytest.raises(PhotoError) as caught:
        captioned(files)
    assert words in str(caught.value)


def test_what_belongs_to_no_photo_is_said(captioned):
    prompts, said = captioned(
        {
            "dog0.txt": "sks",
            "dog1.txt": "sks dog",
            "dog2.txt": "sks",
            "notes.md": "",
            ".hidden.txt": "",
            "metadata.jsonl": '{"file_name": "dog1.JPG", "text": "sks dog"}\n\n'
            '{"file_name": "x/dog0.jpg", "text": "a"}\n',
        }
    )
    assert prompts == ["sks", "sks dog"]
    assert said == ["dog2.txt, notes.md and metadata.jsonl: x/dog0.jpg: taken for no photo's caption."]


def test_captions_that_nobody_asked_for_are_said_to_be_unused(captioned):
    prompts, said = captioned({"dog0.caption": "desks"}, captions=False)
    assert prompts == [PLAIN, PLAIN]
    assert said == ["1 of 2 photos have a caption beside them, which is not used: subject.captions is off."]
    assert captioned({"dog0.txt": "another"}, captions=False)[1] == [], "whatever they say, nobody asked"


def test_a_folder_without_captions_is_nothing_to_talk_about(captioned):
    assert captioned({"readme.txt": "my dog"}, captions=False) == ([PLAIN, PLAIN], [])


def test_the_photos_folder_may_be_relative(captioned, tmp_path, monkeypatch):
    captioned({"dog0.txt": "sks", "dog1.txt": "sks"})
    monkeypatch.chdir(tmp_path)
    subject = SubjectConfig(photos=Path(), class_noun="dog", captions=True)
    assert caption_photos(subject, find_photos("."))[0] == ["sks", "sks"]
