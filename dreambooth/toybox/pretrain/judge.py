"""The judge: a small classifier of toybox pictures, trained on real renders alone, for the figures of the model card.

    python -m dreambooth.toybox.pretrain.judge --work DIR

trains it and says how well it sees held-out renders.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreambooth.errors import ModelError
from dreambooth.toybox import identities, world
from dreambooth.toybox.pretrain import data
from dreambooth.toybox.pretrain.encoders import random_crops
from dreambooth.toybox.pretrain.fit import fit

NOUNS = {noun: i for i, noun in enumerate(identities.CLASSES)}
PLACES = {context: i for i, context in enumerate(world.CONTEXTS)}
FRESH = 12_000  # pictures drawn where the work directory has none


class Judge(nn.Module):
    """Says which class and which context a picture of one thing shows: 0.5 M parameters, 64 px.

    Norms are by group, not by batch: `fit` averages parameters, and a batch's statistics are none.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out, stride in ((32, 2), (64, 2), (96, 2), (128, 1), (160, 2)):  # 32, 16, 8, 8, 4 pixels wide
            layers += [nn.Conv2d(width, out, 3, stride, padding=1), nn.GroupNorm(8, out), nn.ReLU()]
            width = out
        self.trunk = nn.Sequential(*layers)
        self.last = nn.Linear(2 * width, 128)
        self.nouns, self.places = nn.Linear(128, len(NOUNS)), nn.Linear(128, len(PLACES))

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, 64, 64) in [-1, 1] to (B, 128), what both answers are read from."""
        seen = self.trunk(pixels)
        features: Tensor = self.last(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], dim=1)).relu()
        return features

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the classes (B, 12) and of the contexts (B, 10)."""
        features = self.features(pixels)
        return self.nouns(features), self.places(features)


def labels(count: int) -> np.ndarray:
    """(K, 3) of those among the first `count` training pictures that show one thing: number, class, context."""
    scenes = ((i, data.scene(i)[0]) for i in range(min(count, data.PAIRS_FROM)))
    return np.array([(i, *answer(scene)) for i, scene in scenes if len(scene.subjects) == 1])


def answer(scene: world.Scene) -> tuple[int, int]:
    """The right class and context of a scene."""
    return NOUNS[scene.subjects[0].class_noun], PLACES[scene.context]


def train_judge(work: Path, samples: int, device: torch.device, batch: int = 64, seed: int = 0) -> None:
    """Train on the work directory's pictures, a little cropped and made lighter or darker, into `judge.pt`."""
    pictures = data.load_small_pictures(work)
    known = labels(len(pictures))
    torch.manual_seed(seed)
    judge = Judge().to(device)

    def loss(numpy_rng: np.random.Generator, torch_rng: torch.Generator, progress: float) -> Tensor:
        rows = known[numpy_rng.integers(len(known), size=batch)]
        pixels = random_crops(data.to_pixels(pictures[rows[:, 0]], device), data.SMALL, (0.8, 1.0), torch_rng)
        light = torch.rand(batch, 2, 1, 1, generator=torch_rng, device=device)
        pixels = pixels * (0.85 + 0.3 * light[:, :1]) + 0.3 * (light[:, 1:] - 0.5)
        right = torch.from_numpy(rows).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            nouns, places = judge(pixels)
        return F.cross_entropy(nouns.float(), right[:, 1]) + F.cross_entropy(places.float(), right[:, 2])

    settings: dict[str, Any] = dict(
        samples=samples, batch=batch, lr=3e-3, final_lr=3e-5, decay_from=0.3, ema=0.995, seed=seed
    )
    fit("judge", judge, loss, work, **settings)


def load_judge(work: Path) -> Judge:
    """The judge that `train_judge` left in `work`; raises `ModelError` if there is none or it is not finished."""
    path = work / "judge.pt"
    state = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
    if state is None or state["step"] < state["steps"]:
        what = "is not there" if state is None else f"was trained for {state['step']} of {state['steps']} steps only"
        raise ModelError(f"{path} {what}.", f"Train it: python -m dreambooth.toybox.pretrain.judge --work {work}.")
    judge = Judge().eval()
    judge.load_state_dict(state["ema"])
    return judge


@torch.inference_mode()
def verdicts(judge: Judge, pictures: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) uint8 pictures, S a multiple of 64, to (N, 2): the class and context that the judge sees."""
    parts = np.array_split(data.to_small(pictures), -(-len(pictures) // 64))
    scores = [judge(data.to_pixels(part, torch.device("cpu"))) for part in parts]
    return torch.cat([torch.stack([nouns.argmax(1), places.argmax(1)], dim=1) for nouns, places in scores]).numpy()


def held_out_scenes(count: int, *, style: str | None = None, two_subjects: float = 0.0) -> list[world.Scene]:
    """The first `count` scenes of identities that no training saw, in one style or in all, as often as in training."""
    rng = np.random.default_rng(2024)
    scenes = [world.random_scene(rng, held_out=True, two_subjects=two_subjects) for _ in range(count)]
    return [replace(scene, style=style) for scene in scenes] if style else scenes


def draw_scenes(scenes: list[world.Scene]) -> np.ndarray:
    """(N, 128, 128, 3) uint8 renders."""
    return np.stack([np.asarray(world.render(scene, data.SIZE)) for scene in scenes])


def held_out_accuracy(judge: Judge, count: int = 1000) -> dict[str, tuple[float, float]]:
    """Its shares of right classes and contexts on `count` held-out renders: as photos, and in all styles."""
    found = {}
    for name, style in (("photos", "photo"), ("all styles", None)):
        scenes = held_out_scenes(count, style=style)
        right = verdicts(judge, draw_scenes(scenes)) == [answer(scene) for scene in scenes]
        found[name] = tuple(right.mean(0).tolist())
    return found


@click.command()
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".toybox-build"),
    show_default=True,
    help="Where its pictures lie, and where judge.pt goes.",
)
@click.option("--samples", default=100_000, show_default=True, help="Examples to see.")
@click.option("--seed", default=0, show_default=True)
def main(work: Path, samples: int, seed: int) -> None:
    """Train the judge on rendered pictures, drawn first if WORK has none, and say how well it sees held-out ones."""
    work.mkdir(parents=True, exist_ok=True)
    if not data.load_pictures(work):
        data.render_pictures(work, FRESH)
    train_judge(work, samples, torch.device("cuda" if torch.cuda.is_available() else "cpu"), seed=seed)
    for name, (nouns, places) in held_out_accuracy(load_judge(work)).items():
        print(f"held-out renders, {name}: class {nouns:.1%}, context {places:.1%}")


if __name__ == "__main__":
    main()
