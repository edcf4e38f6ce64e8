"""Commands about methods and what they trained: fuse, export, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dreambooth.cli.console import suggestion
from dreambooth.cli.options import BASE, MODEL, NEW_FILE, NEW_FOLDER, PATH, SCALE, WHICH, not_taken, read_lines
from dreambooth.quiet import quiet_third_parties

if TYPE_CHECKING:
    from dreambooth.generate import Which


@click.command("methods")
def list_methods() -> None:
    """List the ways of fine-tuning, each in a sentence."""
    quiet_third_parties()
    from dreambooth.methods import methods

    for method in methods():
        click.echo(f"{method.name}: {method.description}")


@click.command()
@click.argument("source", metavar="RUN", type=MODEL)
@click.option("--out", required=True, type=NEW_FOLDER, callback=not_taken, help="A new folder.")
@SCALE
@BASE
@WHICH
def fuse(source: str, out: Path, scale: float, base_model: str | None, which: Which) -> None:
    """Write a run's adapter and its base model as one diffusers pipeline, which needs neither.

    RUN may be a folder or a Hub id that holds an adapter, too. A pipeline holds no settings to draw with, so those of a
    run are told.
    """
    quiet_third_parties()
    from dreambooth.generate import find_model
    from dreambooth.models import adapters
    from dreambooth.models.fetch import fetch_model

    found = find_model(source, which=which, base=fetch_model(base_model) if base_model else None)
    adapters.fuse(found.model, out, found.base, scale=scale)
    click.echo(out)
    if found.config:
        sampling = found.config.drawing
        sampler = [] if sampling.scheduler == "default" else ["--scheduler", sampling.scheduler]
        precision = [] if sampling.precision == "auto" else ["--precision", sampling.precision]
        options = ["--steps", sampling.steps, "--guidance", f"{sampling.guidance_scale:g}", *sampler, *precision]
        click.echo(suggestion(found.config, out, *options))


@click.command()
@click.argument("source", metavar="RUN", type=MODEL)
@click.option("--out", required=True, type=NEW_FILE, callback=not_taken, help="A new file, NAME.safetensors.")
@WHICH
def export(source: str, out: Path, which: Which) -> None:
    """Write a LoRA as one file for Kohya's scripts, A1111, ComfyUI and others.

    RUN may be a folder or a Hub id that holds a LoRA, too.
    """
    quiet_third_parties()
    from dreambooth.generate import find_model
    from dreambooth.models.kohya import export_kohya

    for remark in export_kohya(find_model(source, which=which).model, out):
        click.echo(remark, err=True)
    click.echo(out)


@click.command("merge")
@click.argument("sources", metavar="RUN RUN …", nargs=-1, required=True, type=MODEL)
@click.option("--out", required=True, type=NEW_FOLDER, callback=not_taken, help="A new folder.")
@click.option(
    "--captions",
    "captions_file",
    metavar="FILE",
    type=PATH,
    help="Ordinary text whose reading should stay as it is, a caption a line (default: captions of the toybox's world, "
    "else the paper's prompts for many classes).",
)
@BASE
@WHICH
def merge_runs(
    sources: tuple[str, ...], out: Path, captions_file: Path | None, base_model: str | None, which: Which
) -> None:
    """Make one adapter of subjects that custom_diffusion learned in runs of their own.

    RUN may be a folder or a Hub id that holds such an adapter, too.
    """
    quiet_third_parties()
    from dreambooth.generate import find_model
    from dreambooth.models.fetch import fetch_model
    from dreambooth.models.merge import merge, part_of

    captions = read_lines(captions_file, "caption") if captions_file else None
    base = fetch_model(base_model) if base_model else None
    found = [find_model(source, which=which, base=base) for source in sources]
    parts = [part_of(one.model, one.config) for one in found]
    merge(parts, out, captions, next((one.base for one in found if one.base), None))
    click.echo(f"Merged: {', '.join(name for part in parts for name in part.names)}")
    click.echo(f"Model: {out}")
