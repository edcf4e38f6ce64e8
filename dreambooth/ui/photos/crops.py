"""The crop boxes of a visitor's photos: where they are, and the editor that moves them."""

from __future__ import annotations

import functools
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from dreambooth.errors import PhotoError
from dreambooth.photos.prepare import Crop, Prepared, prepare_photo
from dreambooth.photos.read import MIN_SIDE
from dreambooth.photos.sheets import show_crop
from dreambooth.ui import QUIET, Update, in_plain_words
from dreambooth.ui.inputs import numbers
from dreambooth.ui.studio import Studio

SMALLEST = 5
"""Per cent of a photo's short side that a box may shrink to, where that leaves it enough pixels."""
PREPARED = 64
"""Photos kept prepared, so that moving one's box does not decode the others again: some 2 MB each."""
HELP = """`crops`: for each photo null for the automatic box, or [left, top, right, bottom] in pixels of the upright
photo."""
HOW_TO = "Training sees what is inside the frame; click on the picture to centre the frame there."

Photos = Sequence[tuple[str, str | None]]
"""What a `gr.Gallery` gives: paths and captions."""
Boxes = Mapping[str, Crop]
"""The boxes that a visitor chose, by the photo's path."""


@dataclass(frozen=True)
class Editor:
    """The components that move the box of one photo."""

    group: gr.Column
    picture: gr.Image
    caption: gr.HTML
    share: gr.Slider
    across: gr.Slider
    down: gr.Slider
    reset: gr.Button
    chosen: gr.State
    """The path of the photo, or None."""


def editor() -> Editor:
    """Lay the editor out, hidden until a photo is chosen."""
    with gr.Column(visible=False, elem_id="crop-editor") as group, gr.Row():
        with gr.Column(min_width=260, scale=3):
            picture = gr.Image(
                label="The chosen photo",
                show_label=False,
                interactive=False,
                format="jpeg",
                buttons=[],
                alt_text="The chosen photo with its crop box",
                elem_id="crop-picture",
            )
            caption = gr.HTML(elem_id="crop-caption")
        with gr.Column(min_width=220, scale=2):
            share = gr.Slider(SMALLEST, 100, 100, step=1, label="Size", info="% of the short side", buttons=[])
            across = gr.Slider(0, 100, 50, step=1, label="Across", info="0 left edge, 100 right edge", buttons=[])
            down = gr.Slider(0, 100, 50, step=1, label="Down", info="0 top edge, 100 bottom edge", buttons=[])
            reset = gr.Button("Reset to automatic", size="sm")
    return Editor(group, picture, caption, share, across, down, reset, gr.State(None))


def wire(
    studio: Studio, edited: Editor, photos: gr.Gallery, marked: gr.Gallery, crops: gr.State, check: dict[str, Any]
) -> dict[str, Any]:
    """Let the editor change `crops`, and the event `check` follow; returns the event that forgets photos gone."""
    cropping, chosen = Cropping(studio), edited.chosen
    sliders = [edited.share, edited.across, edited.down]
    seen = [edited.picture, edited.caption]
    latest: dict[str, Any] = {  # queued: they decode photos, and Gradio 6.31 shows no errors of other events
        "trigger_mode": "always_last",
        "show_progress": "hidden",
        "api_visibility": "private",
        "concurrency_id": "crops",
        "concurrency_limit": 1,
    }
    marked.select(cropping.choose, [photos, crops], [chosen, edited.group, *seen, *sliders], **latest)
    changes = (
        gr.on([s.input for s in sliders], cropping.move, [chosen, crops, *sliders], [crops, *seen], **latest),
        edited.picture.select(cropping.centre, [chosen, crops], [crops, *seen, *sliders], **latest),
        edited.reset.click(cropping.reset, [chosen, crops], [crops, *seen, *sliders], **latest),
    )
    for change in changes:
        change.success(**check, show_progress="hidden", api_visibility="private")
    return {"fn": forget, "inputs": [photos, crops, chosen], "outputs": [crops, chosen, edited.group], **QUIET}


@dataclass(frozen=True)
class Cropping:
    """What the editor does: each handler gets the boxes and returns them changed."""

    studio: Studio

    @in_plain_words
    def choose(self, photos: Photos | None, crops: Boxes, event: gr.SelectData) -> list[Any]:
        """Open the photo that was picked in the gallery."""
        [index] = numbers(event, "index", 1)
        if not photos or index not in range(len(photos)):  # taken out meanwhile
            return [gr.skip()] * 7
        path = photos[index][0]
        return [path, gr.Column(visible=True), *self._view(path, crops)]

    @in_plain_words
    def move(self, chosen: str, crops: Boxes, share: float, across: float, down: float) -> list[Any]:
        """Put the box where the sliders say."""
        crops = {**crops, chosen: crop_at(self._photo(chosen).size, share, across, down)}
        return [crops, *self._view(chosen, crops)[:2]]

    @in_plain_words
    def centre(self, chosen: str, crops: Boxes, event: gr.SelectData) -> list[Any]:
        """Put the box around the pixel of the picture that was clicked."""
        photo = self._photo(chosen)
        scale = max(photo.size) / max(photo.whole.size)
        middle = [point * scale for point in numbers(event, "index", 2)]
        crop = centred_at(crops.get(chosen, photo.crop), photo.size, middle)
        crops = {**crops, chosen: crop}
        return [crops, *self._view(chosen, crops)]

    @in_plain_words
    def reset(self, chosen: str, crops: Boxes) -> list[Any]:
        """Go back to the automatic box."""
        crops = {path: crop for path, crop in crops.items() if path != chosen}
        return [crops, *self._view(chosen, crops)]

    def _photo(self, path: str | None) -> Prepared:
        if path is None:
            raise PhotoError("No photo is chosen.", "Choose one to move its box.")
        return prepared(path, self.studio.resolution, None)

    def _view(self, path: str, crops: Boxes) -> list[Any]:
        """The picture, its caption and the sliders' values; to move a box, the photo is not decoded again."""
        photo = self._photo(path)
        crop = crops.get(path, photo.crop)
        caption = (
            f"<p class='aside'><strong>{html.escape(photo.name)}</strong> {crop.side} × {crop.side} of "
            f"{photo.size[0]} × {photo.size[1]} pixels. {HOW_TO}</p>"
        )
        return [show_crop(replace(photo, crop=crop)), caption, *place_of(crop, photo.size)]


def forget(photos: Photos | None, crops: Boxes, chosen: str | None) -> tuple[Boxes, str | None, Update]:
    """The boxes without those of photos that are gone, and the editor closed where its photo is."""
    paths = {path for path, _ in photos or []}
    kept = {path: crop for path, crop in crops.items() if path in paths}
    return (kept, chosen, gr.skip()) if chosen in paths else (kept, None, gr.Column(visible=False))


def aligned(photos: Photos | None, crops: Boxes, given: list[Any] | None = None) -> list[Crop | None]:
    """The box of each photo, None for the automatic one: `given` by an API caller, else what the page keeps."""
    paths = [path for path, _ in photos or []]
    if given is None:
        return [crops.get(path) for path in paths]
    if not isinstance(given, list) or len(given) != len(paths):
        raise PhotoError(
            "`crops` is not one box for each photo.", f"Give {len(paths)} boxes, null for the automatic one."
        )
    for number, box in enumerate(given):
        if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise PhotoError(f"Crop box {number} is {str(box)[:60]!r}.", "Give null or [left, top, right, bottom].")
    return [Crop(*box) if box is not None else None for box in given]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@functools.lru_cache(PREPARED)
def prepared(path: str, resolution: int, crop: Crop | None) -> Prepared:
    """As `prepare_photo` does; an upload's folder is named after its bytes, so that the path tells one from another."""
    return prepare_photo(path, resolution, crop)


def crop_at(size: tuple[int, int], share: float, across: float, down: float) -> Crop:
    """The box of `share` per cent of the short side; 0 across is at the left edge, 100 at the right, and so down."""
    short = min(size)
    side = min(short, max(MIN_SIDE, round(short * share / 100)))
    left, top = (round((whole - side) * place / 100) for whole, place in zip(size, (across, down), strict=True))
    return Crop(left, top, left + side, top + side)


def place_of(crop: Crop, size: tuple[int, int]) -> tuple[float, float, float]:
    """Share, across and down of a box, as `crop_at` takes them; the middle where there is no room to move."""
    across, down = (
        round(100 * edge / room, 1) if (room := whole - crop.side) else 50
        for edge, whole in zip((crop.left, crop.top), size, strict=True)
    )
    return round(100 * crop.side / min(size), 1), across, down


def centred_at(crop: Crop, size: tuple[int, int], middle: Sequence[float]) -> Crop:
    """The box moved so that its middle is as near to `middle`, in pixels of the photo, as the edges allow."""
    left, top = (
        min(max(round(point - crop.side / 2), 0), whole - crop.side) for point, whole in zip(middle, size, strict=True)
    )
    return Crop(left, top, left + crop.side, top + crop.side)
