"""What others have published for the same metrics, and why such figures and ours differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dreambooth.evaluation.evaluate import Evaluation

PAPER = "Ruiz et al. 2022, arXiv 2208.12242"


@dataclass(frozen=True)
class Published:
    """One line of somebody else's table; None where it has no such figure."""

    name: str
    source: str
    dino: float | None = None
    clip_i: float | None = None
    clip_t: float | None = None
    pres: float | None = None
    div: float | None = None


PUBLISHED = (
    Published("Real photos (ceiling)", f"{PAPER}, table 1", 0.774, 0.885),
    Published("DreamBooth, Imagen", f"{PAPER}, table 1", 0.696, 0.812, 0.306),
    Published("DreamBooth, Stable Diffusion", f"{PAPER}, table 1", 0.668, 0.803, 0.305),
    Published("Textual Inversion, Stable Diffusion", f"{PAPER}, table 1", 0.569, 0.780, 0.255),
    Published("With PPL, Imagen, 15 subjects", f"{PAPER}, table 3", 0.684, 0.815, 0.308, 0.493, 0.391),
    Published("Without PPL, Imagen, 15 subjects", f"{PAPER}, table 3", 0.712, 0.828, 0.306, 0.664, 0.371),
)
"""The paper's tables of these metrics, all of its 30 subjects but where it says 15."""


def protocol(evaluations: Sequence[Evaluation]) -> list[tuple[str, str, str]]:
    """What was done here and what the paper did, in rows of (aspect, here, paper)."""
    one = evaluations[0]
    pictures = len(one.prompts) * one.images_per_prompt
    return [
        ("Base model", _listed(e.base_model for e in evaluations), "Imagen; Stable Diffusion"),
        ("DINO, PRES by", one.encoders["dino"], "ViT-S/16, self-supervised by DINO"),
        ("CLIP-I, CLIP-T by", one.encoders["clip"], "CLIP"),
        ("DIV by", one.encoders["perceptual"], "LPIPS"),
        ("Subjects", str(len({e.subject for e in evaluations})), "30: 21 things, 9 live"),
        ("Photos a subject", _span([e.photos for e in evaluations]), "4 to 6"),
        ("Photos as compared", "the square crops that training saw", "not told"),
        ("Pictures of a subject", f"{len(one.prompts)} prompts × {one.images_per_prompt} = {pictures}", "25 × 4 = 100"),
        ("Drawn in", "; ".join(dict.fromkeys(e.sampling.words for e in evaluations)), "not told"),
        (
            "PRES from",
            f"{one.class_images} pictures of the class prompt",
            "the class prompt; how many is not told",
        ),
        ("CLIP-T compares with", "the prompt without the identifier", "the prompt; the identifier is not spoken of"),
    ]


def caution(encoders: Iterable[str]) -> str:
    """Whether figures of ours by encoders of these names can be put beside the published ones, in plain words."""
    if any("toybox" in name for name in encoders):
        return (
            "The toybox's encoders are its own, so these figures are on a scale of their own and can't be put beside "
            "the published ones. Only differences between models that were measured alike say something."
        )
    return (
        "Figures that others published are of other protocols, so compare trends rather than digits: what PPL changes, "
        "and how far a model is from its own ceiling."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
