"""The pictures that every part learns from, rendered once, with their captions."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreambooth.toybox import world

SIZE = 128  # pixels; the latents are 16 × 16 (f = 8), so the UNet costs the same as at 64 px with f = 4
SMALL = 64  # pixels; what the encoders for the metrics see
CHUNK = 500  # pictures a file
CAPTIONS_PER_PICTURE = 4
PAIRS_FROM = 40_000  # from this picture on every scene shows two things, before it one in twelve


def scene(index: int, seed: int = 0) -> tuple[world.Scene, list[str]]:
    """Scene number `index` of the training set, and its captions."""
    rng = np.random.default_rng([seed, index])
    drawn = world.random_scene(rng, two_subjects=1.0) if index >= PAIRS_FROM else world.random_scene(rng)
    return drawn, [world.caption(drawn, rng) for _ in range(CAPTIONS_PER_PICTURE)]


def _render_chunk(job: tuple[Path, int, int]) -> None:
    folder, chunk, seed = job
    pixels = np.empty((CHUNK, SIZE, SIZE, 3), np.uint8)
    captions = []
    for i in range(CHUNK):
        drawn, texts = scene(chunk * CHUNK + i, seed)
        pixels[i] = np.asarray(world.render(drawn, SIZE))
        captions.append(texts)
    (folder / f"{chunk:05d}.json").write_text(json.dumps(captions))
    np.save(folder / f"{chunk:05d}.tmp.npy", pixels)
    os.replace(folder / f"{chunk:05d}.tmp.npy", folder / f"{chunk:05d}.npy")


def render_pictures(work: Path, count: int, seed: int = 0, processes: int | None = None) -> None:
    """Render the first `count` scenes, (CHUNK, 128, 128, 3) uint8 a file, with captions; skip the files there are."""
    folder = work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(math.ceil(count / CHUNK)) if not (folder / f"{i:05d}.npy").exists()]
    with multiprocessing.Pool(processes) as pool:
        jobs = [(folder, i, seed) for i in missing]
        for done, _ in enumerate(pool.imap_unordered(_render_chunk, jobs), 1):
            print(f"pictures {done * CHUNK}/{len(missing) * CHUNK}", flush=True)


def load_pictures(work: Path) -> list[np.ndarray]:
    """The rendered chunks, each (CHUNK, 128, 128, 3) uint8, mapped from disk."""
    return [np.load(path, mmap_mode="r") for path in sorted((work / "pictures").glob("?????.npy"))]


def load_captions(work: Path, of: str = "pictures") -> list[str]:
    """CAPTIONS_PER_PICTURE captions of every picture in the chunks of the folder `of`, in their order.

    A chunk whose rendering was interrupted has captions already and no pictures: they are left out.
    """
    files = [work / "pictures" / f"{path.stem}.json" for path in sorted((work / of).glob("?????.npy"))]
    return [text for file in files for row in json.loads(file.read_text()) for text in row]


def to_pixels(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_small(pictures: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) uint8 to (N, 64, 64, 3), S a multiple of 64: means of equal squares, 2 × 2 pixels at 128."""
    k = pictures.shape[1] // SMALL
    means: np.ndarray = pictures.reshape(-1, SMALL, k, SMALL, k, 3).mean((2, 4), dtype=np.float32)
    return means.round().astype(np.uint8)


def load_small_pictures(work: Path) -> np.ndarray:
    """Every picture at 64 px, (N, 64, 64, 3) uint8, mapped from disk: made at the first call."""
    pictures, path = load_pictures(work), work / "small.npy"
    if not path.exists() or len(np.load(path, mmap_mode="r")) != len(pictures) * CHUNK:
        np.save(work / "small.tmp.npy", np.concatenate([to_small(chunk) for chunk in pictures]))
        os.replace(work / "small.tmp.npy", path)
    small: np.ndarray = np.load(path, mmap_mode="r")
    return small
