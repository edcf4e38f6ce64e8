"""Every figure and picture of the toybox's model card, measured on what ships.

    python -m dreambooth.toybox.pretrain.figures [--out docs] [--photos FOLDER] [--work DIR] [--only NAME ...]

Each figure is a function that gives Markdown. Held-out pictures show identities that no training has seen. Those with
a judge in them need `python -m dreambooth.toybox.pretrain.judge` first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from dreambooth.config.names import TOYBOX
from dreambooth.config.sections import EvaluationConfig, SamplingConfig
from dreambooth.config.settings import Config
from dreambooth.errors import DreamBoothError, ModelError
from dreambooth.files import atomic_file
from dreambooth.generate import Source, generate, open_source
from dreambooth.metrics import metrics
from dreambooth.metrics.encoders import load_encoders
from dreambooth.photos.folder import find_photos
from dreambooth.photos.prepare import prepare_photo
from dreambooth.photos.sheets import contact_sheet
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs.directory import Run
from dreambooth.toybox import world
from dreambooth.toybox.identities import CLASSES, identity
from dreambooth.toybox.pretrain.data import SIZE, to_pixels
from dreambooth.toybox.pretrain.export import SUBJECTS
from dreambooth.toybox.pretrain.judge import (
    NOUNS,
    Judge,
    answer,
    draw_scenes,
    held_out_accuracy,
    held_out_scenes,
    load_judge,
    verdicts,
)
from dreambooth.toybox.pretrain.measures import (
    Look,
    centred_pixels,
    clip_looks,
    colours,
    hues,
    identity_auc,
    judge_look,
    overlap,
    pixel_spread,
    psnr,
    spread,
    unsettled,
    vit_look,
)
from dreambooth.toybox.world import CONTEXTS, HELD_OUT_FROM, STYLES, Scene

HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Folders:
    """Where the card's pictures go, where `judge.pt` lies and the subjects' grids go, real photos, the encoders."""

    out: Path
    work: Path
    photos: Path | None = None
    encoders: Path = HERE / "encoders"


def looks(folders: Folders) -> dict[str, Look]:
    """Every look there is, by name."""
    found = {"judge": judge_look(load_judge(folders.work))}
    if (folders.encoders / "clip").is_dir():
        found["CLIP"] = clip_looks(folders.encoders / "clip")[0]
    if (folders.encoders / "vit").is_dir():
        found["ViT"] = vit_look(folders.encoders / "vit")
    return found


# ------------------------------------------------------------------------------------------------- VAE, grids of base


def reconstruct(pipe: DiffusionPipeline, pictures: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 pictures through the VAE and back, without sampling noise."""
    with torch.inference_mode():
        pixels = to_pixels(pictures, torch.device("cpu"))
        decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    again: np.ndarray = ((decoded.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return again


def vae(folders: Folders, count: int = 200) -> str:
    """PSNR of the VAE on held-out pictures and on real photos."""
    pipe = open_source(TOYBOX, precision="no").pipe
    sets = {f"{count} held-out pictures": draw_scenes(held_out_scenes(count, two_subjects=0.08))}
    if folders.photos:
        photos = _photos(folders.photos)
        sets[f"{len(photos)} real photos"] = photos
        _save(folders.out / "toybox-photos.jpg", [*photos, *reconstruct(pipe, photos)], len(photos))
    rows = [(name, f"{psnr(x, reconstruct(pipe, x)):.1f} dB") for name, x in sets.items()]
    return _table(("VAE", "PSNR"), rows)


def grids(folders: Folders) -> str:
    """Pictures: each class in each context; each class in each style, and prompts of two things."""
    source = open_source(TOYBOX)
    grid = _draw(source, [f"a photo of a {noun} {where}" for noun in CLASSES for where in CONTEXTS.values()], 1)
    styles = _draw(source, [f"{style} a {noun}" for style in STYLES.values() for noun in CLASSES], 1)
    pairs = ["dog and a mug on a beach", "cat and a car in the snow", "robot and a vase on grass"]
    pairs += ["duck on the left and a clock on the right", "teapot and a bear on a wooden floor", "mug and a sneaker"]
    two = _draw(source, [f"a photo of a {pair}" for pair in pairs], 2)
    _save(folders.out / "toybox-grid.jpg", grid, len(CONTEXTS))
    _save(folders.out / "toybox-styles.jpg", [*styles, *two], len(CLASSES))
    return f"Drawn at guidance {source.sampling.guidance_scale:g} in {source.sampling.steps} steps."


# --------------------------------------------------------------------------------------------- the judge on the model


def judged(folders: Folders, each: int = 4, held_out: int = 1000) -> str:
    """Whether each class in each context is drawn as asked, by the judge, beside its own accuracy."""
    judge, source = load_judge(folders.work), open_source(TOYBOX)
    pairs = [(noun, where) for noun in range(len(CLASSES)) for where in range(len(CONTEXTS))]
    places = list(CONTEXTS.values())
    pictures = _draw(source, [f"a photo of a {CLASSES[noun]} {places[where]}" for noun, where in pairs], each)
    asked = np.repeat(pairs, each, axis=0)
    right = verdicts(judge, pictures) == asked
    rows = [(f"{held_out} held-out renders, {k}", *v) for k, v in held_out_accuracy(judge, held_out).items()]
    rows.append((f"{len(right)} pictures, guidance {source.sampling.guidance_scale:g}", *right.mean(0)))
    lowest = []
    for k, names in enumerate((CLASSES, tuple(CONTEXTS))):
        shares = [right[asked[:, k] == i, k].mean() for i in range(len(names))]
        lowest.append(f"{names[int(np.argmin(shares))]} {min(shares):.1%}")
    shown = [(name, f"{nouns:.1%}", f"{where:.1%}") for name, nouns, where in rows]
    return _table(("the judge sees", "class", "context"), [*shown, ("lowest class, lowest context", *lowest)])


def surfaces(folders: Folders, each: int = 2) -> str:
    """Whether surfaces are flat where the world's are: drawn pictures beside as many held-out renders.

    Less is not better: an empty picture has one colour and no edge. The renders' own figures are the aim.
    """
    source = open_source(TOYBOX)
    rng = np.random.default_rng(8)
    asked = [(noun, place) for noun in CLASSES for place in CONTEXTS for _ in range(each)]
    seeds = HELD_OUT_FROM + 100 + rng.choice(10_000, len(asked), replace=False)  # past the sample subjects
    real = draw_scenes(
        [
            Scene((identity(noun, int(seed)),), place, "photo", int(rng.integers(2**31)))
            for seed, (noun, place) in zip(seeds, asked)
        ]
    )
    exact = open_source(TOYBOX, precision="no").pipe
    sets = {"held-out renders": real, "the same through the VAE": reconstruct(exact, real)}
    drawn = _draw(source, [f"a photo of a {noun} {where}" for noun in CLASSES for where in CONTEXTS.values()], each)
    sets[f"drawn, guidance {source.sampling.guidance_scale:g}"] = drawn
    header = (f"surfaces, {len(real)} pictures each", "neither flat nor edge", "colours", "most unlike renders")
    rows = []
    for name, pictures in sets.items():
        shares = unsettled(pictures)
        apart = (shares - unsettled(real)).reshape(len(CLASSES), -1).mean(1)
        worst = f"{CLASSES[int(np.argmax(apart))]} {apart.max():+.1%}" if pictures is not real else ""
        rows.append((name, f"{shares.mean():.1%}", f"{colours(pictures).mean():.0f}", worst))
    return _table(header, rows)


def variety(folders: Folders, each: int = 24) -> str:
    """DIV: how far apart pictures of 'a photo of a <class>' are, in percent of held-out renders as photos."""
    source, kinds = open_source(TOYBOX), looks(folders)
    measures: dict[str, Callable[[np.ndarray], float]] = {}
    for look_name, look in kinds.items():
        measures[f"1 - cosine, {look_name}"] = partial(_spread_of, look)
    measures["RMS of pixels at 32 px"] = pixel_spread
    if "ViT" in kinds:
        measures = {"DIV as `evaluate` measures it": _div} | measures
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in measures}
    for noun in CLASSES:
        drawn, real = _draw(source, [f"a photo of a {noun}"], each), _other_things(noun, each)
        for name, measure in measures.items():
            found[name].append((measure(drawn), measure(real)))
    rows = []
    for name, pairs in found.items():
        drawn, real = np.mean(pairs, axis=0)
        parts = [a / b for a, b in pairs]
        low = int(np.argmin(parts))
        rows.append((name, f"{drawn:.3g}", f"{real:.3g}", f"{drawn / real:.0%}", f"{CLASSES[low]} {parts[low]:.0%}"))
    return _table((f"DIV, {each} pictures a class", "drawn", "real", "drawn / real", "lowest class"), rows)


def _spread_of(look: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray) -> float:
    return spread(look(pictures))


def _div(pictures: np.ndarray) -> float:
    """Mean distance of all pairs by what measures DIV for the toybox."""
    perceptual = load_encoders(EvaluationConfig(), TOYBOX, "cpu").perceptual
    assert perceptual is not None, "the toybox has one"
    images = [Image.fromarray(picture) for picture in pictures]
    return float(perceptual.distances([(images[i], images[j]) for i, j in metrics.pairs(len(images))]).mean())


def _other_things(noun: str, count: int) -> np.ndarray:
    """Photos of `count` held-out things of a class, in random contexts."""
    rng = np.random.default_rng([5, NOUNS[noun]])
    seeds = HELD_OUT_FROM + 100 + rng.choice(10_000, count, replace=False)  # the sample subjects have lower numbers
    where = rng.choice(list(CONTEXTS), count)
    return draw_scenes(
        [
            Scene((identity(noun, int(seed)),), str(context), "photo", int(rng.integers(2**31)))
            for seed, context in zip(seeds, where)
        ]
    )


# ------------------------------------------------------------------------------------------------------------ encoders


def encoders(folders: Folders, count: int = 600, things: int = 10, views: int = 4) -> str:
    """CLIP's zero-shot accuracy on held-out renders, and how well looks tell things of one class apart."""
    if missing := [name for name in ("clip", "vit") if not (folders.encoders / name).is_dir()]:
        hint = "Train and export them: python -m dreambooth.toybox.pretrain."
        raise ModelError(f"{folders.encoders} holds no {' and no '.join(missing)}.", hint)
    clip, text = clip_looks(folders.encoders / "clip")
    scenes = held_out_scenes(count)
    nouns = [text([f"{style} a {noun}" for style in STYLES.values()]) for noun in CLASSES]
    places = [text([f"a photo of a {noun} {where}" for noun in CLASSES]) for where in CONTEXTS.values()]
    features = clip(draw_scenes(scenes))
    said = np.stack([(features @ np.stack(texts).T).argmax(1) for texts in (nouns, places)], axis=1)
    right = (said == [answer(scene) for scene in scenes]).mean(0)
    rows = [
        ("class, mean of '<style> a <class>' over 4 styles", f"{right[0]:.1%}"),
        ("context, mean of 'a photo of a <class> <context>' over 12 classes", f"{right[1]:.1%}"),
    ]
    zero_shot = _table((f"CLIP zero-shot on {count} held-out renders", "right"), rows)

    kinds = {
        "ViT": vit_look(folders.encoders / "vit"),
        "CLIP": clip,
        "pixels at 64 px": centred_pixels,
        "ViT with random weights": vit_look(folders.encoders / "vit", trained=False),
    }
    owners = [(noun, k) for noun in range(len(CLASSES)) for k in range(things)]
    pictures = np.stack(
        [
            np.asarray(image)
            for noun, k in owners
            for _, image in world.sample_subject(CLASSES[noun], HELD_OUT_FROM + k, views, SIZE)
        ]
    )
    classes, which = np.repeat(owners, views, axis=0)[:, 0], np.repeat(np.arange(len(owners)), views)
    rows = [(name, f"{identity_auc(look(pictures), which, classes):.3f}") for name, look in kinds.items()]
    title = f"identity, {len(pictures)} held-out renders of {len(owners)} things"
    return zero_shot + "\n\n" + _table((title, "AUC"), rows)


# ---------------------------------------------------------------------------------------------------------- DreamBooth


@dataclass(frozen=True)
class Shown:
    """What is measured of one way to show a subject: pictures of it by context and by style, and of its class."""

    contexts: np.ndarray
    """`each` pictures in each of the ten contexts, in their order."""
    styles: np.ndarray
    """`each` pictures in each of the four styles, in their order."""
    classes: np.ndarray


def dreambooth(
    folders: Folders,
    subjects: Sequence[str] = tuple(SUBJECTS),
    each: int = 4,
    class_pictures: int = 24,
    settings: dict[str, dict[str, Any]] | None = None,
) -> str:
    """DreamBooth on the sample subjects, with and without PPL; `settings` change the toybox preset's.

    Writes a grid of each subject to the work directory: real, base, without and with PPL from top to bottom.
    """
    judge, kinds = load_judge(folders.work), looks(folders)
    name = "ViT" if "ViT" in kinds else "judge"
    measured = {}
    for noun in subjects:
        photos = _photos(HERE / "subjects" / noun)
        shown = _ways_to_show(noun, each, class_pictures, settings or {})
        for way, pictures in shown.items():
            measured[noun, way] = measure(pictures, photos, kinds[name], judge)
        lines = [np.concatenate([p.contexts[::each], p.styles[::each], p.classes[:1]]) for p in shown.values()]
        _save(folders.work / f"dreambooth-{noun}.jpg", np.concatenate(lines), len(lines[0]))
    ways = list(dict.fromkeys(way for _, way in measured))
    means = {("all", way): np.mean([measured[noun, way] for noun in subjects], axis=0) for way in ways}
    header = ("", "", f"subject ({name}) ↑", f"PRES ({name}) ↓", f"DIV ({name}) ↑", "context ↑", "hues in styles ↑")
    rows = [
        (*key, *(f"{value:.2f}" for value in values[:3]), f"{values[3]:.0%}", f"{values[4]:.2f}")
        for key, values in (means | measured).items()
    ]
    train = _config(subjects[0], True, settings or {}).train
    return (
        f"{len(subjects)} subjects, {train.steps} steps at {train.learning_rate:g}, {each} pictures a prompt, "
        f"{class_pictures} of the class prompt\n\n" + _table(header, rows)
    )


def measure(shown: Shown, photos: np.ndarray, look: Look, judge: Judge) -> tuple[float, float, float, float, float]:
    """Likeness of the subject to its photos, likeness of its class to them (PRES), DIV of the class, share of right
    contexts, and how much of the photos' hues the drawn styles keep."""
    own, classes = look(photos), look(shown.classes)
    asked = np.repeat(np.arange(len(CONTEXTS)), len(shown.contexts) // len(CONTEXTS))
    drawn = np.split(shown.styles, len(STYLES))[1:]  # the first is the photo
    return (
        float((look(shown.contexts) @ own.T).mean()),
        float((classes @ own.T).mean()),
        spread(classes),
        float((verdicts(judge, shown.contexts)[:, 1] == asked).mean()),
        float(np.mean([overlap(hues(pictures), hues(photos)) for pictures in drawn])),
    )


def _ways_to_show(noun: str, each: int, class_pictures: int, settings: dict[str, dict[str, Any]]) -> dict[str, Shown]:
    """Real renders, the base model, and DreamBooth on it without and with PPL."""
    shown = {"real": _real(noun, each, class_pictures)}
    with tempfile.TemporaryDirectory() as folder:
        for way, ppl in (("base", None), ("no PPL", False), ("PPL", True)):
            config = _config(noun, bool(ppl), settings)
            source = open_source(TOYBOX) if ppl is None else _trained(config, Path(folder) / way)
            shown[way] = _show(source, config, each, class_pictures)
            print(f"{noun}, {way}: drawn", flush=True)
    return shown


def _real(noun: str, each: int, class_pictures: int) -> Shown:
    """New renders of a sample subject, and of other things of its class."""
    subject = identity(noun, HELD_OUT_FROM + SUBJECTS[noun])
    rng = np.random.default_rng(6)
    in_contexts = [(context, "photo") for context in CONTEXTS for _ in range(each)]
    in_styles = [(str(rng.choice(list(CONTEXTS))), style) for style in STYLES for _ in range(each)]
    contexts, styles = (
        [Scene((subject,), context, style, int(rng.integers(2**31))) for context, style in views]
        for views in (in_contexts, in_styles)
    )
    return Shown(draw_scenes(contexts), draw_scenes(styles), _other_things(noun, class_pictures))


def _config(noun: str, ppl: bool, settings: dict[str, dict[str, Any]]) -> Config:
    """The toybox preset on a sample subject."""
    own: dict[str, dict[str, Any]] = {
        "subject": {"photos": str(HERE / "subjects" / noun), "class_noun": noun},
        "prior": {"enabled": ppl},
        "train": {"sample_every": 0},
    }
    return Config.from_dict(own | {key: own.get(key, {}) | value for key, value in settings.items()})


def _trained(config: Config, folder: Path) -> Source:
    run = Run.create(config, folder)
    for _ in run.execute():
        pass
    return open_source(str(run.path))


def _show(source: Source, config: Config, each: int, class_pictures: int) -> Shown:
    subject = f"{config.subject.identifier} {config.subject.class_noun}"
    contexts = _draw(source, [f"a photo of {subject} {where}" for where in CONTEXTS.values()], each, config.sampling)
    styles = _draw(source, [f"{style} {subject}" for style in STYLES.values()], each, config.sampling)
    return Shown(contexts, styles, _draw(source, [config.class_prompt], class_pictures, config.sampling))


# -------------------------------------------------------------------------------------------------------- command line


def _draw(source: Source, prompts: list[str], each: int, sampling: SamplingConfig | None = None) -> np.ndarray:
    """`each` pictures of every prompt, (N, 128, 128, 3) uint8."""
    batches = generate(source, prompts, num_images=each, sampling=sampling)
    return np.stack([np.asarray(picture.image) for batch in batches for picture in batch])


def _photos(folder: Path) -> np.ndarray:
    """A folder's photos, as training sees them, (N, 128, 128, 3) uint8."""
    return np.stack([np.asarray(prepare_photo(path, SIZE).image) for path in find_photos(folder)])


def _save(path: Path, pictures: Iterable[np.ndarray], columns: int) -> None:
    with atomic_file(path) as partial:
        contact_sheet([Image.fromarray(picture) for picture in pictures], columns).save(partial, quality=85)
    print(path)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


FIGURES: dict[str, Callable[[Folders], str]] = {
    "vae": vae,
    "grids": grids,
    "judge": judged,
    "surfaces": surfaces,
    "variety": variety,
    "encoders": encoders,
    "dreambooth": dreambooth,
}


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("docs"),
    show_default=True,
    help="Where the card's pictures go.",
)
@click.option("--photos", type=click.Path(path_type=Path), help="A folder of real photos, to see through the VAE.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".toybox-build"),
    show_default=True,
    help="Where judge.pt lies and the subjects' grids go.",
)
@click.option("--only", multiple=True, type=click.Choice(list(FIGURES)), help="These figures; all if left out.")
def main(out: Path, photos: Path | None, work: Path, only: tuple[str, ...]) -> None:
    """Measure the toybox: print Markdown tables and write the model card's pictures."""
    quiet_third_parties()
    folders = Folders(out, work, photos)
    for name in only or FIGURES:
        try:
            print(f"\n{FIGURES[name](folders)}\n", flush=True)
        except DreamBoothError as error:
            raise click.ClickException(f"{name}: {error}") from None


if __name__ == "__main__":
    main()
