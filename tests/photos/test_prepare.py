"""Photos: whatever a user uploads comes out as a clean square, or is refused by name and reason."""

import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageStat
from PIL.PngImagePlugin import PngInfo

from dreambooth.errors import PhotoError, RunError
from dreambooth.photos import read, sheets
from dreambooth.photos.folder import find_photos, passed_over
from dreambooth.photos.prepare import Crop, prepare_photo, prepare_photos, save_prepared, subject_crop
from dreambooth.photos.read import open_photo
from dreambooth.photos.sheets import contact_sheet
from tests.pictures import encoded, saved, scene

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:  # HEIC then has its refusal tested, below, and no pictures to read
    pillow_heif = None

HEIC = {".heic": "HEIF"} if pillow_heif else {}
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".avif": "AVIF", ".tif": "TIFF"} | HEIC
RED, GREEN, BLUE, YELLOW = (230, 30, 30), (30, 200, 40), (30, 40, 220), (230, 220, 40)


def corners(width: int = 96, height: int = 64) -> Image.Image:
    """Red, green over blue, yellow: no turn or flip of it looks the same."""
    image = Image.new("RGB", (width, height))
    for x, y, colour in ((0, 0, RED), (1, 0, GREEN), (0, 1, BLUE), (1, 1, YELLOW)):
        image.paste(colour, (x * width // 2, y * height // 2, (x + 1) * width // 2, (y + 1) * height // 2))
    return image


def assert_corners(image: Image.Image, tolerance: int = 12) -> None:
    w, h = image.size
    for point, colour in zip([(8, 8), (w - 9, 8), (8, h - 9), (w - 9, h - 9)], (RED, GREEN, BLUE, YELLOW)):
        assert np.abs(np.subtract(image.getpixel(point), colour)).max() <= tolerance, (point, image.getpixel(point))


# ---- Reading


@pytest.mark.parametrize("suffix", [*FORMATS, ".gif", ".bmp"])
def test_every_format_is_read(tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"
    corners().save(path)
    image = open_photo(path)
    assert (image.mode, image.size, image.info) == ("RGB", (96, 64), {})
    assert_corners(image, tolerance=25)


STORED = {  # EXIF orientation -> how an upright array lies in the file: which side row 0 and column 0 are (Exif 2.32)
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", STORED)
def test_photos_come_out_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"phone{suffix}"
    stored = np.ascontiguousarray(STORED[orientation](np.asarray(corners(128, 96))))
    Image.fromarray(stored).save(path, exif=exif.tobytes())
    image = open_photo(path)
    assert image.size == (128, 96)
    assert_corners(image, tolerance=25)


def half_clear(mode: str) -> Image.Image:
    """Left half opaque black, right half wholly transparent black."""
    alpha = Image.new("L", (80, 80))
    alpha.paste(255, (0, 0, 40, 80))
    image = Image.new("RGBA", (80, 80), "black")
    image.putalpha(alpha)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("rgba.png", half_clear("RGBA"), {}),
        ("la.png", half_clear("LA"), {}),
        ("rgba.webp", half_clear("RGBA"), {"lossless": True}),
        ("clear.gif", half_clear("RGBA"), {}),
        ("palette.png", half_clear("RGBA").quantize(4), {}),
        ("keyed.png", corners(80, 80).point(lambda v: 0 if v < 128 else 255), {"transparency": (0, 255, 0)}),
        ("bytes.png", corners(80, 80).quantize(4), {"transparency": bytes([0, 0, 0, 0])}),
    ],
)
def test_transparency_lies_on_white_without_warnings(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_photo(tmp_path / name)
    assert opened.mode == "RGB"
    assert min(opened.getpixel((70, 10))) >= 250


def test_other_modes_become_rgb(tmp_path):
    Image.new("CMYK", (80, 80), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red = open_photo(tmp_path / "print.jpg").getpixel((40, 40))
    assert red[0] > 200
    assert max(red[1:]) < 60

    corners(80, 80).convert("1").save(tmp_path / "fax.tif")
    corners(80, 80).quantize(4).save(tmp_path / "palette.png")
    corners(80, 80).convert("L").save(tmp_path / "grey.jpg")
    Image.new("LAB", (80, 80)).save(tmp_path / "lab.tif")
    for name in ("fax.tif", "palette.png", "grey.jpg", "lab.tif"):
        assert open_photo(tmp_path / name).mode == "RGB"
    assert_corners(open_photo(tmp_path / "palette.png"))


@pytest.mark.parametrize(
    ("name", "white", "kind"),
    [
        ("deep.png", 65535, np.uint16),
        ("deep.tif", 65535, np.uint16),
        ("counts.tif", 65535, np.int32),
        ("bytes.tif", 255, np.int32),
        ("unit.tif", 1, np.float32),
        ("bytes-as-floats.tif", 255, np.float32),
    ],
)
def test_deep_greys_are_scaled_not_clipped(tmp_path, name, white, kind):
    ramp = np.linspace(0, white, 100)[None].repeat(70, axis=0).astype(kind)
    Image.fromarray(ramp).save(tmp_path / name)
    row = np.asarray(open_photo(tmp_path / name))[0, :, 0].astype(float)
    assert np.abs(row - np.linspace(0, 255, 100)).max() <= 1


def test_colour_profiles_are_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    image = Image.new("RGB", (80, 80), (250, 5, 5))
    for name, icc, expected in (("same", profile, (250, 5, 5)), ("swapped", swapped, (5, 5, 250))):
        image.save(tmp_path / f"{name}.png", icc_profile=icc)
        assert np.abs(np.subtract(open_photo(tmp_path / f"{name}.png").getpixel((9, 9)), expected)).max() <= 3
    image.save(tmp_path / "broken.png", icc_profile=b"no profile at all")
    image.convert("L").save(tmp_path / "unfit.png", icc_profile=profile)
    assert open_photo(tmp_path / "broken.png").getpixel((9, 9)) == (250, 5, 5)
    assert open_photo(tmp_path / "unfit.png").mode == "RGB"


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_several_pictures_the_first_is_used(tmp_path, suffix):
    path = tmp_path / f"moving{suffix}"
    corners().save(path, save_all=True, append_images=[Image.new("RGB", (96, 64), "white")])
    prepared = prepare_photo(path, 64)
    assert prepared.several
    assert_corners(open_photo(path), tolerance=25)


def test_a_phone_photo_with_a_second_picture_inside_is_no_animation(tmp_path):
    corners().save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[corners()])
    assert not prepare_photo(tmp_path / "phone.jpg", 64).several


def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    corners().save(tmp_path / "photo.webp", exif=exif)
    data = (tmp_path / "photo.webp").read_bytes()
    assert b"MM\x00*" in data or b"II*\x00" in data
    (tmp_path / "photo.webp").write_bytes(data.replace(b"MM\x00*", b"MMMM").replace(b"II*\x00", b"IIII"))
    assert open_photo(tmp_path / "photo.webp").size == (96, 64)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", "empty"),
        ("notes.jpg", "Ein Hund, süß.\n".encode(), "text"),
        ("page.png", b"<!DOCTYPE html><html></html>", "text"),
        ("drawing.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "text"),
        ("noise.jpg", bytes(range(256)) * 9, "no picture"),
        ("bomb.png", png_header(60_000, 60_000), "megapixels"),
        ("large.png", png_header(12_000, 12_000), "megapixels"),
        ("narrow.png", encoded(Image.new("RGB", (500, 63)), "PNG"), "too small"),
        ("dot.gif", encoded(Image.new("RGB", (1, 1)), "GIF"), "too small"),
        ("hollow.png", png_header(100, 100), "damaged"),
    ],
)
def test_what_is_no_usable_photo_is_refused_by_name_and_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PhotoError) as refusal:
        open_photo(tmp_path / name)
    assert refusal.value.message.startswith(name)
    assert reason in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", *HEIC.values()])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_a_file_cut_short_is_refused(tmp_path, kind, part):
    data = encoded(scene(1, 100), kind)
    (tmp_path / "cut.jpg").write_bytes(data[: max(1, int(len(data) * part))])
    with pytest.raises(PhotoError, match=r"^cut\.jpg "):
        open_photo(tmp_path / "cut.jpg")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_gives_a_photo_or_a_refusal(tmp_path, data):
    exif = Image.Exif()
    exif[0x0112] = 6
    # No TIFF: its decoder writes to the terminal itself.
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]))
    content = bytearray(encoded(corners(), kind, exif=exif))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "hurt.jpg").write_bytes(content)
    try:
        assert open_photo(tmp_path / "hurt.jpg").mode == "RGB"
    except PhotoError as refusal:
        assert refusal.message.startswith("hurt.jpg ")  # noqa: PT017 - either outcome is right


def test_folders_missing_files_pipes_and_locked_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "x.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    corners().save(tmp_path / "locked.jpg")
    for name, reason in (("x.jpg", "folder"), ("gone.jpg", "not there"), ("pipe.jpg", "not a regular file")):
        with pytest.raises(PhotoError, match=reason):
            open_photo(tmp_path / name)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # root may read everything, so the system's refusal is played
    with pytest.raises(PhotoError, match=r"locked\.jpg can't be read \(Permission denied\)"):
        open_photo(tmp_path / "locked.jpg")


def test_heic_without_its_package_names_the_install_line(tmp_path, monkeypatch):
    (tmp_path / "IMG_1.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    read._register_heif.cache_clear()
    try:
        with pytest.raises(PhotoError, match=r"^IMG_1\.heic .*pip install pillow-heif"):
            open_photo(tmp_path / "IMG_1.heic")
    finally:
        read._register_heif.cache_clear()


def test_no_file_stays_open(tmp_path):
    corners().save(tmp_path / "a.gif", save_all=True, append_images=[corners().rotate(180)])
    (tmp_path / "b.png").write_bytes(png_header(100, 100))
    (tmp_path / "c.png").write_bytes(png_header(60_000, 60_000))
    before = os.listdir("/dev/fd")
    open_photo(tmp_path / "a.gif")
    for name in ("b.png", "c.png"):
        with pytest.raises(PhotoError):
            open_photo(tmp_path / name)
    assert len(os.listdir("/dev/fd")) == len(before)


# ---- Finding


def test_photos_are_found_in_natural_order(tmp_path):
    names = ["10.jpg", "2.jpg", "1.PNG", "Hund ä.webp", "new\nline.jpg"]
    for name in [*names, ".hidden.jpg", ".DS_Store", "1.txt", "Thumbs.db", "README"]:
        (tmp_path / name).touch()
    (tmp_path / "album.jpg").mkdir()
    assert [path.name for path in find_photos(tmp_path)] == ["1.PNG", "2.jpg", "10.jpg", "Hund ä.webp", "new\nline.jpg"]


def test_folders_without_photos_say_what_to_do(tmp_path):
    (tmp_path / "notes.txt").touch()
    for folder, reason in ((tmp_path, "no photos"), (tmp_path / "x", "not there"), (tmp_path / "notes.txt", "a file")):
        with pytest.raises(PhotoError, match=reason) as refusal:
            find_photos(folder)
        assert refusal.value.hint


PLACED = {
    "one level too high": (".", "dog", "holds no photos itself, but there are 2 photos in its folder 'dog'. Give "),
    "two levels too high": (".", "img/10_sks dog", "in its folder 'img/10_sks dog'. Give "),
    "one level too low": ("dog/empty", "dog", "holds no photos, but there are 2 in the folder above it. Give "),
}


@pytest.mark.parametrize(("given", "place", "words"), PLACED.values(), ids=PLACED)
def test_photos_beside_the_folder_that_was_named_are_pointed_at(tmp_path, given, place, words):
    for folder in (given, place):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    saved(tmp_path / place, [scene(1), scene(2)])
    with pytest.raises(PhotoError) as caught:
        find_photos(tmp_path / given)
    assert words in str(caught.value)
    assert len(find_photos(tmp_path / place)) == 2, "the advice helps"


def test_of_several_folders_with_photos_all_are_named(tmp_path):
    for name in ("10_sks dog", "1_dog", ".hidden"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name, [scene(1)])
    with pytest.raises(PhotoError, match=r"2 photos in its folders '10_sks dog' and '1_dog'. Give one of them"):
        find_photos(tmp_path)


def test_a_folder_with_nothing_but_other_files_names_them(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(PhotoError, match=r"holds no photos \(photos\.zip\)\. Put"):
        find_photos(tmp_path)


def test_what_is_passed_over_is_said(tmp_path):
    saved(tmp_path, [scene(0)])
    for name in ("more", "more/raw", "known", ".git", "deep/er/still"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        saved(tmp_path / name, [scene(1), scene(2)])
    for name in ("a.mov", "b.CR2", "0.txt", "0.caption", "metadata.jsonl", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    assert passed_over(tmp_path, [tmp_path / "known"]) == [
        f"Passed over: 4 photos in its folders 'more' and 'more/raw'. Move them into {tmp_path.name} to use them.",
        "Passed over: a.mov and b.CR2, which are no photos that can be read here. Use a JPEG, PNG, WebP, HEIC, AVIF, "
        "GIF, BMP or TIFF photo, or export it again from your photo app.",
    ]


def test_of_a_folder_of_photos_alone_nothing_is_said(tmp_path):
    saved(tmp_path, [scene(0), scene(1)])
    assert passed_over(tmp_path) == []


def with_chunk(png: bytes, kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    """The PNG with a chunk more, after its header."""
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return png[:33] + struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum) + png[33:]


def texts(megabytes: int) -> dict[str, tuple[bytes, bytes]]:
    """Chunks of so many megabytes of text: kind and data."""
    text = b"history " * (megabytes * 2**17)
    return {
        "tEXt": (b"tEXt", b"Comment\0" + text),
        "zTXt": (b"zTXt", b"Comment\0\0" + zlib.compress(text)),
        "iTXt": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text),
        "iTXt, compressed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)),
        "iCCP": (b"iCCP", b"profile\0\0" + zlib.compress(text)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [2, 20, 200])
@pytest.mark.parametrize("kind", texts(0))
def test_a_png_is_read_whatever_text_is_in_it(tmp_path, kind, megabytes):
    plain = encoded(corners(), "PNG")
    (tmp_path / "edited.png").write_bytes(with_chunk(plain, *texts(megabytes)[kind]))
    image = open_photo(tmp_path / "edited.png")
    assert image.info == {}
    assert_corners(image)


def test_a_png_is_read_though_its_texts_are_many_or_damaged(tmp_path):
    many = damaged = encoded(corners(), "PNG")
    for _ in range(12):
        many = with_chunk(many, *texts(7)["zTXt"])
    (tmp_path / "many.png").write_bytes(many)
    (tmp_path / "damaged.png").write_bytes(with_chunk(damaged, b"zTXt", b"Comment\0\0no zlib", checksum=1))
    for name in ("many.png", "damaged.png"):
        assert_corners(open_photo(tmp_path / name))


def test_long_texts_do_not_hide_which_way_is_up(tmp_path):
    turned = corners().transpose(Image.Transpose.ROTATE_90)
    text = b"history " * 2**18 + b' tiff:Orientation="6" '
    said = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text)
    (tmp_path / "edited.png").write_bytes(with_chunk(encoded(turned, "PNG"), b"iTXt", said))
    assert_corners(open_photo(tmp_path / "edited.png"))


def test_of_a_png_with_a_long_text_damage_is_still_said(tmp_path):
    long = with_chunk(encoded(corners(), "PNG"), *texts(20)["zTXt"])
    (tmp_path / "cut.png").write_bytes(long[:-60])
    with pytest.raises(PhotoError, match=r"cut\.png is damaged or cut short"):
        open_photo(tmp_path / "cut.png")


@pytest.mark.parametrize("name", ["my dog.png", "собака 犬 🐶.png", "two\nlines\x1b[31m.png", "a'b\"c$(d).png"])
def test_any_file_name_works_and_prints_on_one_line(tmp_path, name):
    corners().save(tmp_path / name)
    assert len(prepare_photo(tmp_path / name, 64).name.splitlines()) == 1
    (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(PhotoError) as refusal:
        open_photo(tmp_path / name)
    assert str(refusal.value).isprintable()


# ---- Preparing


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(64, 260), st.integers(64, 260)),
    mode=st.sampled_from(MODES),
    resolution=st.integers(8, 200),
    seed=st.integers(0, 99),
)
def test_whatever_goes_in_a_clean_square_comes_out(tmp_path, size, mode, resolution, seed):
    grey = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    image = Image.fromarray(grey)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "any.tif")
    prepared = prepare_photo(tmp_path / "any.tif", resolution)
    assert (prepared.image.size, prepared.image.mode) == ((resolution, resolution), "RGB")
    assert prepared.image.info == prepared.preview.info == {}
    left, top, right, bottom = prepared.crop
    assert right - left == bottom - top == min(size)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]


def test_no_metadata_survives(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "SECRET camera"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 29: "SECRET date"})
    notes = PngInfo()
    notes.add_itxt("SECRET", "SECRET text")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>SECRET</x:xmpmeta>"
    corners().save(tmp_path / "SECRET.jpg", exif=exif, comment="SECRET", icc_profile=profile, xmp=xmp, dpi=(300, 300))
    corners().save(tmp_path / "SECRET.png", exif=exif, pnginfo=notes, icc_profile=profile, dpi=(300, 300))
    corners().save(tmp_path / "SECRET.webp", exif=exif, icc_profile=profile, xmp=xmp)
    assert all(b"SECRET" in path.read_bytes() for path in tmp_path.iterdir())

    prepared = prepare_photos(find_photos(tmp_path), 64)
    for path in save_prepared(prepared, tmp_path / "out"):
        data, kinds, at = path.read_bytes(), [], 8
        while at < len(data):
            kinds.append(data[at + 4 : at + 8])
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}
        assert b"SECRET" not in data
    open_photo(tmp_path / "SECRET.jpg").save(tmp_path / "again.jpg")
    assert b"SECRET" not in (tmp_path / "again.jpg").read_bytes()


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_crop_keeps_the_subject_wherever_it_is(place, upright):
    ramp = np.linspace((90, 120, 90), (150, 160, 140), 600)[None].repeat(240, axis=0)
    image = Image.fromarray((ramp + np.random.default_rng(0).normal(0, 4, ramp.shape)).clip(0, 255).astype(np.uint8))
    left = round(place * 450)
    ImageDraw.Draw(image).ellipse((left, 60, left + 150, 200), fill=RED)
    if upright:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    crop = subject_crop(image)
    start, end = (crop.top, crop.bottom) if upright else (crop.left, crop.right)
    assert start <= left
    assert left + 150 <= end
    assert crop.side == 240


def test_where_nothing_stands_out_the_middle_is_kept():
    assert subject_crop(Image.new("RGB", (600, 200), "grey")) == Crop(200, 0, 400, 200)
    assert subject_crop(Image.new("RGB", (300, 300))) == Crop(0, 0, 300, 300)
    assert subject_crop(Image.new("RGB", (64, 20_000), "grey")).side == 64


def test_the_callers_box_is_used_in_pixels_of_the_upright_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(STORED[6](np.asarray(corners(400, 200))))).save(tmp_path / "a.png", exif=exif)
    prepared = prepare_photos([tmp_path / "a.png"], 50, {"a.png": [250, 110, 330.4, 191]})[0]
    assert prepared.crop == Crop(250, 110, 330, 190)
    assert prepared.chosen
    assert ImageStat.Stat(prepared.image).mean == pytest.approx(YELLOW, abs=2)


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 400, 400),
        (-1, 0, 99, 100),
        (50, 50, 50, 50),
        (150, 0, 50, 100),
        (0, 0, 200, 100),
        (0, 0, 63, 63),
        (0, 0, 100),
        (0, 0, "a", 100),
        (0, 0, float("nan"), 100),
        (0, 0, float("inf"), 100),
        7,
    ],
)
def test_a_box_that_does_not_fit_is_refused(tmp_path, box):
    corners(300, 200).save(tmp_path / "a.png")
    with pytest.raises(PhotoError, match=r"^a\.png: the crop box .*") as refusal:
        prepare_photo(tmp_path / "a.png", 64, box)
    assert refusal.value.hint


def test_resizing_averages_instead_of_skipping_pixels(tmp_path):
    checks = np.indices((1024, 1024)).sum(axis=0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "fine.png")
    assert ImageStat.Stat(prepare_photo(tmp_path / "fine.png", 64).image).extrema == [(127, 128)] * 3


def test_every_unusable_photo_is_named_at_once(tmp_path):
    corners().save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(PhotoError, match=r"^empty\.png .*text\.png ") as refusal:
        prepare_photos(find_photos(tmp_path), 64)
    assert "good.png" not in str(refusal.value)
    with pytest.raises(PhotoError, match=r"^goood\.png"):
        prepare_photos([tmp_path / "good.png"], 64, {"goood.png": (0, 0, 64, 64)})


def test_prepared_photos_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    prepared = prepare_photos(saved(tmp_path, [corners()] * 11), 64)
    (tmp_path / "run").mkdir()
    paths = save_prepared(prepared, tmp_path / "run")
    assert [path.name for path in paths] == sorted(path.name for path in (tmp_path / "run").iterdir())
    assert (paths[0].name, paths[10].name) == ("00.png", "10.png")
    assert np.array_equal(np.asarray(open_photo(paths[3])), np.asarray(prepared[3].image))
    many = save_prepared(prepared[:1] * 101, tmp_path / "many")
    assert [path.name for path in (many[0], many[100])] == ["000.png", "100.png"]
    with pytest.raises(RunError, match="not empty"):
        save_prepared(prepared, tmp_path / "run")
    with pytest.raises(RunError, match="can't be written"):
        save_prepared(prepared, tmp_path / "0.png")

    save, left = Image.Image.save, [5]

    def disk_full(self, *args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        save(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(RunError, match="No space left"):
        save_prepared(prepared, tmp_path / "second")
    assert not [path for path in tmp_path.iterdir() if "second" in path.name]


# ---- Showing


def test_a_contact_sheet_shows_every_picture_and_label():
    images = [Image.new("RGB", (40, 30), colour) for colour in (RED, GREEN, BLUE)]
    sheet = contact_sheet(images, columns=2)
    assert sheet.size == (2 * 44 + 4, 2 * 34 + 4)
    assert [sheet.getpixel(point) for point in ((24, 19), (68, 19), (24, 53))] == [RED, GREEN, BLUE]
    labelled = contact_sheet(images, 2, ["dog", "an endless label\nfor a small picture", "🐶"])
    assert labelled.height > sheet.height
    assert labelled.crop((0, 34, 48, 50)).convert("L").getextrema()[0] < 100
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet([], 2)


def test_two_photos_side_by_side_stand_on_the_ground_and_show_their_middles():
    left, right = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    left.paste("white", (0, 0, 64, 20))  # so that of its middle, too, the upper edge is white
    both = sheets.side_by_side(left, right)
    assert (both.size, both.mode) == ((64, 64), "RGBA")
    assert both.getpixel((16, 48)) == (255, 0, 0, 255)
    assert both.getpixel((48, 48)) == (0, 0, 255, 255)
    assert both.getpixel((48, 5))[:3] == (0, 0, 255), "its upper edge goes on"
    assert both.getpixel((16, 5))[:3] == (255, 255, 255), "as the other's does, which is white"
    alpha = np.asarray(both.getchannel("A")) > 0
    assert not alpha[:32].any()
    assert alpha[:, 31:33].mean() < 0.2, "most of the seam is not learned"
    assert alpha[32:, :32].mean() == pytest.approx(np.pi / 4, abs=0.05)
    marked = Image.new("RGB", (64, 64), "red")
    marked.paste("white", (0, 0, 8, 64))
    assert sheets.side_by_side(marked, right).getpixel((0, 48))[:3] == (255, 0, 0), "of a photo, the middle is shown"
    assert sheets.side_by_side(left.resize((33, 33)), right.resize((33, 33))).size == (33, 33)
