"""The README's pictures: a subject in places it was never seen, and its class with and without prior preservation.

    python -m benchmarks.pictures [--subject backpack] [--out docs]

Trains twice on toybox (about two minutes on two cores) and writes `<subject>.jpg` and `<subject>-ppl.jpg`.
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from dreambooth.config.settings import Config
from dreambooth.files import atomic_file
from dreambooth.generate import generate, open_source
from dreambooth.photos.folder import find_photos
from dreambooth.photos.sheets import contact_sheet
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs.directory import Run
from dreambooth.toybox.world import CONTEXTS

SUBJECTS = Path(__file__).parent.parent / "dreambooth" / "toybox" / "subjects"


def draw(source, prompts: list[str], num_images: int) -> list[Image.Image]:
    return [p.image for batch in generate(source, prompts, num_images=num_images) for p in batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", default="backpack", choices=sorted(p.name for p in SUBJECTS.iterdir()))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    quiet_third_parties()
    noun = args.subject
    train = {"sample_every": 0, "checkpoint_every": 10**6}
    train |= {"steps": args.steps} if args.steps else {}
    train |= {"learning_rate": args.learning_rate} if args.learning_rate else {}
    places = [f"a photo of sks {noun} {where}" for where in CONTEXTS.values()]
    styles = [f"{style} sks {noun}" for style in ("a pencil sketch of", "a watercolour painting of")]
    rows = {"base": draw(open_source("toybox"), [f"a photo of a {noun}"], 10)}
    with tempfile.TemporaryDirectory() as folder:
        for name, ppl in (("without", False), ("with", True)):
            settings = {"subject": {"photos": str(SUBJECTS / noun), "class_noun": noun}, "train": train}
            run = Run.create(Config.from_dict(settings | {"prior": {"enabled": ppl}}), Path(folder) / name)
            for _ in run.execute():
                pass
            source = open_source(str(run.path))
            rows[name] = draw(source, [f"a photo of a {noun}"], 10)
            rows[name + " subject"] = draw(source, [f"a photo of sks {noun}"], 10)
            rows[name + " places"] = draw(source, places, 1) + draw(source, styles, 1)
    photos = [Image.open(path).resize((128, 128), Image.Resampling.LANCZOS) for path in find_photos(SUBJECTS / noun)]
    blank = Image.new("RGB", (128, 128), "white")
    sheet = photos + [blank] * 7 + rows["with places"]
    with atomic_file(args.out / f"{noun}.jpg") as partial:
        contact_sheet(sheet, 12).save(partial, quality=88)
    sheet = rows["base"] + rows["without"] + rows["with"] + rows["without subject"] + rows["with subject"]
    with atomic_file(args.out / f"{noun}-ppl.jpg") as partial:
        contact_sheet(sheet, 10).save(partial, quality=88)


if __name__ == "__main__":
    main()
