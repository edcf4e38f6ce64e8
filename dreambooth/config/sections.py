"""The sections of a run's settings, each key with its default, range, meaning and source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from dreambooth.config.subject import Prompt, fields_of
from dreambooth.config.validation import Settings

DEVICES = r"auto|cpu|mps|cuda(:\d{1,2})?"
MethodName = Literal["full", "lora", "textual_inversion", "custom_diffusion"]
LEARNS_WORD: tuple[MethodName, ...] = ("textual_inversion", "custom_diffusion")
"""The methods whose identifier is a new word of the vocabulary, `<sks>`, with an embedding that is learned."""
MOST_SUBJECTS = 9
"""Of one run, and of an adapter; ours: with two tokens of a name each they take a third of what CLIP reads."""
MOST_VECTORS = 16
"""Of one word; ours: a fifth of what CLIP reads. Textual Inversion tries up to three (arXiv 2208.01618)."""
MAX_EXAMPLES = 2**31
"""Examples of a run, whose numbers stay below those of the noises (`train._noise_and_timesteps`)."""


class PriorConfig(Settings):
    """Prior preservation: the model's own pictures of the class keep it from forgetting the class (paper §3.3)."""

    enabled: bool = Field(True, description="Train on class images beside the photos (PPL).")
    weight: float = Field(
        1.0, ge=0, le=100, description="λ, the weight of the class images' loss; 0 is enabled: false. Source: paper §4."
    )
    num_images: int = Field(
        200, ge=1, le=10_000, description="How many class images. Source: paper's appendix, ~200 per subject."
    )
    class_prompt: Prompt = Field(
        "a photo of a {class_noun}",
        description="What the class images show and are captioned with. Source: paper §3.3.",
    )
    steps: int = Field(50, ge=1, le=1000, description="Sampling steps of a class image. Source: diffusers' default.")
    guidance_scale: float = Field(
        7.5, ge=0, le=50, description="Guidance of the class images; low keeps them varied. Source: diffusers' default."
    )
    batch_size: int = Field(
        4, ge=1, le=256, description="Class images drawn at once. Source: diffusers' DreamBooth script."
    )
    pack: str | None = Field(
        None,
        description="Hub dataset (OWNER/NAME) of class images that `class-images push` published for the same base "
        "model, class prompt and sampling: they are fetched, and only those that it lacks are drawn.",
    )

    @property
    def active(self) -> bool:
        """Whether class images take part: a weight of zero asks for none."""
        return self.enabled and self.weight > 0

    @field_validator("class_prompt")
    @classmethod
    def _names_only_the_class(cls, template: str) -> str:
        if unknown := fields_of(template) - {"class_noun"}:
            raise ValueError(
                f"uses {{{min(unknown)}}}; only {{class_noun}} is filled in, since it is the class's prompt"
            )
        return template

    @field_validator("pack")
    @classmethod
    def _names_a_repo(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
            raise ValueError("is no Hub repo; give OWNER/NAME")
        return name


class DriftConfig(Settings):
    """Drift penalty: the trained weights are held near the base model's, with or without class images."""

    weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the squared distance of the trained weights from the base model's in the loss: by a "
        "Lipschitz bound it limits how far any picture can drift (Kim et al., arXiv 2505.19519); 0 is none.",
    )


class LoraConfig(Settings):
    """`method: lora`: low-rank matrices beside the attention's (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(16, ge=1, le=1024, description="Rank of the matrices. Source: cloneofsimo/lora, 4 to 16.")
    alpha: float | None = Field(
        None, gt=0, le=1e4, description="They count alpha / rank; none: as much as they are. Source: diffusers' script."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of their inputs that is dropped. Source: diffusers'.")
    dora: bool = Field(
        False,
        description="Train the length of each output's weights apart from their direction (DoRA, arXiv 2402.09353).",
    )
    targets: list[Annotated[str, StringConstraints(min_length=1)]] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Names of the denoiser's layers that get them; none: its attention's "
        "projections. Source: diffusers' script.",
    )


SMALL_WORDS, LARGE_WORDS = ("very small", "far away"), ("close up", "zoomed in")
"""With one of these the prompt of a photo begins that `train.vary_size` shows much smaller or larger. Source: Custom
Diffusion (arXiv 2212.04488, section 3.3)."""
NEUTRAL_TEMPLATES = tuple(
    f"{form} {{identifier}}"
    for form in (
        *(f"{one} {kind} of {a}" for one, kind in (("a", "photo"), ("a", "rendition")) for a in ("a", "the")),
        "the photo of a",
        "a rendering of a",
        "a photo of my",
        "a photo of one",
        *(f"a {look} photo of {a}" for look in ("cropped", "close-up", "good") for a in ("a", "the")),
        "a dark photo of the",
        "a bright photo of the",
        "a photo of a dirty",
        "a photo of the weird",
        "a photo of the large",
        *(f"a photo of {a} {look}" for look in ("clean", "cool", "nice", "small") for a in ("a", "the")),
    )
)
"""The 27 neutral captions that a word is taught with, in no order. Source: Gal et al. 2022 (arXiv 2208.01618, section 4
and its code), after CLIP's for ImageNet."""


class WordConfig(Settings):
    """The new word of `textual_inversion` and `custom_diffusion`: the subject's identifier, in angle brackets."""

    vectors: int = Field(1, ge=1, le=MOST_VECTORS, description="Embeddings of the word. Source: Textual Inversion, 1.")
    initializer: list[Prompt] = Field(
        ["{class_noun}"],
        min_length=1,
        max_length=MOST_SUBJECTS,
        description="The words whose mean embedding it starts from; {class_noun} is filled in. One for all subjects, "
        "or one for each in their order. Source: Textual Inversion (arXiv 2208.01618, section 4).",
    )
    templates: list[Prompt] = Field(
        list(NEUTRAL_TEMPLATES),
        max_length=256,
        description="`textual_inversion` only: what photos are captioned with, one drawn for each example, in the "
        "place of the instance prompt, so that the word alone tells what they show; photos with captions of their own "
        "keep them. None: the instance prompt. Source: Textual Inversion (arXiv 2208.01618), its 27.",
    )
    learned: Path | None = Field(
        None,
        description="`lora` only: a finished run of textual_inversion whose word is taken as learned, so that what "
        "inversion can't tell is added (pivotal tuning, arXiv 2106.05744).",
    )

    @field_validator("learned", mode="before")
    @classmethod
    def _not_blank(cls, path: Any) -> Any:
        if isinstance(path, str) and not path.strip():
            raise ValueError("is empty; give a run's directory, or leave it out")
        return path

    @field_validator("initializer", mode="before")
    @classmethod
    def _one_for_all(cls, words: Any) -> Any:
        return [words] if isinstance(words, str) else words

    @field_validator("initializer")
    @classmethod
    def _names_only_the_class(cls, words: list[str]) -> list[str]:
        if unknown := set().union(*map(fields_of, words)) - {"class_noun"}:
            raise ValueError(f"uses {{{min(unknown)}}}; only {{class_noun}} is filled in")
        return words

    @field_validator("templates")
    @classmethod
    def _name_the_word(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if unknown := fields_of(template) - {"identifier", "class_noun"}:
                raise ValueError(f"uses {{{min(unknown)}}}; only {{identifier}} and {{class_noun}} are filled in")
            if "identifier" not in fields_of(template):
                raise ValueError(f"{template!r} does not hold {{identifier}}; write it where the word belongs")
        return templates


class TrainConfig(Settings):
    """The training itself."""

    steps: int = Field(
        800, ge=1, le=1_000_000, description="Optimiser steps. Source: SD 1.5 with PPL, HF blog on DreamBooth."
    )
    learning_rate: float = Field(
        5e-6, gt=0, le=1, description="Peak learning rate. Source: paper §4 for Stable Diffusion."
    )
    text_encoder: bool = Field(
        True, description="full, lora: train the text encoder too: more faithful, more memory. Source: HF blog."
    )
    text_learning_rate: float | None = Field(
        None, gt=0, le=1, description="The text encoder's, or the new word's, own learning rate; none: the same."
    )
    batch_size: int = Field(
        1,
        ge=1,
        le=256,
        description="Photos a step; as many class images join them. Source: an earlier comparison with and without "
        "PPL on SD 1.5.",
    )
    gradient_accumulation: int = Field(
        1, ge=1, le=256, description="Batches whose gradients one optimiser step averages."
    )
    resolution: int | Literal["auto"] = Field(
        "auto", description="Side of the training pictures in pixels; auto is what the base model was trained at."
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto",
        description="Arithmetic of the forward pass; weights stay in 32 bits. auto: bf16 where the machine has it, "
        "else fp16 on a GPU, else none.",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="Recompute activations to save memory, about 25 % slower; auto: only where it would not fit.",
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw",
        description="adamw8bit (bitsandbytes) keeps its state in 8 bits. Source: earlier reimplementations on SD 1.5.",
    )
    weight_decay: float = Field(1e-2, ge=0, le=1, description="AdamW's. Source: diffusers' DreamBooth script.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="AdamW's. Source: its paper."
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients are scaled down to this norm. Source: diffusers' script."
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="After the warm-up. Source: paper."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Steps over which the learning rate rises from zero; fewer than steps."
    )
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="min-SNR loss weighting, 5 where used (Hang et al. 2023, arXiv 2303.09556); none by default.",
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Keep and save a moving average of the weights with this decay; none by default."
    )
    crops_per_photo: int = Field(
        4,
        ge=1,
        le=64,
        description="Slightly different crops encoded of each photo before training; 1 is the plain crop.",
    )
    crop_scale: float = Field(
        0.9, gt=0.3, le=1, description="The tightest of those crops, as a share of the plain crop's side."
    )
    vary_size: bool = Field(
        False,
        description="Of those crops show two thirds smaller on a plain ground of which nothing is learned, and one "
        "third enlarged, and say so in the prompt where it is by much. Source: Custom Diffusion (arXiv 2212.04488, "
        "section 3.3), whose preset sets it.",
    )
    flip: bool = Field(
        False, description="Also train on mirrored photos; off, since lettering and many subjects have a side."
    )
    side_by_side: float = Field(
        0.6,
        ge=0,
        le=0.9,
        description="Of several subjects: share of the examples that show two of them side by side, captioned with "
        "both, so that prompts can combine them. Source: SVDiff's Cut-Mix (arXiv 2303.11305), 0.6.",
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between resumable checkpoints.")
    checkpoint_minutes: float = Field(
        10.0,
        gt=0,
        description="A checkpoint at least this often, in minutes, beside those by steps. Source: Young's "
        "√(2 · 10 s to write one · 5 h between failures) = 10 min (CACM 17, 1974).",
    )
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="How many of the newest checkpoints to keep.")
    sample_every: int = Field(100, ge=0, description="Steps between sample pictures; 0 for none.")

    @field_validator("resolution")
    @classmethod
    def _divisible(cls, value: int | str) -> int | str:
        if isinstance(value, int) and (value < 32 or value > 4096 or value % 8):
            raise ValueError(f"is {value}; give a multiple of 8 from 32 to 4096, or auto")
        return value

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainConfig:
        if self.warmup_steps >= self.steps:  # the first step has a rate of zero, the one after the warm-up the peak
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) leaves none of the steps ({self.steps}) at the full "
                "learning rate; lower it"
            )
        return self


class SamplingConfig(Settings):
    """How pictures are drawn: samples while training, and what `generate` starts from."""

    steps: int = Field(50, ge=1, le=1000, description="Sampling steps. Source: diffusers' default.")
    guidance_scale: float = Field(
        7.5,
        ge=0,
        le=50,
        description="How strictly to follow the prompt: 7 is freer, 11 is stricter (an earlier reimplementation on SD "
        "1.4 and 1.5).",
    )
    scheduler: Literal["default", "ddim", "dpm++", "euler", "unipc", "pndm"] = Field(
        "default", description="The sampler; default is the one the base model comes with."
    )
    precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto",
        description="Arithmetic of the pictures that evaluate, generate and the page draw; while training it is the "
        "training's. auto: as train.mixed_precision says. In bf16 a toybox picture is drawn in 0.6 of the time of 32 "
        "bits (no) and differs from it by half a grey level of 255 (one CPU core).",
    )
    num_images: int = Field(2, ge=1, le=64, description="Sample pictures per prompt while training.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of the first sample picture; the next ones count on from it."
    )
    prompts: list[Prompt] = Field(
        default=["a {identifier} {class_noun} on the beach"],
        description="More prompts to sample while training, beside the instance and the class prompt; {identifier} and "
        "{class_noun} are filled in. One that the photos do not show tells whether prompts are still followed. Source: "
        "the paper's list.",
    )


class EvaluationConfig(Settings):
    """How the model is measured: in a few pictures while it trains, and in many by `evaluate`."""

    dino: str = Field(
        "auto",
        min_length=1,
        description="What tells subjects apart (DINO, PRES): toybox, a Hub id (facebook/dino-vits8 in an earlier "
        "comparison on SD 1.5) or a folder; auto: facebook/dino-vits16, as in the paper, and the toybox's own for the "
        "toybox.",
    )
    clip: str = Field(
        "auto",
        min_length=1,
        description="What compares pictures with prompts (CLIP-I, CLIP-T): toybox, a Hub id or a folder; auto: "
        "openai/clip-vit-base-patch32, and the toybox's own for the toybox.",
    )
    perceptual: Literal["auto", "toybox", "lpips"] = Field(
        "auto",
        description="What tells how unlike two pictures look (DIV); auto: lpips, as in the paper, and the "
        "toybox's own for the toybox.",
    )
    prompts: list[Prompt] = Field(
        default_factory=list,
        description="What `evaluate` draws, with {identifier} and {class_noun}; none: the paper's 25 for things or "
        "living subjects, and every context and style for the toybox.",
    )
    images_per_prompt: int = Field(
        4, ge=2, le=1000, description="Pictures a prompt; DIV compares those of one prompt. Source: paper §4.1."
    )
    class_images: int = Field(
        100, ge=2, le=10_000, description="Pictures of the class prompt for PRES. Source: as many as 25 prompts × 4."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the first picture of each prompt; the next count on.")
    batch_size: int = Field(16, ge=1, le=256, description="Pictures drawn or looked at at once.")
    while_training: bool = Field(
        True, description="Measure the sample pictures while training, and keep the best model beside the last."
    )
    max_drift: float = Field(
        0.5,
        ge=0,
        le=1,
        description="The best model's class pictures may come so much nearer to the photos: 0 is as far as the base "
        "model's, 1 as near as the photos are to each other. Source: configs/toybox-study.yaml, see docs/study.md.",
    )
    max_prompt_loss: float = Field(
        0.1, ge=0, le=1, description="The best model may lose this share of the base model's CLIP-T."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many samplings without a better model; none: train all steps."
    )
