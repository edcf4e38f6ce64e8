"""Commands that help with a subject before it is trained: its photos and its identifier."""

from __future__ import annotations

from pathlib import Path

import click

from dreambooth.cli.options import MODEL, NEW_FILE, PATH, picture_file
from dreambooth.quiet import quiet_third_parties


@click.group()
def photos() -> None:
    """Look at photos before training."""


@photos.command("check")
@click.argument("folder", type=PATH)
@click.option(
    "--resolution", default=512, show_default=True, type=click.IntRange(32, 4096), help="Training size in pixels."
)
@click.option("--sheet", type=NEW_FILE, callback=picture_file, help="Write a picture of the crops.")
def check_photos(folder: Path, resolution: int, sheet: Path | None) -> None:
    """The photo coach: what would make the training better."""
    from dreambooth.photos.captions import find_captions
    from dreambooth.photos.coach import coach
    from dreambooth.photos.folder import find_photos, passed_over
    from dreambooth.photos.prepare import prepare_photos
    from dreambooth.photos.sheets import contact_sheet

    found = find_photos(folder)
    prepared = prepare_photos(found, resolution)
    for photo in prepared:
        click.echo(f"{photo.name}: {photo.size[0]} × {photo.size[1]}, crop {tuple(photo.crop)}")
    for remark in passed_over(folder):
        click.echo(f"warning: {remark}")
    if captions := find_captions(folder, found).captions:
        click.echo(f"{len(captions)} of {len(found)} photos have a caption, which subject.captions: true takes.")
    for finding in coach(prepared):
        click.echo(f"{finding.severity}: {finding.message}")
    if sheet:
        from dreambooth.files import atomic_file

        with atomic_file(sheet) as partial:
            contact_sheet([p.preview for p in prepared], 5, [p.name for p in prepared]).save(partial)


@click.command()
@click.option(
    "--base-model", default="toybox", show_default=True, type=MODEL, help="toybox, a Hub id or a pipeline folder."
)
@click.option(
    "--check", "words", metavar="WORD", multiple=True, help="Judge this identifier; may be given several times."
)
@click.option("--class-noun", default="", help="With --preview: the class noun to show it with.")
@click.option(
    "--preview",
    type=NEW_FILE,
    callback=picture_file,
    help="Write a picture of what the base model draws for each word.",
)
def tokens(base_model: str, words: tuple[str, ...], class_noun: str, preview: Path | None) -> None:
    """Help to choose the identifier: judge words, or suggest rare ones."""
    quiet_third_parties()
    from dreambooth.families.tokens import advise, load_text_side, suggest
    from dreambooth.models.fetch import fetch_model

    tokenizer, text_encoder = load_text_side(fetch_model(base_model))
    advice = [advise(w, tokenizer, text_encoder) for w in words] or suggest(tokenizer, text_encoder)
    for a in advice:
        click.echo(f"{a.word}: {a.verdict}. {' '.join(a.reasons)}")
    if preview:
        _write_preview(preview, base_model, [a.word for a in advice], class_noun)


def _write_preview(path: Path, base_model: str, words: list[str], class_noun: str) -> None:
    from dreambooth.families.tokens import preview_prompts
    from dreambooth.files import atomic_file
    from dreambooth.generate import generate as draw
    from dreambooth.generate import open_source
    from dreambooth.photos.sheets import contact_sheet

    source = open_source(base_model)
    prompts = [prompt for word in words for prompt in preview_prompts(word, class_noun)]
    pictures = [p for batch in draw(source, prompts, num_images=2) for p in batch]
    with atomic_file(path) as partial:
        contact_sheet([p.image for p in pictures], 6, [p.prompt for p in pictures]).save(partial)
    click.echo(path)
