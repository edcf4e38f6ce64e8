"""The command that draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dreambooth.cli.options import BASE, MODEL, NEW_FOLDER, PRECISION, SCALE, WHICH
from dreambooth.errors import ConfigError
from dreambooth.files import named_path
from dreambooth.quiet import quiet_third_parties

if TYPE_CHECKING:
    from dreambooth.generate import Which


def _weighted(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> list[tuple[str, float]]:
    """Each RUN or RUN:WEIGHT as a pair; a weight that is left out is 1."""
    pairs = []
    for text in given:
        source, _, weight = text.rpartition(":")
        try:
            whole = not source or named_path(text, "--adapter").exists()
            pairs.append((text, 1.0) if whole else (source, float(weight)))
        except ValueError:  # a colon of the name's own
            pairs.append((text, 1.0))
    return [(MODEL.convert(source, option, context), weight) for source, weight in pairs]


@click.command()
@click.argument("source", metavar="RUN_OR_MODEL", type=MODEL)
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to draw; may be given several times.")
@click.option("--negative-prompt", default="", help="What to avoid.")
@click.option("--num-images", default=4, show_default=True, type=click.IntRange(1, 10_000), help="Pictures per prompt.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Seed of the first picture."
)
@click.option("--steps", type=click.IntRange(1, 1000), help="Sampling steps (default: the model's).")
@click.option(
    "--guidance", type=click.FloatRange(0, 50), help="How strictly to follow the prompt (default: the model's)."
)
@click.option("--scheduler", help="default, ddim, dpm++, euler, unipc or pndm.")
@click.option(
    "--batch-size", default=16, show_default=True, type=click.IntRange(1, 256), help="Pictures drawn at once."
)
@PRECISION
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@WHICH
@SCALE
@BASE
@click.option(
    "--adapter",
    "adapters",
    metavar="RUN[:WEIGHT]",
    multiple=True,
    callback=_weighted,
    help="Put another adapter of the same base model on top, of a run the one that --which says; may be given several "
    "times.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda, or cuda:1 for the second GPU.")
@click.option("--out", default=Path("generated"), show_default=True, type=NEW_FOLDER, help="Folder for the PNGs.")
def generate(
    source: str,
    prompts: tuple[str, ...],
    negative_prompt: str,
    num_images: int,
    seed: int,
    steps: int | None,
    guidance: float | None,
    scheduler: str | None,
    batch_size: int,
    precision: str | None,
    revision: str | None,
    which: Which,
    scale: float,
    base_model: str | None,
    adapters: list[tuple[str, float]],
    device: str,
    out: Path,
) -> None:
    """Draw pictures with a run, toybox, a folder with a pipeline or an adapter, or a Hub id.

    A model that was published from here is sampled as its run was, unless other settings are given.
    """
    quiet_third_parties()
    from pydantic import ValidationError

    from dreambooth.config.subject import identifier_in
    from dreambooth.families.tokens import Reader
    from dreambooth.generate import fewer_at_once, open_source, save_picture, shown_adapters
    from dreambooth.generate import generate as draw
    from dreambooth.machine import resolve_device
    from dreambooth.models.fetch import fetch_model

    if not all(prompt.strip() for prompt in prompts):
        raise ConfigError("--prompt is empty.", "Say what to draw.")
    base, place = fetch_model(base_model) if base_model else None, resolve_device(device)
    opened = open_source(
        source, revision, place, which=which, base=base, scale=scale, adapters=adapters, precision=precision
    )
    asked_for = {"steps": steps, "guidance_scale": guidance, "scheduler": scheduler}
    given = {key: value for key, value in asked_for.items() if value is not None}
    try:
        sampling = opened.sampling.model_validate(opened.sampling.model_dump() | given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]} {first['input']!r}: {first['msg']}.") from None
    identifiers = tuple(subject.identifier for subject in opened.config.subjects) if opened.config else ()
    reader = Reader(getattr(opened.pipe, opened.family.tokenizers[0]), identifiers)
    for remark in reader.remarks([*prompts, negative_prompt]):
        click.echo(f"warning: {remark}", err=True)
    if identifiers and not any(identifier_in(word).search(prompt) for word in identifiers for prompt in prompts):
        click.echo(f"warning: No prompt names {' or '.join(identifiers)}, which means the subject.", err=True)
    asked, setting = min(batch_size, num_images * len(prompts)), "--batch-size"
    if (batch_size := opened.batch_that_fits(asked, setting, sampling)) < asked:
        click.echo(f"advice: {fewer_at_once(batch_size, asked, setting)}", err=True)
    number = 1 + max((int(path.name[:4]) for path in out.glob("[0-9][0-9][0-9][0-9]-*.png")), default=-1)
    for pictures in draw(
        opened,
        list(prompts),
        num_images=num_images,
        seed=seed,
        sampling=sampling,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        batch_setting=setting,
    ):
        for picture in pictures:
            path = out / f"{number:04d}-{picture.seed}.png"
            facts = sampling.model_dump(include={"steps", "guidance_scale", "scheduler"})
            facts |= {"prompt": picture.prompt, "negative_prompt": negative_prompt, "seed": picture.seed}
            facts |= {"precision": picture.precision} | ({"scale": scale} if scale != 1 else {})
            facts |= {"which": which} if which != "last" else {}
            facts |= {"adapters": shown_adapters(opened.adapters)} if opened.adapters else {}
            save_picture(path, picture.image, model=opened.name, **facts)
            click.echo(path)
            number += 1
