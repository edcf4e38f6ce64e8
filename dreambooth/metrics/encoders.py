"""What looks at pictures for the metrics: DINO, CLIP and a perceptual distance, the public ones or the toybox's own.

All arithmetic is float32, whatever precision weights are stored in or training runs in, so that a figure does not
depend on where it was computed. Pictures are prepared as each model's published processor does, by Pillow and NumPy
alone: transformers would otherwise choose other arithmetic where torchvision is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download, snapshot_download
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    ViTImageProcessorPil,
    ViTModel,
)

from dreambooth.config.names import TOYBOX
from dreambooth.config.sections import EvaluationConfig
from dreambooth.errors import ConfigError, HubError, ModelError, PhotoError, first_line
from dreambooth.families.folder import shown_name, what_helps
from dreambooth.files import atomic_file, disk_trouble
from dreambooth.machine import one_model_at_a_time
from dreambooth.models.fetch import arrive, download_told
from dreambooth.photos.read import open_photo

DINO = "facebook/dino-vits16"
"""Source: paper §4.1, ViT-S/16."""
CLIP = "openai/clip-vit-base-patch32"
"""The paper names no CLIP; ViT-B/32 is what Textual Inversion's evaluation/clip_eval.py loads."""
LPIPS = "LPIPS 0.1 (AlexNet)"
TOYBOX_FOLDERS = {kind: Path(__file__).parents[1] / "toybox" / "encoders" / kind for kind in ("vit", "clip")}
TOYBOX_NAMES = {"vit": "toybox ViT", "clip": "toybox CLIP"}

SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PROCESSOR = ("preprocessor_config.json",)
SAVE_EVERY = 512  # pictures embedded between two writes of a cache: what an interruption may cost
_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
_DAMAGE += (EOFError, SafetensorError, UnpicklingError, zipfile.BadZipFile, zlib.error)


# ---------------------------------------------------------------------------------------------------------- protocols


class ImageEncoder(Protocol):
    """Turns pictures into points on a sphere: the nearer, the more alike."""

    @property
    def name(self) -> str:
        """As reports call it; never a path of this machine."""

    @property
    def fingerprint(self) -> str:
        """Of the model's files: embeddings of equal fingerprints can be compared."""

    @property
    def batch_size(self) -> int:
        """Pictures looked at at once."""

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, D) float32 rows of unit length, for at least one picture of any size."""
        ...


class PerceptualDistance(Protocol):
    """Tells how unlike two pictures look."""

    @property
    def name(self) -> str:
        """As reports call it."""

    def distances(self, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> np.ndarray:
        """(N,) float64, 0 for equal pictures; raises `ValueError` unless all pictures have one size."""
        ...


# ----------------------------------------------------------------------------------------------------------- encoders


@dataclass(frozen=True, eq=False)
class Dino:
    """A vision transformer's class token, after the last layer norm, as DINO's own evaluation takes it.

    The published processor of dino-vits16 squeezes a picture to 224 x 224 (bilinear) whatever its shape, while DINO's
    k-NN evaluation (facebookresearch/dino, eval_knn.py) resizes the short side to 256 (bicubic) and crops the middle.
    The paper says nothing of it. This follows the published processor; square pictures are only scaled by it.
    """

    name: str
    fingerprint: str
    batch_size: int
    model: ViTModel
    processor: ViTImageProcessorPil

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, D) float32 rows of unit length; raises `ModelError` where the weights give no numbers."""
        return _embed(images, self, lambda batch: self.model(self.pixels(batch)).last_hidden_state[:, 0])

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """What the model is given: (B, 3, H, W) float32."""
        return _pixels(self.processor, images, self.model.device)


@dataclass(frozen=True, eq=False)
class Clip:
    """CLIP's projected features of pictures and of texts (Radford et al. 2021), in one space.

    Pictures are resized to the short side and cropped to the middle, as the published processor says. Texts are cut to
    the model's length: CLIP has no more positions.
    """

    name: str
    fingerprint: str
    batch_size: int
    model: CLIPModel
    processor: CLIPImageProcessorPil
    tokenizer: CLIPTokenizer

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, D) float32 rows of unit length; raises `ModelError` where the weights give no numbers."""

        def features(batch: Sequence[Image.Image]) -> Tensor:
            seen = self.model.vision_model(self.pixels(batch)).pooler_output
            projected: Tensor = self.model.visual_projection(seen)
            return projected

        return _embed(images, self, features)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """What the model is given: (B, 3, H, W) float32."""
        return _pixels(self.processor, images, self.model.device)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 rows of unit length; raises `ModelError` where the weights give no numbers."""

        def features(batch: Sequence[str]) -> Tensor:
            tokens = self.tokenizer(list(batch), padding=True, truncation=True, return_tensors="pt")
            read = self.model.text_model(**tokens.to(self.model.device)).pooler_output
            projected: Tensor = self.model.text_projection(read)
            return projected

        return _embed(texts, self, features)


@dataclass(frozen=True, eq=False)
class PatchDistance:
    """LPIPS's formula (Zhang et al. 2018, eq. 1) with every weight one, on the patch tokens of DINO's layers.

    Each token of each layer is scaled to unit length; the squared difference is summed over channels, and its mean
    taken over positions and layers. So it lies between 0 and 4, like no LPIPS, and is never called that.
    """

    dino: Dino

    @property
    def name(self) -> str:
        """The model's, and that this is no LPIPS."""
        return f"{self.dino.name} patch distance"

    def distances(self, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> np.ndarray:
        """(N,) float64; raises `ValueError` unless all pictures have one size."""
        return _distances(pairs, self.dino.batch_size, self._batch)

    def _batch(self, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> Tensor:
        once = list({id(image): image for pair in pairs for image in pair}.values())  # a picture is in several pairs
        place = {id(image): row for row, image in enumerate(once)}
        left, right = ([place[id(pair[side])] for pair in pairs] for side in (0, 1))
        with _exactly(self.dino.model.device):
            seen = self.dino.model(self.dino.pixels(once), output_hidden_states=True).hidden_states[1:]
            layers = torch.stack([F.normalize(layer[:, 1:], dim=-1) for layer in seen], dim=1)  # (B, L, positions, C)
            return (layers[left] - layers[right]).square().sum(-1).mean((1, 2))

    def to(self, device: torch.device | str) -> None:
        """Move the model."""
        self.dino.model.to(device)  # type: ignore[arg-type]  # its decorator hides the signature


@dataclass(frozen=True, eq=False)
class Lpips:
    """LPIPS 0.1 on AlexNet (Zhang et al. 2018) by its authors' package, which wants pixels in [-1, 1]."""

    model: nn.Module
    batch_size: int
    name: str = LPIPS

    def distances(self, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> np.ndarray:
        """(N,) float64; raises `ValueError` unless all pictures have one size."""
        return _distances(pairs, self.batch_size, self._batch)

    def _batch(self, pairs: Sequence[tuple[Image.Image, Image.Image]]) -> Tensor:
        device = next(iter(self.model.parameters())).device
        left, right = (
            torch.from_numpy(np.stack([np.asarray(pair[side].convert("RGB"), np.float32) for pair in pairs]))
            for side in (0, 1)
        )
        with _exactly(device):
            left, right = (side.to(device).permute(0, 3, 1, 2) / 127.5 - 1 for side in (left, right))
            found: Tensor = self.model(left, right).flatten()
        return found

    def to(self, device: torch.device | str) -> None:
        """Move the model."""
        self.model.to(device)


@dataclass(frozen=True)
class Encoders:
    """All that the five metrics need."""

    dino: Dino
    clip: Clip
    perceptual: PatchDistance | Lpips | None
    """None where it was not asked for: no DIV."""

    @property
    def names(self) -> dict[str, str]:
        """What each is called in files and reports."""
        parts: dict[str, Any] = {"dino": self.dino, "clip": self.clip, "perceptual": self.perceptual}
        return {key: part.name for key, part in parts.items() if part is not None}

    def to(self, device: torch.device | str) -> Encoders:
        """Move all models there; returns itself."""
        self.dino.model.to(device)  # type: ignore[arg-type]  # its decorator hides the signature
        self.clip.model.to(device)  # type: ignore[arg-type]
        if self.perceptual is not None:
            self.perceptual.to(device)
        return self


# ------------------------------------------------------------------------------------------------------------ loading


def load_encoders(
    evaluation: EvaluationConfig, base_model: str, device: torch.device | str, *, perceptual: bool = True
) -> Encoders:
    """The encoders that the settings name, on `device`; auto is the toybox's own for the toybox, else the public ones.

    Raises `ConfigError` where `lpips` is wanted but not installed, before anything is downloaded or loaded,
    `ModelError` for a model that is missing, damaged or of another kind, and `HubError` where the Hub can't be reached.
    """
    public = base_model != TOYBOX
    dino = evaluation.dino if evaluation.dino != "auto" else DINO if public else TOYBOX
    clip = evaluation.clip if evaluation.clip != "auto" else CLIP if public else TOYBOX
    distance = evaluation.perceptual if evaluation.perceptual != "auto" else "lpips" if public else TOYBOX
    if perceptual and distance == "lpips":
        _lpips_package()
    vit_folder, clip_folder = fetch_encoder(dino, "vit"), fetch_encoder(clip, "clip")
    size = evaluation.batch_size
    looks, reads = _load_dino(dino, vit_folder, size), _load_clip(clip, clip_folder, size)
    tells_apart: Lpips | PatchDistance | None = None
    if perceptual and distance == "lpips":
        tells_apart = _load_lpips(size)
    elif perceptual:
        tells_apart = PatchDistance(looks if dino == TOYBOX else _load_dino(TOYBOX, TOYBOX_FOLDERS["vit"], size))
    return Encoders(looks, reads, tells_apart).to(device)


def fetch_encoder(source: str, kind: str) -> Path:
    """The folder of an encoder of transformers' `kind` (vit or clip): the toybox's, a local one, or the Hub's.

    Of a Hub repo only what is needed is downloaded, and nothing but its configuration where it is of another kind.
    Raises `ModelError` where there is no such model and `HubError` where the Hub refuses or can't be reached.
    """
    if source == TOYBOX:
        return TOYBOX_FOLDERS[kind]
    folder = Path(os.path.expanduser(source))
    if folder.exists():
        _check_kind(folder.resolve(), kind)
        return folder.resolve()
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(f"{source}: no such folder.", "Give toybox, an existing model folder, or a Hub id OWNER/NAME.")
    with download_told(source, None, None, _wanted(kind)):
        hf_hub_download(source, "config.json")
        folder = Path(snapshot_download(source, allow_patterns=list(SMALL_FILES)))
        get = partial(snapshot_download, source, revision=folder.name)
        arrive(folder, [name for name in SMALL_FILES if (folder / name).is_file()], get)
        _check_kind(folder, kind)
        get(allow_patterns=WEIGHTS[0])
        if not (folder / WEIGHTS[0]).is_file():
            hf_hub_download(source, WEIGHTS[1], revision=folder.name)
        arrive(folder, [name for name in WEIGHTS if (folder / name).is_file()], get)
        return folder


def _wanted(kind: str) -> str:
    return {"vit": f"a vision transformer such as {DINO}", "clip": f"a CLIP such as {CLIP}"}[kind]


def _check_kind(folder: Path, kind: str) -> None:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{shown_name(folder)}: its config.json can't be read ({_reason(error, folder)}).", f"Give {_wanted(kind)}."
        ) from None
    if found != kind:
        raise ModelError(f"{shown_name(folder)} is a {found}.", f"Give {_wanted(kind)}.")


@one_model_at_a_time
def _load_dino(source: str, folder: Path, batch_size: int) -> Dino:
    with _damage_told(folder):
        _check_files(folder, weights=WEIGHTS, processor=PROCESSOR)
        model = _weights(ViTModel, folder, add_pooling_layer=False)
        processor = ViTImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return Dino(_name(source, folder, "vit"), _fingerprint(folder), batch_size, model, processor)


@one_model_at_a_time
def _load_clip(source: str, folder: Path, batch_size: int) -> Clip:
    with _damage_told(folder):
        _check_files(folder, weights=WEIGHTS, processor=PROCESSOR, vocabulary=("tokenizer.json", "vocab.json"))
        model = _weights(CLIPModel, folder)
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return Clip(_name(source, folder, "clip"), _fingerprint(folder), batch_size, model, processor, tokenizer)


@contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    """Turns whatever the libraries raise on damaged files into a `ModelError` with the model's name."""
    try:
        yield
    except _DAMAGE as error:
        raise ModelError(
            f"{shown_name(folder)} can't be loaded: {_reason(error, folder)}.", what_helps(folder, error)
        ) from None


def _reason(error: Exception, folder: Path) -> str:
    """A library's words without the path of this machine."""
    return first_line(error).replace(str(folder), shown_name(folder))


def _check_files(folder: Path, **wanted: Sequence[str]) -> None:
    """Raise `ValueError` unless one file of each sort is there; transformers, for one, makes up an empty tokenizer."""
    for what, names in wanted.items():
        if not any((folder / name).is_file() for name in names):
            raise ValueError(f"it has no {what} ({' or '.join(names)})")


def _weights(kind: Any, folder: Path, **options: object) -> Any:
    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **options
    )
    if found["missing_keys"]:  # transformers makes them up
        raise ValueError(f"its weights lack {min(found['missing_keys'])}")
    return model.eval().requires_grad_(False)


def _name(source: str, folder: Path, kind: str) -> str:
    return TOYBOX_NAMES[kind] if source == TOYBOX else shown_name(folder)


def _fingerprint(folder: Path) -> str:
    """SHA-256 of all files that decide an embedding; of several files of weights, the one that is loaded."""
    weights = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    digest = hashlib.sha256()
    for name in (*SMALL_FILES, weights):
        if name and (folder / name).is_file():
            digest.update(f"{name} {_digest(folder / name)}\n".encode())
    return digest.hexdigest()


def _lpips_package() -> Any:
    try:
        import lpips
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit this PyTorch
        raise ConfigError(
            f"DIV is measured with lpips, which is not installed here or can't be used ({first_line(error)}).",
            "Run `pip install lpips torchvision`, or set evaluation.perceptual: toybox.",
        ) from None
    return lpips


@one_model_at_a_time
def _load_lpips(batch_size: int) -> Lpips:
    package = _lpips_package()
    try:
        model = package.LPIPS(net="alex", verbose=False)
    except (OSError, RuntimeError) as error:  # torchvision downloads AlexNet the first time
        raise HubError(
            f"LPIPS's AlexNet could not be downloaded or read: {first_line(error)}.", "Check the connection, try again."
        ) from None
    return Lpips(model.float().eval().requires_grad_(False), batch_size)


# ---------------------------------------------------------------------------------------------------------- embedding


@contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """No gradients, and float32: not a training's autocast around it, nor the TF32 of GPUs' convolutions."""
    whole = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), whole:
        yield


def _pixels(
    processor: ViTImageProcessorPil | CLIPImageProcessorPil, images: Sequence[Image.Image], device: torch.device
) -> Tensor:
    rgb = [image.convert("RGB") for image in images]
    pixels: Tensor = processor(images=rgb, return_tensors="pt").pixel_values.to(device)
    return pixels


def _embed(items: Sequence[Any], encoder: Dino | Clip, features: Callable[[Sequence[Any]], Tensor]) -> np.ndarray:
    """Features of pictures or texts, batch by batch, scaled to unit length."""
    rows = []
    for batch in _batches(items, encoder.batch_size):
        with _exactly(encoder.model.device):
            rows.append(F.normalize(features(batch), dim=1).cpu().numpy())
    embedded = np.concatenate(rows)
    if not np.isfinite(embedded).all():
        raise ModelError(f"{encoder.name} gives no numbers: its weights are damaged.", "Download or save it again.")
    return embedded


def _distances(
    pairs: Sequence[tuple[Image.Image, Image.Image]],
    batch_size: int,
    distance: Callable[[Sequence[tuple[Image.Image, Image.Image]]], Tensor],
) -> np.ndarray:
    sizes = {image.size for pair in pairs for image in pair}
    if len(sizes) > 1:
        (a, b), (c, d) = sorted(sizes)[:2]
        raise ValueError(f"pictures of {a} x {b} and {c} x {d} pixels can't be compared; give all one size")
    found = [distance(batch).cpu().double().numpy() for batch in _batches(pairs, batch_size)]
    return np.concatenate(found) if found else np.empty(0)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def embed_files(encoder: ImageEncoder, paths: Sequence[Path], cache: Path | None = None) -> np.ndarray:
    """Embeddings of picture files, (N, D) float32 in their order; one batch of pictures is open at a time.

    With `cache`, an .npz file, those of known contents are read from it and new ones kept in it, so that a changed file
    is looked at again and a moved one is not. One that is damaged or another encoder's is made anew. Raises
    `PhotoError` for a file that is no picture.
    """
    digests = [_picture_digest(path) for path in paths]
    known = _read_cache(cache, encoder.fingerprint) if cache else {}
    missing = {digest: path for digest, path in zip(digests, paths, strict=True) if digest not in known}
    for part in _batches(list(missing.items()), SAVE_EVERY):
        for batch in _batches(part, encoder.batch_size):
            rows = encoder.embed([open_photo(path, min_side=1) for _, path in batch])
            known |= {digest: row for (digest, _), row in zip(batch, rows, strict=True)}
        if cache:
            _write_cache(cache, encoder.fingerprint, known)
    return np.stack([known[digest] for digest in digests])


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _picture_digest(path: Path) -> str:
    try:
        return _digest(path)
    except OSError as error:
        raise PhotoError(f"{path.name} can't be read ({error.strerror}).", f"{disk_trouble(error)[1]}.") from None


def _read_cache(path: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """Rows by the digest of their file; none where the cache is not there, damaged or another encoder's."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) != fingerprint:
                return {}
            digests, rows = kept["digests"].tolist(), kept["rows"]
    except _DAMAGE:
        return {}
    whole = rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == len(digests) and np.isfinite(rows).all()
    return dict(zip(digests, rows)) if whole else {}


def _write_cache(path: Path, fingerprint: str, rows: dict[str, np.ndarray]) -> None:
    with atomic_file(path) as partial:
        np.savez(
            partial, fingerprint=np.array(fingerprint), digests=np.array(list(rows)), rows=np.stack([*rows.values()])
        )
