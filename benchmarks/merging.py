"""How much of the captions' mean square merging should count in every direction: where `merge.RIDGE` comes from.

    python -m benchmarks.merging RUN RUN

Merges two toybox runs of custom_diffusion with several ridges, and tells how far keys and values of text come to lie
from where they should: the base model's, for captions that merging did not see and for text of other things and places;
its own run's, for a subject's words in other prompts than the one they are held at. The unit is what one run alone
changes of that text. Below stands the sum of both runs' changes, which is what stacking them does.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dreambooth.config.names import TOYBOX
from dreambooth.generate import find_model
from dreambooth.methods.custom_diffusion import projections, read_weights
from dreambooth.models import merge
from dreambooth.models.adapters import load_model
from dreambooth.prompts import LIVE_CLASSES, paper_prompts, suggestions
from dreambooth.quiet import quiet_third_parties
from dreambooth.toybox.identities import CLASSES
from dreambooth.toybox.world import caption, random_scene

RIDGES = (1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
Weights = dict[str, Tensor]


def unseen_captions() -> list[str]:
    """Of the toybox's world, by another seed than merging's own."""
    rng = np.random.default_rng(1)
    return [caption(random_scene(rng), rng) for _ in range(300)]


def other_text() -> list[str]:
    """The paper's prompts for what the toybox has never seen."""
    nouns = sorted(LIVE_CLASSES - set(CLASSES))
    return [" ".join(p.format(identifier="", class_noun=noun).split()) for noun in nouns for p in paper_prompts(noun)]


def distance(a: Weights, b: Weights, rows: Tensor) -> float:
    """Root mean square of (A − B) f over projections and features `rows` (N, width)."""
    return torch.stack([((a[name] - b[name]) @ rows.T).square().mean() for name in a]).mean().sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2)
    given = parser.parse_args().runs
    quiet_third_parties()
    found = [find_model(run) for run in given]
    parts = [merge.part_of(one.model, one.config) for one in found]
    pipe, family = load_model(parts[0].folder, found[0].base, scale=0, adapters=[(parts[1].folder, 0)])
    layers = projections(pipe, family)
    base = {name: layer.weight.detach().double() for name, layer in layers.items()}
    runs = [{n: w.double() for n, w in read_weights(part.folder, layers).items()} for part in parts]

    def read(prompts: Sequence[str]) -> Tensor:
        return torch.cat([merge.encode(pipe, family, [prompt])[1][0] for prompt in prompts])

    def own(part: merge.Part) -> Tensor:
        (name,) = part.names
        word, _, noun = name.partition(" ")
        prompts = [prompt.replace(name, "{}") for prompt in suggestions(TOYBOX, noun, word)]
        return torch.cat([merge.name_rows(pipe, family, name, prompt) for prompt in prompts])

    texts = {"unseen captions": read(unseen_captions()), "other text": read(other_text())}
    named = [own(part) for part in parts]

    def tell(title: str, weights: Weights, units: Callable[[Tensor], float]) -> None:
        """A line of the table."""
        figures = [distance(weights, base, rows) / units(rows) for rows in texts.values()]
        misread = [distance(weights, w, rows) / distance(base, w, rows) for w, rows in zip(runs, named, strict=True)]
        print(f"{title:>16}" + "".join(f"{figure:18.3f}" for figure in (*figures, sum(misread) / 2)))

    def unit(rows: Tensor) -> float:
        return sum(distance(weights, base, rows) for weights in runs) / 2

    print(f"{'ridge':>16}" + "".join(f"{title:>18}" for title in (*texts, "words elsewhere")))
    held = [merge.name_rows(pipe, family, part.names[0]) for part in parts]
    words, ordinary = torch.cat(held), merge.second_moment(pipe, family, merge.ordinary_captions(TOYBOX))
    for ridge in RIDGES:
        spread = merge.directions(words, ordinary, ridge)
        wanted = {name: torch.cat([w[name] @ rows.T for w, rows in zip(runs, held, strict=True)], 1) for name in base}
        merged = {name: merge.constrained(base[name], words, wanted[name], spread) for name in base}
        tell(f"{ridge:g}", merged, unit)
    tell("sum of changes", {name: sum(w[name] for w in runs) - base[name] for name in base}, unit)


if __name__ == "__main__":
    main()
