"""What a small picture's file may ask of its decoder: told from the file's structure, before a decoder is asked.

How many pixels a picture has is no bound on what it costs. A JPEG may repeat its scans, and be all markers; a GIF's
comments and a TIFF's or an EXIF block's entries may be read many times over. `check_structure` bounds the former, and
importing this module what Pillow reads of the latter, whoever opens a picture.
"""

import mmap
import re
import struct
from pathlib import Path
from typing import IO

from PIL import TiffImagePlugin

MAX_SCANS = 50
"""Of a JPEG. An ordinary progressive one has 10 (libjpeg's `jpeg_simple_progression`), and mozjpeg's have no more than
some 20; each costs a pass over the whole picture, 0.1 s at 120 megapixels."""
MAX_SEGMENTS = 5_000
"""Of a JPEG, before its pixels and between its scans. A phone's depth map comes in some 200, a colour profile in 255 at
most."""
MAX_CHUNKS = 200_000
"""Of a PNG; libpng writes 8 kB in each, which makes 45,000 of 120 megapixels."""
MAX_BLOCKS = 2**20
"""Of a GIF up to its second picture, 255 bytes each."""
MAX_COMMENT = 2**16
"""Bytes of a GIF's comments. Pillow copies all of a comment for each 255 bytes of it."""
MAX_ENTRIES, MAX_TILES = 4_096, 2**18
"""Of a TIFF, or of an EXIF block. 120 megapixels in tiles of 32 are 117,000."""
SLACK = 2**20
"""Bytes by which entries may name more than the file has: none do, unless they overlap."""

# Behind a marker that stands alone, or inside of a scan's data, the next: FF00 is the byte FF, and D0 to D7 belong to
# the data (ITU T.81, B.1.1).
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_ALONE = frozenset({0x01, 0xD8})
_STRIPS = (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS)
_SIZES = (TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.TILEBYTECOUNTS)


class BombError(ValueError):
    """A picture's file asks for more work or memory than any picture needs; the message goes on behind its name."""


def check_structure(path: Path) -> None:
    """Raise `BombError` for a JPEG, PNG or GIF whose structure makes decoding it cost far more than its pixels do.

    What is damaged is left to the decoder. Raises `OSError` where the file can't be read.
    """
    with path.open("rb") as file:
        head = file.read(8)
        check = next((check for magic, check in _CHECKS.items() if head.startswith(magic)), None)
        if check:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                check(data)


def _check_jpeg(data: mmap.mmap) -> None:
    """Count segments and scans as libjpeg meets them: to the end of the image, past whatever segments hold."""
    at, scans, segments = 2, 0, 0
    while found := _MARKER.search(data, at):
        kind, at = data[found.start() + 1], found.end()
        if kind == 0xD9:
            return
        segments += 1
        scans += kind == 0xDA
        if scans > MAX_SCANS:
            raise BombError(f"is a JPEG of more than {MAX_SCANS} scans")
        if segments > MAX_SEGMENTS:
            raise BombError(f"is a JPEG of more than {MAX_SEGMENTS:,} segments")
        if kind not in _ALONE:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))


def _check_png(data: mmap.mmap) -> None:
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise BombError(f"is a PNG of more than {MAX_CHUNKS:,} chunks")


def _check_gif(data: mmap.mmap) -> None:
    """Look as far as Pillow does: to the second picture, by which it tells whether there is one (GIF89a, 15 to 26)."""

    def palette(flags: int) -> int:
        return 3 * (2 << (flags & 7)) if flags & 0x80 else 0

    blocks = comment = pictures = 0
    at = 13 + palette(data[10] if len(data) > 10 else 0)
    while at + 10 < len(data) and pictures < 2 and data[at] != 0x3B:
        is_comment = data[at : at + 2] == b"!\xfe"
        if data[at] == 0x2C:
            pictures += 1
            at += 11 + palette(data[at + 9])
        elif data[at] == 0x21:
            at += 2
        else:  # Pillow passes over it
            at, blocks = at + 1, blocks + 1
            if blocks > MAX_BLOCKS:
                raise BombError(f"is a GIF of more than {MAX_BLOCKS:,} blocks")
            continue
        while at < len(data) and (size := data[at]):
            at += 1 + size
            blocks += 1
            comment += is_comment * size
            if comment > MAX_COMMENT:
                raise BombError(f"is a GIF with more than {MAX_COMMENT:,} bytes of comments")
            if blocks > MAX_BLOCKS:
                raise BombError(f"is a GIF of more than {MAX_BLOCKS:,} blocks")
        at += 1


_CHECKS = {b"\xff\xd8": _check_jpeg, b"\x89PNG\r\n\x1a\n": _check_png, b"GIF8": _check_gif}

# ------------------------------------------------------------------------------------------------------- TIFF and EXIF

_load = TiffImagePlugin.ImageFileDirectory_v2.load


def _load_bounded(self: TiffImagePlugin.ImageFileDirectory_v2, fp: IO[bytes]) -> None:
    """What Pillow reads of a TIFF's tags, and of every format's EXIF, where that is no more than the file holds.

    Pillow keeps a copy of each entry's bytes, of which all may be the same ones: 30,000 entries in 760 kB are 12 GB.
    """
    begin = fp.tell()
    end = fp.seek(0, 2)
    fp.seek(begin)
    number, entry = ("Q", "HHQ8s") if self._bigtiff else ("H", "HHL4s")
    size = struct.calcsize(self._endian + entry)
    head = fp.read(struct.calcsize(self._endian + number))
    count = int.from_bytes(head, "big" if self._endian == ">" else "little")
    if count > MAX_ENTRIES:
        raise BombError(f"has a directory of {count:,} entries")
    table, named = fp.read(size * count), 0
    for tag, kind, length, _ in struct.iter_unpack(self._endian + entry, table[: len(table) // size * size]):
        if tag in (*_STRIPS, *_SIZES) and length > MAX_TILES:
            raise BombError(f"is a TIFF of {length:,} pieces")
        held = length * self._load_dispatch.get(kind, (0,))[0]
        named += held if held <= end else 0  # Pillow ends at what the file has not
    if named > end + SLACK:
        raise BombError(f"has entries that name {named:,} bytes, more than it has")
    fp.seek(begin)
    _load(self, fp)
    for tag in _SIZES:
        sizes = self.get(tag, 0)
        if isinstance(sizes, tuple) and sum(size for size in sizes if isinstance(size, int)) > end + SLACK:
            raise BombError("is a TIFF whose pieces overlap")


TiffImagePlugin.ImageFileDirectory_v2.load = _load_bounded  # type: ignore[method-assign]
