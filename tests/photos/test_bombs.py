"""Small files that ask for gigabytes or minutes are refused by their structure; those of cameras and editors are read.

Times and memory are not measured: each attack is so much larger than what is accepted that decoding it would be felt.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dreambooth.errors import PhotoError
from dreambooth.photos import bombs, prepare
from dreambooth.photos import read as photos
from dreambooth.photos.bombs import BombError, check_structure
from dreambooth.photos.prepare import prepare_photo
from dreambooth.photos.read import MAX_ASPECT, open_photo, shown_pixels
from tests.pictures import encoded, scene

SIDE = 96


def scanned(scans: int) -> bytes:
    """A progressive grey JPEG with so many scans: its last one, a refinement of few bytes, again and again."""
    data = encoded(scene(1, SIDE).convert("L"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + data[-2:]


def with_segments(count: int) -> bytes:
    data = encoded(scene(1, SIDE), "JPEG")
    return data[:2] + b"\xff\xe5\0\2" * count + data[2:]


def with_comment(size: int) -> bytes:
    data = encoded(scene(1, SIDE), "GIF")
    at = 13 + 3 * (2 << (data[10] & 7))
    blocks, rest = divmod(size, 255)
    return data[:at] + b"!\xfe" + (b"\xff" + b"a" * 255) * blocks + bytes([rest]) + b"a" * rest + b"\0" + data[at:]


def with_chunks(count: int) -> bytes:
    data = encoded(scene(1, SIDE), "PNG")
    chunk = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    return data[:33] + chunk * count + data[33:]


def directory(tags: list[tuple[int, int, int, int]]) -> bytes:
    """A TIFF's directory: tag, kind, count and value or place of each entry (TIFF 6.0, 2)."""
    return struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHLL", *tag) for tag in tags) + bytes(4)


def exif(entries: int, size: int) -> bytes:
    """An EXIF block that turns the photo, and whose further entries all are the same bytes."""
    table = [(0x0112, 3, 1, 6), *((50_000 + n, 7, size, 10 + 12 * (entries + 1) + 6) for n in range(entries))]
    return b"II*\0" + struct.pack("<L", 8) + directory(table) + bytes(size)


def tiff(pieces: int, entries: int = 0, size: int = 0, overlap: bool = False) -> bytes:
    """A grey TIFF in so many pieces, with further entries of the same bytes each."""
    places, each = 40_000, SIDE * SIDE if overlap else SIDE * SIDE // pieces
    pixels = places + 8 * pieces
    table = [
        (256, 4, 1, SIDE),
        (257, 4, 1, SIDE),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, pieces, places if pieces > 1 else pixels),
        (278, 4, 1, max(1, SIDE // pieces)),
        (279, 4, pieces, places + 4 * pieces if pieces > 1 else each),
        *((50_000 + n, 7, size, pixels) for n in range(entries)),
    ]
    data = (b"II*\0" + struct.pack("<L", 8) + directory(table)).ljust(places, b"\0")
    step = 0 if overlap else each
    data += struct.pack(f"<{pieces}L", *(pixels + n * step for n in range(pieces))) + struct.pack("<L", each) * pieces
    return data + bytes(max(size, SIDE * SIDE))


BOMBS = {
    "scans.jpg": (scanned(bombs.MAX_SCANS + 1), "more than 50 scans"),
    "segments.jpg": (with_segments(bombs.MAX_SEGMENTS + 1), "more than 5,000 segments"),
    "comment.gif": (with_comment(bombs.MAX_COMMENT + 1), "more than 65,536 bytes of comments"),
    "junk.gif": (encoded(scene(1, SIDE), "GIF")[:-1] + bytes(bombs.MAX_BLOCKS + 99), "1,048,576 blocks"),
    "chunks.png": (with_chunks(bombs.MAX_CHUNKS), "more than 200,000 chunks"),
    "entries.tif": (tiff(1, 40, 2**20), "entries that name 41,"),
    "pieces.tif": (tiff(bombs.MAX_TILES + 1), "is a TIFF of 262,145 pieces"),
    "overlap.tif": (tiff(96 * 8, overlap=True), "pieces overlap"),
}
HONEST = {
    "scans.jpg": scanned(bombs.MAX_SCANS),
    "segments.jpg": with_segments(bombs.MAX_SEGMENTS // 2),
    "comment.gif": with_comment(bombs.MAX_COMMENT - 1),
    "chunks.png": with_chunks(bombs.MAX_CHUNKS // 100),
    "entries.tif": tiff(1, 1, 2**20),
    "pieces.tif": tiff(SIDE),
}


@pytest.mark.attack
@pytest.mark.parametrize("name", BOMBS)
def test_what_would_cost_far_more_than_its_pixels_is_refused_by_name(tmp_path, name):
    data, why = BOMBS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PhotoError, match=rf"^{name} .*{why}.* Save it anew") as told:
        open_photo(tmp_path / name)
    assert told.value.hint


@pytest.mark.parametrize("name", HONEST)
def test_what_is_within_the_bounds_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(HONEST[name])
    assert open_photo(tmp_path / name).size == (SIDE, SIDE)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"progressive": True, "quality": 100}])
def test_what_lies_in_or_behind_a_jpeg_is_not_taken_for_its_scans(tmp_path, options):
    """A camera's notes and the film that some append to a photo may hold any bytes."""
    looks_like_scans = b"\xff\xda\0\2" * 500
    data = encoded(scene(1, SIDE), "JPEG", **options)
    note = b"\xff\xe4" + struct.pack(">H", 2 + len(looks_like_scans)) + looks_like_scans
    (tmp_path / "motion.jpg").write_bytes(data[:2] + note + data[2:] + looks_like_scans)
    check_structure(tmp_path / "motion.jpg")
    assert open_photo(tmp_path / "motion.jpg").size == (SIDE, SIDE)


@pytest.mark.attack
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"dpi": None}), ("PNG", {}), ("WEBP", {})])
def test_notes_that_unfold_are_left_unread(tmp_path, monkeypatch, kind, options):
    """The photo is good; its EXIF alone would take memory without end, and is left out as damaged EXIF is."""
    copied = []
    monkeypatch.setattr(
        bombs,
        "_load",
        lambda directory, fp, load=bombs._load: (
            load(directory, fp),
            copied.append(sum(map(len, directory._tagdata.values()))),
        ),
    )
    oblong = scene(1, 200).crop((0, 0, 200, 100))
    for size, upright in ((2**6, (100, 200)), (2**15, (200, 100))):  # as it is turned, and as it lies
        path = tmp_path / f"{size}.{kind.lower()}"
        path.write_bytes(encoded(oblong, kind, exif=b"Exif\0\0" + exif(100, size)))
        assert open_photo(path).size == upright
    assert copied
    assert max(copied) < 100 * 2**6 + 99


@pytest.mark.attack
@pytest.mark.parametrize("shape", [(64, 64 * MAX_ASPECT + 1), (64 * MAX_ASPECT + 1, 64), (64, 60_000)])
def test_a_photo_as_long_as_a_thread_is_refused_before_a_pixel_is_decoded(tmp_path, monkeypatch, shape):
    path = tmp_path / "thread.png"
    Image.new("L", shape).save(path)
    monkeypatch.setattr(Image.Image, "resize", None)
    monkeypatch.setattr(photos, "_upright_rgb", None)
    with pytest.raises(PhotoError, match=rf"^thread\.png is too long: {shape[0]} x {shape[1]} .* Cut out the part"):
        prepare_photo(path, 64)


def test_a_panorama_is_no_thread(tmp_path):
    Image.new("RGB", (64 * MAX_ASPECT, 64)).save(tmp_path / "panorama.jpg")
    assert prepare_photo(tmp_path / "panorama.jpg", 64).crop.side == 64


def test_one_whole_photo_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """Whoever asks: also while its crop is looked for, and cut out."""
    Image.new("RGB", (100, 80)).save(tmp_path / "photo.png")
    seen = []
    monkeypatch.setattr(
        prepare,
        "subject_crop",
        lambda photo, look=prepare.subject_crop: (seen.append(photos.ONE_AT_A_TIME._is_owned()), look(photo))[1],
    )
    prepare_photo(tmp_path / "photo.png", 64)
    assert seen == [True]


def test_damage_is_left_to_the_decoder(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF"):
        data = encoded(scene(2, SIDE), kind)
        for _ in range(50):
            hurt = bytearray(data[: rng.integers(1, len(data))])
            hurt[rng.integers(0, len(hurt))] = rng.integers(0, 256)
            (tmp_path / "hurt").write_bytes(bytes(hurt))
            check_structure(tmp_path / "hurt")
    (tmp_path / "empty").write_bytes(b"")
    check_structure(tmp_path / "empty")
    with pytest.raises(OSError, match="gone"):
        check_structure(tmp_path / "gone")


@pytest.mark.attack
def test_a_photos_size_is_read_of_no_bomb_either(tmp_path):
    for name, count in (("comment.gif", bombs.MAX_COMMENT + 1), ("fair.gif", 99)):
        (tmp_path / name).write_bytes(with_comment(count))
    assert shown_pixels(tmp_path / "comment.gif") == (0, 0)
    assert shown_pixels(tmp_path / "fair.gif") == (SIDE, SIDE)


def test_every_module_that_opens_pictures_looks_at_strangers_first():
    """A module that opens pictures opens those of the program alone, or looks at their structure before."""
    own = {
        "sharing/card",
        "training/dataset",
        "evaluation/evaluate",
        "training/prior",
        "training/examples",
        "ui/compare/figures",
        "evaluation/reports/page",
        "evaluation/reports/gallery",
    }
    root = Path(bombs.__file__).parents[1]
    found = {}
    for path in root.rglob("*.py"):
        if "Image.open(" in (text := path.read_text(encoding="utf-8")):
            found[path.relative_to(root).with_suffix("").as_posix()] = (
                "check_structure(" in text or "shown_pixels(" in text
            )
    strangers = {name: looks for name, looks in found.items() if name not in own and not name.startswith("toybox")}
    assert set(strangers) == {"photos/read", "training/packs", "ui/generate/made_with"}, (
        "add a new one to `own`, or let it look first"
    )
    assert all(strangers.values())


def test_pillow_reads_directories_in_no_other_way():
    """A Pillow that renamed or split what is bounded here would be bounded no more."""
    assert TiffImagePlugin.ImageFileDirectory_v2.load is bombs._load_bounded
    notes = Image.Exif()
    with pytest.raises(BombError):
        notes.load(b"Exif\0\0" + exif(100, 2**15))
