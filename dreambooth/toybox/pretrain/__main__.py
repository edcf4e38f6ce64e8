"""`python -m dreambooth.toybox.pretrain PART --work DIR`: see its `--help`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch

from dreambooth.toybox.pretrain import base, data, encoders, export, vae

# Part -> what it does, examples it sees by default, and the function (work, samples, device).
TRAININGS: dict[str, tuple[str, int, Callable[[Path, int, torch.device], object]]] = {
    "vae": ("Train the autoencoder.", 60_000, vae.train_vae),
    "decoder": ("Train its decoder further.", 30_000, vae.train_decoder),
    "anneal": ("Let base's rate fall, in a branch: what ships.", 250_000, base.anneal_base),
    "clip": ("Train the CLIP that measures prompts.", 500_000, encoders.train_clip),
    "vit": ("Train the ViT that measures identity, without labels.", 200_000, encoders.train_vit),
}


@click.group()
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".toybox-build"),
    show_default=True,
    help="Where pictures and checkpoints lie.",
)
@click.option("--device", help="cpu or cuda; CUDA where there is one if left out.")
@click.pass_context
def main(context: click.Context, work: Path, device: str | None) -> None:
    """Train the toybox from nothing, part by part.

    Each part picks up where it was stopped, even by SIGKILL, and ends with the same weights as if it had not been.
    """
    work.mkdir(parents=True, exist_ok=True)
    context.obj = (work, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))


@main.command()
@click.option("--count", default=48_000, show_default=True)
@click.pass_obj
def pictures(obj: tuple[Path, torch.device], count: int) -> None:
    """Render the world; the first of all parts."""
    data.render_pictures(obj[0], count)


def _training(name: str, text: str, default: int, train: Callable[[Path, int, torch.device], object]) -> None:
    @main.command(name, help=text)
    @click.option("--samples", default=default, show_default=True, help="Examples to see.")
    @click.pass_obj
    def command(obj: tuple[Path, torch.device], samples: int) -> None:
        train(obj[0], samples, obj[1])


for _name, (_text, _default, _train) in TRAININGS.items():
    _training(_name, _text, _default, _train)


@main.command("base")
@click.option("--samples", default=1_500_000, show_default=True, help="Examples to see.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A pipeline's folder to begin with, such as dreambooth/toybox/model.",
)
@click.pass_obj
def base_(obj: tuple[Path, torch.device], samples: int, weights: Path | None) -> None:
    """Train the UNet and text encoder on the latents, at a constant rate."""
    base.train_base(obj[0], samples, obj[1], weights=weights)


@main.command()
@click.pass_obj
def latents(obj: tuple[Path, torch.device]) -> None:
    """Encode every picture once; after vae, before base."""
    vae.encode_latents(*obj)


@main.command("export")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path(__file__).parents[1])
@click.pass_obj
def export_(obj: tuple[Path, torch.device], out: Path) -> None:
    """Write the fp16 folders that ship, of the parts that are there."""
    export.export(obj[0], out)


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path(__file__).parents[1])
def subjects(out: Path) -> None:
    """Draw the sample subjects that ship."""
    export.save_subjects(out / "subjects")


if __name__ == "__main__":
    main()
