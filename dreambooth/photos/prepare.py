"""From a user's files to checked, upright, square RGB crops."""

import contextlib
import functools
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from dreambooth.errors import PhotoError, RunError
from dreambooth.files import atomic_folder, disk_trouble
from dreambooth.photos.bombs import BombError, check_structure

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".apng", ".webp", ".heic", ".heif", ".hif"}
    | {".avif", ".gif", ".bmp", ".tif", ".tiff"}
)
# What lies beside photos and may be their captions.
TEXTS = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".md"})
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
# So deep are photos looked for in folders inside the one that is named, to tell where they are.
LEVELS = 2
# A crop box this far from square was meant to be square: it is trimmed, never squeezed.
CROP_TOLERANCE = 0.02

# The coach looks at every crop at this size, so that its measures do not depend on the camera.
PREVIEW = 256
# Long side at which a whole photo is shown with its crop box, enlarged to it if need be.
SHOWN = 640
# As many as Ruiz et al. (arXiv 2208.12242) teach a subject from.
IDEAL_PHOTOS = "3 to 5"

_BETTER_FILE = f"Use a {READABLE} photo, or export it again from your photo app."
_SAVE_ANEW = "Save it anew from a photo app, or leave it out."
_FETCH_AGAIN = "Copy it again from the camera or phone, or leave it out."
_OF_SYSTEMS = frozenset({"thumbs.db", "desktop.ini"})
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
_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError)
_DAMAGE += (ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error)
# Of each of a PNG's texts and its colour profile, unpacked; Pillow's own 1 MB is less than photo editors leave of their
# history, and a text may say which way is up. Larger ones are left out, unread.
PngImagePlugin.MAX_TEXT_CHUNK = 2**23
# `warnings.catch_warnings` is process-wide, and a whole photo is the memory peak: one at a time, until it is a crop.
_ONE_AT_A_TIME = threading.RLock()


class Crop(NamedTuple):
    """A square box in pixels of the upright photo; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def side(self) -> int:
        """Its width and height, in pixels."""
        return self.right - self.left


@dataclass(frozen=True)
class Prepared:
    """One photo ready for training: pixels only, no metadata."""

    name: str  # the file's name, safe to print on one line
    image: Image.Image  # (resolution, resolution) RGB
    preview: Image.Image  # the same crop at PREVIEW pixels, whatever the resolution
    whole: Image.Image  # the whole upright photo, its long side SHOWN pixels
    size: tuple[int, int]  # width and height of the whole upright photo
    crop: Crop
    chosen: bool  # the caller gave the crop box
    several: bool  # the file is animated or has pages; this is its first picture

    @property
    def upscaled(self) -> bool:
        """Whether the crop had fewer pixels than the training resolution."""
        return self.crop.side < self.image.width


# ---- Reading


def find_photos(folder: str | Path) -> list[Path]:
    """List a folder's photos in natural order (2 before 10); `passed_over` tells of what else it holds.

    Raises PhotoError for a folder that is missing, unreadable, not a folder, or without photos, and names the folders
    around it that have some.
    """
    folder = Path(folder)
    shown = _printable(str(folder))
    try:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "is not there"
            raise PhotoError(f"{shown} {what}.", f"Give the folder that holds your photos ({READABLE}).")
        photos = _photos_in(folder)
    except OSError as error:
        raise PhotoError(f"{shown} can't be read ({error.strerror}).", f"{disk_trouble(error)[1]}.") from error
    if not photos:
        raise _no_photos(folder, shown)
    return sorted(photos, key=lambda path: (_natural_key(path.name), path.name))


def _no_photos(folder: Path, shown: str) -> PhotoError:
    """Say where there are photos instead: in folders inside, one level up, or nowhere."""
    if inside := _folders_inside(folder):
        hint = f"Give {_printable(str(next(iter(inside))))}." if len(inside) == 1 else "Give one of them."
        return PhotoError(f"{shown} holds no photos itself, but there are {_counted(folder, inside)}.", hint)
    above = folder.resolve().parent
    with contextlib.suppress(OSError):
        if count := len(_photos_in(above)):
            return PhotoError(
                f"{shown} holds no photos, but there are {count} in the folder above it.",
                f"Give {_printable(str(above))}.",
            )
    others = f" ({join_names(names)})" if (names := _other_files(folder)) else ""
    return PhotoError(
        f"{shown} holds no photos{others}.", f"Put {IDEAL_PHOTOS} {READABLE} photos of your subject in it."
    )


def passed_over(folder: Path, known: Collection[Path] = ()) -> list[str]:
    """What a folder holds beside its photos and their captions that somebody may have meant, in sentences.

    That is photos in folders inside it, but for the folders `known`, and files of other kinds. Hidden files are meant
    by nobody.
    """
    places = {path.resolve() for path in known}
    said = []
    if inside := {path: count for path, count in _folders_inside(folder).items() if path.resolve() not in places}:
        said.append(f"Passed over: {_counted(folder, inside)}. Move them into {_printable(folder.name)} to use them.")
    if names := _other_files(folder):
        verb = "is no photo" if len(names) == 1 else "are no photos"
        said.append(f"Passed over: {join_names(names)}, which {verb} that can be read here. {_BETTER_FILE}")
    return said


def _photos_in(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    ]


def _folders_inside(folder: Path, levels: int = LEVELS) -> dict[Path, int]:
    """The folders inside that hold photos, with how many; hidden ones, and those that can't be read, are left out."""
    found = {}
    with contextlib.suppress(OSError):
        for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()):
            with contextlib.suppress(OSError):
                if count := len(_photos_in(path)):
                    found[path] = count
            if levels > 1:
                found |= _folders_inside(path, levels - 1)
    return found


def _counted(folder: Path, inside: Mapping[Path, int]) -> str:
    """Folders with the numbers of their photos, for a sentence."""
    total, names = sum(inside.values()), [repr(path.relative_to(folder).as_posix()) for path in inside]
    return f"{total} photo{'' if total == 1 else 's'} in its folder{'' if len(names) == 1 else 's'} {join_names(names)}"


def _other_files(folder: Path) -> list[str]:
    """Names of files that are no photos, and no texts either, which may be captions."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and path.name.lower() not in _OF_SYSTEMS
        and path.suffix.lower() not in IMAGE_SUFFIXES | TEXTS
    )


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
    return _decode(Path(path), min_side, max_pixels, formats)[0]


def shown_pixels(path: str | Path) -> tuple[int, int]:
    """A photo's sides in pixels by its header alone, before it is turned upright; (0, 0) for what can't be read, which
    `open_photo` tells of."""
    formats = [*FORMATS, "HEIF"] if _register_heif() else FORMATS
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_structure(Path(path))
            with Image.open(path, formats=formats) as image:
                return image.size
        except (Image.DecompressionBombError, *_DAMAGE):  # type: ignore[misc]  # classes of errors, all of them
            return 0, 0


def _decode(
    path: Path, min_side: int = MIN_SIDE, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> tuple[Image.Image, bool]:
    """Return the photo, and whether its file holds further frames or pages."""
    name = _printable(path.name)
    formats = [*FORMATS, "HEIF"] if formats is FORMATS and _register_heif() else formats
    sides = min_side, max_pixels
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check_file(path, name)
            check_structure(path)
            try:
                return _read(path, name, formats, *sides)
            except _DAMAGE:  # of its texts alone, it may be
                if (pixels := _without_texts(path)) is None:
                    raise
                try:
                    return _read(pixels, name, formats, *sides)
                except _DAMAGE:
                    pass
                raise
        except BombError as error:
            raise PhotoError(f"{name} {error}, which no camera or editor writes.", _SAVE_ANEW) from error
        except Image.DecompressionBombError as error:
            raise _too_large(name) from error
        except UnidentifiedImageError as error:
            raise _unidentified(path, name) from error
        except _DAMAGE as error:
            if isinstance(error, OSError) and error.strerror:  # the system's word, not a decoder's
                raise PhotoError(f"{name} can't be read ({error.strerror}).", "Check its permissions.") from error
            reason = _printable(str(error)) or type(error).__name__
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
        return PhotoError(f"{name} holds text, not a picture.", _BETTER_FILE)
    return PhotoError(f"{name} is no picture that can be read here, or its beginning is damaged.", _BETTER_FILE)


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
    except _DAMAGE:
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


# ---- Cropping and preparing


def subject_crop(image: Image.Image) -> Crop:
    """Return the largest square that keeps the subject: slid along the long side to where saliency gathers."""
    width, height = image.size
    side, slack = min(image.size), abs(width - height)
    along = _saliency(image).sum(axis=0 if width > height else 1)
    window = round(len(along) * side / max(image.size))
    # Weighing a square's middle above its edges puts the subject inside it, not just within its rim.
    score = np.convolve(along, 1 - np.linspace(-1, 1, window + 2)[1:-1] ** 2, "valid")
    offset = round(slack * (int(score.argmax()) / (len(score) - 1) if len(score) > 1 else 0.5))
    left, top = (offset, 0) if width > height else (0, offset)
    return Crop(left, top, left + side, top + side)


def _saliency(image: Image.Image) -> np.ndarray:
    """Estimate how much each pixel of a small copy, short side 40, belongs to the subject; (h, w), no network.

    The border is mostly background (Wei et al., ECCV 2012), so what differs from the border's colours is subject:
    Mahalanobis distance to each of the four sides' colours, leaving out the side farthest off, which the subject may
    touch (Zhang et al., ICCV 2015), times a weak preference for the middle. On 145 oblong cut-outs from 34 photos of
    the DreamBooth dataset, most with the subject off centre, this keeps over 95 % of the subject's extent in 84 %
    of them, and loses over 30 % in 3 %; the centre crop does in 30 % and 21 %.
    """
    scale = 40 / min(image.size)
    small = image.convert("RGB").resize([max(40, round(edge * scale)) for edge in image.size], Image.Resampling.BOX)
    red, green, blue = np.moveaxis(np.asarray(small, dtype=np.float64), -1, 0)
    colours = np.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], axis=-1)
    distances = []
    for side in (colours[:4], colours[-4:], colours[:, :4], colours[:, -4:]):
        pixels = side.reshape(-1, 3)
        inverse = np.linalg.inv(np.cov(pixels.T) + 25 * np.eye(3))  # 25: five grey levels of noise
        away = colours - pixels.mean(axis=0)
        distance = np.sqrt(np.einsum("hwi,ij,hwj->hw", away, inverse, away))
        distances.append(distance / max(distance.max(), 1e-6))
    subject = np.sum(distances, axis=0) - np.max(distances, axis=0)
    rows, columns = (np.linspace(-1, 1, edge) ** 2 for edge in subject.shape)
    # 0.01: where nothing stands out, the middle wins.
    found: np.ndarray = (subject + 0.01) * np.exp(-0.2 * (rows[:, None] + columns))
    return found


def prepare_photo(path: str | Path, resolution: int, crop: Sequence[float] | None = None) -> Prepared:
    """Cut one photo to a square of `resolution` pixels a side, around the subject or by the caller's box.

    `crop` is (left, top, right, bottom) in pixels of the upright photo. Raises PhotoError for a photo that can't be
    used or a box that does not fit it.
    """
    path = Path(path)
    with _ONE_AT_A_TIME:
        return _prepare(path, resolution, crop)


def _prepare(path: Path, resolution: int, crop: Sequence[float] | None) -> Prepared:
    photo, several = _decode(path)
    name = _printable(path.name)
    box = subject_crop(photo) if crop is None else checked_crop(crop, photo.size, name)
    image, preview = (
        # reducing_gap: whole-pixel averaging first for what is far too large; Pillow calls 3 visually lossless.
        photo.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        for side in (resolution, PREVIEW)
    )
    shown = [max(1, round(side * SHOWN / max(photo.size))) for side in photo.size]
    whole = photo.resize(shown, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Prepared(name, image, preview, whole, photo.size, box, chosen=crop is not None, several=several)


def prepare_photos(
    paths: Iterable[str | Path], resolution: int, crops: Mapping[str, Sequence[float]] | None = None
) -> list[Prepared]:
    """Prepare every photo, in order; `crops` gives boxes by file name. One PhotoError names all that can't be used."""
    files, crops = [Path(path) for path in paths], crops or {}
    strangers = sorted(set(crops) - {path.name for path in files})
    if strangers:
        raise PhotoError(f"{join_names(strangers)}: a crop box is given but no such photo.", "Correct the file name.")
    prepared, refusals = [], []
    for path in files:
        try:
            prepared.append(prepare_photo(path, resolution, crops.get(path.name)))
        except PhotoError as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    if refusals:
        raise PhotoError(" ".join(error.message for error in refusals), "Replace these photos or leave them out.")
    return prepared


def checked_crop(box: Sequence[float], size: tuple[int, int], name: str) -> Crop:
    """Return the box as an exact square inside the photo, or raise PhotoError."""
    shown = f"{name}: the crop box {box!r}"
    hint = f"Give left, top, right, bottom in pixels of the upright photo, which is {size[0]} x {size[1]}."
    try:
        left, top, right, bottom = (round(edge) for edge in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise PhotoError(f"{shown} is not four numbers.", hint) from error
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise PhotoError(f"{shown} is not inside the photo.", hint)
    width, height = right - left, bottom - top
    if abs(width - height) > max(2, CROP_TOLERANCE * max(width, height)):
        raise PhotoError(f"{shown} is not square ({width} x {height}).", "Make its width and height equal.")
    side = min(width, height)
    if side < MIN_SIDE:
        raise PhotoError(f"{shown} is too small.", f"Make it at least {MIN_SIDE} pixels a side.")
    return Crop(left, top, left + side, top + side)


MIDDLE = 0.72
"""Share of a photo's side that stands beside another's: its middle, where subjects are, so that they are as large as
models draw two things. Source: `python -m benchmarks.two_subjects`; with whole photos, fewer were learned."""


BLANK_STD = 2.0  # a picture whose pixels (0 to 255) vary less than this is blank: black frames have 0, night scenes 30


def is_blank(image: Image.Image) -> bool:
    """Whether a picture is one flat colour, as failed arithmetic and safety checkers leave it."""
    return float(np.asarray(image.convert("RGB"), np.float32).std((0, 1)).max()) < BLANK_STD


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """The middles of two square photos of one size, beside each other on the ground of an RGBA picture as large as one.

    What is above them continues their upper edges. Opaque is a disc of each middle, which is to be learned; what is
    transparent, most of the seam above all, is there for the eye alone.
    """
    side, half = left.width, left.width // 2
    picture, shown = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    edge = round((1 - MIDDLE) / 2 * side)
    for x, photo in ((0, left), (side - half, right)):
        small = photo.crop((edge, edge, side - edge, side - edge)).resize((half, half), Image.Resampling.LANCZOS)
        picture.paste(small.crop((0, 0, half, 1)).resize((half, side - half)), (x, 0))
        picture.paste(small, (x, side - half))
        ImageDraw.Draw(shown).ellipse((x, side - half, x + half - 1, side - 1), fill=255)
    picture.putalpha(shown)
    return picture


def save_prepared(photos: Sequence[Prepared], folder: str | Path) -> list[Path]:
    """Write 00.png, 01.png, … into a new or empty folder and return their paths.

    The folder appears whole or not at all. Raises RunError if it holds anything yet or can't be written.
    """
    folder = Path(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise RunError(f"{_printable(str(folder))} is not empty.", "Prepared photos go into a folder of their own.")
        with atomic_folder(folder) as partial:
            return [folder / path.name for path in write_prepared(photos, partial)]
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"{_printable(str(folder))} can't be written ({reason}).", "Free some space or choose another folder."
        ) from error


def write_prepared(photos: Sequence[Prepared], folder: Path) -> list[Path]:
    """`save_prepared` into a folder that is being made; raises `OSError`."""
    digits = max(2, len(str(len(photos) - 1)))  # so that sorting by name keeps the order
    paths = [folder / f"{number:0{digits}d}.png" for number in range(len(photos))]
    for path, photo in zip(paths, photos, strict=True):
        photo.image.save(path)
    return paths


# ---- Showing


def show_crop(photo: Prepared) -> Image.Image:
    """Return the whole photo with a frame around its crop box, and dimmed outside it."""
    scale = max(photo.whole.size) / max(photo.size)
    left, top, right, bottom = (round(edge * scale) for edge in photo.crop)
    right, bottom = max(right, left + 4), max(bottom, top + 4)  # of a photo so long that nothing would be seen of it
    shown = Image.blend(photo.whole, Image.new("RGB", photo.whole.size), 0.65)
    shown.paste(photo.whole.crop((left, top, right, bottom)), (left, top))
    frame = ImageDraw.Draw(shown)
    frame.rectangle((left, top, right - 1, bottom - 1), outline="black", width=5)
    frame.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline="white", width=3)
    return shown


def contact_sheet(images: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None) -> Image.Image:
    """Lay pictures out in rows, each at its own size in the middle of an equal cell, with a line of text below each."""
    if not images or columns < 1:
        raise ValueError(f"A contact sheet needs pictures and columns, got {len(images)} and {columns}.")
    gap, line = 4, 16 if labels else 0
    width, height = max(image.width for image in images), max(image.height for image in images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, image in enumerate(images):
        left, top = gap + number % columns * (width + gap), gap + number // columns * (height + line + gap)
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        if labels:
            text = _printable(labels[number])
            while font.getlength(text) > width:
                text = text[:-1]
            draw.text((left, top + height), text, fill="black", font=font)
    return sheet


def _natural_key(name: str) -> list[str | int]:
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _printable(text: str) -> str:
    """Make a file's name fit for one line of any terminal or page: line breaks and unprintable bytes become "?"."""
    return "".join(character if character.isprintable() else "?" for character in text)


def join_names(names: Sequence[str]) -> str:
    """Join names for a sentence: "a, b and 3 others"."""
    shown = [_printable(name) for name in names]
    if len(shown) > 4:
        shown = [*shown[:3], f"{len(shown) - 3} others"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
