"""Reading a photo that may be anybody's: checked before it is decoded, upright and in sRGB after."""

from __future__ import annotations

import functools
import struct
import threading
import warnings
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from dreambooth.errors import PhotoError
from dreambooth.photos.bombs import BombError, check_structure

# Only pure decoders: Pillow's EPS, WMF and similar readers start other programs or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
READABLE = "JPEG, PNG, WebP, HEIC, AVIF, GIF, BMP or TIFF"
# Takes the 108-megapixel phone sensors whole; at Pillow's 4 bytes a pixel that is 432 MB, up to three times over while
# a photo is converted and turned, and one photo is decoded at a time.
MAX_PIXELS = 120_000_000
# Long side to short side. Phones' panoramas are 5 : 1 at most; a crop of a longer photo shows little of it, and in a
# smaller copy whose short side is given a long one takes any memory.
MAX_ASPECT = 8
# The smallest size a base model here is trained at (64 px is an 8 x 8 latent for Stable Diffusion).
MIN_SIDE = 64
BETTER_FILE = f"Use a {READABLE} photo, or export it again from your photo app."
_SAVE_ANEW = "Save it anew from a photo app, or leave it out."
_FETCH_AGAIN = "Copy it again from the camera or phone, or leave it out."
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_UPRIGHT = {  # EXIF orientation -> what turns the stored pixels upright (Exif 2.32, tag 0x0112)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged files; they have no common class.
DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError)
DAMAGE += (ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error)
# Of each of a PNG's texts and its colour profile, unpacked; Pillow's own 1 MB is less than photo editors leave of their
# history, and a text may say which way is up. Larger ones are left out, unread.
PngImagePlugin.MAX_TEXT_CHUNK = 2**23
# `warnings.catch_warnings` is process-wide, and a whole photo is the memory peak: one at a time, until it is a crop.
ONE_AT_A_TIME = threading.RLock()


def open_photo(
    path: str | Path,
    *,
    min_side: int = MIN_SIDE,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> Image.Image:
    """Decode a photo to upright 8-bit sRGB without metadata: transparency on white, the first picture of several.

    Raises PhotoError, with the file's name and the reason, for whatever can't be read as a photo of one of Pillow's
    `formats`, has a side shorter than `min_side` pixels, is longer than `MAX_ASPECT` to 1, or would cost more to decode
    than such photos do.
    """
    return decode(Path(path), min_side, max_pixels, formats)[0]


def shown_pixels(path: str | Path) -> tuple[int, int]:
    """A photo's sides in pixels by its header alone, before it is turned upright; (0, 0) for what can't be read, which
    `open_photo` tells of."""
    formats = [*FORMATS, "HEIF"] if _register_heif() else FORMATS
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_structure(Path(path))
            with Image.open(path, formats=formats) as image:
                return image.size
        except (Image.DecompressionBombError, *DAMAGE):  # type: ignore[misc]  # classes of errors, all of them
            return 0, 0


def decode(
    path: Path, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> tuple[Image.Image, bool]:
    """Return the photo, and whether its file holds further frames or pages."""
    name = printable(path.name)
    formats = [*FORMATS, "HEIF"] if formats is FORMATS and _register_heif() else formats
    sides = min_side, max_pixels
    with ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check_file(path, name)
            check_structure(path)
            try:
                return _read(path, name, formats, *sides)
            except DAMAGE:  # of its texts alone, it may be
                if (pixels := _without_texts(path)) is None:
                    raise
                try:
                    return _read(pixels, name, formats, *sides)
                except DAMAGE:
                    pass
                raise
        except BombError as error:
            raise PhotoError(f"{name} {error}, which no camera or editor writes.", _SAVE_ANEW) from error
        except Image.DecompressionBombError as error:
            raise _too_large(name) from error
        except UnidentifiedImageError as error:
            raise _unidentified(path, name) from error
        except DAMAGE as error:
            if isinstance(error, OSError) and error.strerror:  # the system's word, not a decoder's
                raise PhotoError(f"{name} can't be read ({error.strerror}).", "Check its permissions.") from error
            reason = printable(str(error)) or type(error).__name__
            raise PhotoError(f"{name} is damaged or cut short ({reason}).", _FETCH_AGAIN) from error


def _read(
    file: Path | BytesIO, name: str, formats: Sequence[str], min_side: int, max_pixels: int
) -> tuple[Image.Image, bool]:
    with Image.open(file, formats=tuple(formats)) as image:
        _check_size(image.size, name, min_side, max_pixels)
        # A phone's JPEG or HEIC holds depth and gain maps beside the photo: not frames of an animation.
        several = image.format not in ("MPO", "HEIF") and getattr(image, "is_animated", False)
        image.load()
        return _upright_rgb(image), several


def _without_texts(path: Path) -> BytesIO | None:
    """A PNG less the chunks of which no pixel depends, none of them unpacked; None of other files and of one that has
    no such chunk.

    A chunk is its length, its type, its data and their checksum (PNG specification, 5.3).
    """
    with path.open("rb") as file:
        if file.read(8) != _PNG:
            return None
        data, kept, place = _PNG + file.read(), [_PNG], 8
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind not in _TEXT_CHUNKS:
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    whole = b"".join(kept)
    return BytesIO(whole) if len(whole) < len(data) else None


def _check_file(path: Path, name: str) -> None:
    if path.is_dir():
        raise PhotoError(f"{name} is a folder, not a photo.", "Give the photos inside it.")
    if not path.is_file():
        raise PhotoError(f"{name} is not there or is not a regular file.", "Check the path.")
    if path.stat().st_size == 0:
        raise PhotoError(f"{name} is empty (0 bytes).", _FETCH_AGAIN)


def _check_size(size: tuple[int, int], name: str, min_side: int, max_pixels: int) -> None:
    """Refuse by the header alone, before any pixel is decoded."""
    width, height = size
    if width * height > max_pixels:
        raise _too_large(name, max_pixels)
    if min(size) < min_side:
        raise PhotoError(
            f"{name} is too small: {width} x {height} pixels, and the short side needs at least {min_side}.",
            "Use the original photo, not its thumbnail.",
        )
    if max(size) > MAX_ASPECT * min(size):
        raise PhotoError(
            f"{name} is too long: {width} x {height} pixels are more than {MAX_ASPECT} : 1.",
            "Cut out the part that shows your subject.",
        )


def _too_large(name: str, max_pixels: int = MAX_PIXELS) -> PhotoError:
    limit = max_pixels // 1_000_000
    return PhotoError(f"{name} has more than {limit} megapixels.", "Export it smaller: 4000 pixels a side is plenty.")


def _unidentified(path: Path, name: str) -> PhotoError:
    """Say what a file is that no decoder takes, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis") and not _register_heif():
        return PhotoError(f"{name} is a HEIC photo, which needs one more package.", "Run: pip install pillow-heif")
    if all(byte in b"\t\n\r\f" or byte >= 0x20 for byte in head):
        return PhotoError(f"{name} holds text, not a picture.", BETTER_FILE)
    return PhotoError(f"{name} is no picture that can be read here, or its beginning is damaged.", BETTER_FILE)


@functools.cache
def _register_heif() -> bool:
    """Give Pillow its HEIC decoder where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Turn a decoded picture upright, into 8-bit sRGB, and drop everything that is not pixels."""
    turn = _turn(image)
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _deep_grey_to_8_bit(image)
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer.getchannel("A"))
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    image = _to_srgb(image, profile)
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}  # `convert`, `transpose` and `resize` hand comments, EXIF and text chunks on
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:
        return None  # unreadable EXIF is no reason to refuse a readable photo


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit or float greys by their range's white; Pillow's own conversion clips them at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:  # the file does not say: the smallest usual range that holds its brightest value
        ranges = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
        peak = float(values.max())
        white = next((top for top in ranges if peak <= top), peak)
    return Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert through the embedded profile where it fits the pixels; else they are taken as sRGB, as browsers do."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if source.profile.xcolor_space.strip() == {"L": "GRAY"}.get(image.mode, image.mode):
                turned = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                return cast(Image.Image, turned)  # None only where it is done in place
        except (OSError, ImageCms.PyCMSError):
            pass  # an unreadable profile is no reason to refuse a readable photo
    return image.convert("RGB")


def printable(text: str) -> str:
    """Make a file's name fit for one line of any terminal or page: line breaks and unprintable bytes become "?"."""
    return "".join(character if character.isprintable() else "?" for character in text)
