"""Whether two subjects stand in one picture and are both themselves: of Custom Diffusion, and of stacked LoRAs.

    python -m benchmarks.two_subjects [--out FOLDER] [--steps N]

For each pair of held-out toybox subjects: one training on both, two trainings merged by the paper's constrained
optimisation, and two LoRA runs stacked, drawn from "a photo of <a> x and <b> y" in every context, beside the base model
with plain words. A subject is recognised in a picture where, of its left and its right part, the one that shows more of
its class is more like the subject's photos, to the toybox's ViT, than like those of any of 19 others of the class.
"""

import argparse
import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth.config.sections import EvaluationConfig
from dreambooth.config.settings import Config
from dreambooth.generate import draw_jobs, open_source
from dreambooth.metrics import metrics
from dreambooth.metrics.encoders import Dino, load_encoders
from dreambooth.models.merge import Part, merge
from dreambooth.photos.sheets import contact_sheet
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs.directory import Run
from dreambooth.toybox.identities import identity
from dreambooth.toybox.pretrain.figures import SUBJECTS
from dreambooth.toybox.world import CONTEXTS, HELD_OUT_FROM, Scene, render, sample_subject

FOLDER = Path(__file__).parent.parent / "dreambooth" / "toybox" / "subjects"
PAIRS = tuple(combinations(SUBJECTS, 2))
"""All fifteen of the six held-out subjects."""
PART = 0.54
"""Side of the left and the right part: a little more than the half that one of two things has in the world."""
OTHERS = 19
"""Other things of the class that a subject might be taken for: chance is one in twenty."""
REAL = 10
"""Real pictures of the pair in each context."""
IMAGES = 2
"""Pictures of each prompt."""


def parts(image: Image.Image) -> list[Image.Image]:
    """The left and the right part, square, down to the ground that things stand on."""
    width, height = image.size
    side, bottom = round(PART * width), round(0.97 * height)
    return [image.crop((x, bottom - side, x + side, bottom)) for x in (0, width - side)]


def gallery(dino: Dino, noun: str) -> np.ndarray:
    """(1 + OTHERS, M, D) embeddings of M photos of the subject, which comes first, and of others of its class."""
    photos = [[Image.open(path) for path in sorted((FOLDER / noun).glob("*.png"))]]
    seeds = (HELD_OUT_FROM + 100 + number for number in range(OTHERS))  # the sample subjects have lower numbers
    photos += [[image for _, image in sample_subject(noun, seed, len(photos[0]), 256)] for seed in seeds]
    return np.stack([dino.embed(one) for one in photos])


def recognised(dino: Dino, images: Sequence[Image.Image], known: np.ndarray) -> np.ndarray:
    """(N,) whether, of all `known` things, a part of each picture is most like the first."""
    seen = dino.embed([part for image in images for part in parts(image)])
    alike = np.stack([metrics.fidelity(seen, photos) for photos in known], 1).reshape(len(images), 2, len(known))
    return alike.max(1).argmax(1) == 0


def real_pictures(noun: str, pair: Sequence[str]) -> list[Image.Image]:
    """Of the pair, as the world draws it: what could be recognised at best."""
    rng = np.random.default_rng(SUBJECTS[noun])
    things = tuple(identity(name, HELD_OUT_FROM + SUBJECTS[name]) for name in pair)
    return [render(Scene(things, place, "photo", int(rng.integers(2**31)))) for place in CONTEXTS for _ in range(REAL)]


def config_of(method: str, pair: Sequence[str], steps: int | None = None) -> Config:
    """Of a run that learns the subjects together."""
    word = "<{}>" if method == "custom_diffusion" else "{}"
    subjects = [
        {"photos": str(FOLDER / noun), "class_noun": noun, "identifier": word.format(name)}
        for noun, name in zip(pair, ("sks", "ohwx"))
    ]
    train = {"sample_every": 0} | ({"steps": steps} if steps else {})
    return Config.from_dict({"method": method, "subject": subjects[0], "more_subjects": subjects[1:], "train": train})


def trained(config: Config, path: Path) -> Path:
    """The run's directory, trained if it was not."""
    run = Run.open(path) if (path / "config.yaml").is_file() else Run.create(config, path)
    if run.status != "finished":
        for _ in run.execute(resume=True):
            pass
    return run.path


def alone(config: Config, folder: Path) -> list[Path]:
    """The same subjects, each trained by itself, once for all pairs."""
    found = []
    for subject in config.subjects:
        single = config.model_copy(update={"subject": subject, "more_subjects": []})
        found.append(trained(single, folder / f"{config.method}-{subject.class_noun}-{subject.identifier.strip('<>')}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("studies/two-subjects"))
    parser.add_argument(
        "--steps", type=int, default=800, help="of the joint trainings; the recipe's for one subject is 200"
    )
    given = parser.parse_args()
    quiet_third_parties()
    given.out.mkdir(parents=True, exist_ok=True)
    dino = load_encoders(EvaluationConfig(), "toybox", "cpu").dino
    totals: dict[str, list[float]] = {}
    for pair in PAIRS:
        known = {noun: gallery(dino, noun) for noun in pair}
        real = {noun: recognised(dino, real_pictures(noun, pair), known[noun]).mean() for noun in pair}
        print(
            f"{' and '.join(pair)}; in real pictures recognised: {', '.join(f'{share:.0%}' for share in real.values())}"
        )
        folder = given.out / "-".join(pair)
        joint = config_of("custom_diffusion", pair, given.steps)
        lora = config_of("lora", pair)
        together = trained(joint, folder / "together")
        apart = alone(config_of("custom_diffusion", pair), given.out / "alone")
        shutil.rmtree(folder / "merged", ignore_errors=True)
        names = [f"{subject.identifier} {subject.class_noun}" for subject in joint.subjects]
        merge([Part(run / "model", (name,)) for run, name in zip(apart, names)], folder / "merged")
        stack = alone(lora, given.out / "alone")
        sources = {
            "base model, plain words": ("toybox", (), ("", "")),
            "Custom Diffusion, together": (str(together), (), ("<sks> ", "<ohwx> ")),
            "Custom Diffusion, merged": (str(folder / "merged"), (), ("<sks> ", "<ohwx> ")),
            "LoRA, stacked": (str(stack[0]), ((str(stack[1]), 1.0),), ("sks ", "ohwx ")),
        }
        for name, (model, adapters, words) in sources.items():
            source = open_source(model, adapters=adapters)
            things = " and ".join(f"{'' if word else 'a '}{word}{noun}" for word, noun in zip(words, pair))
            prompts = [f"a photo of {things} {place}" for place in CONTEXTS.values()]
            jobs = [(prompt, seed) for prompt in prompts for seed in range(IMAGES)]
            drawn = [picture.image for batch in draw_jobs(source, jobs, joint.sampling) for picture in batch]
            found = np.stack([recognised(dino, drawn, known[noun]) for noun in pair])
            totals.setdefault(name, []).append(found.all(0).mean())
            each = ", ".join(f"{noun} {share:.0%}" for noun, share in zip(pair, found.mean(1)))
            print(f"  {name}: {each}, both {found.all(0).mean():.0%} of {len(drawn)} pictures", flush=True)
            contact_sheet(drawn, columns=len(CONTEXTS)).save(
                folder / f"{name.replace(', ', '-').replace(' ', '-')}.png"
            )
    for name, shares in totals.items():
        print(f"{name}: both subjects in {np.mean(shares):.0%} of the pictures")


if __name__ == "__main__":
    main()
