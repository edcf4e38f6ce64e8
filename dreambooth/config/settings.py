"""Every setting of a run, checked before anything loads: strict models, the only home of defaults.

The defaults suit Stable Diffusion 1.x; presets (`presets/*.yaml`) hold other recipes, each number with its source.
A setting is taken from, in this order: `--set`, the YAML file, the file's `preset`, the default here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from dreambooth.config.names import TOYBOX, make_folders_absolute
from dreambooth.config.presets import load_preset, todays_name, usual_preset
from dreambooth.config.yaml_file import merge, override, read_yaml, to_yaml
from dreambooth.errors import ConfigError

DEVICES = r"auto|cpu|mps|cuda(:\d{1,2})?"
MethodName = Literal["full", "lora", "textual_inversion", "custom_diffusion"]
LEARNS_WORD: tuple[MethodName, ...] = ("textual_inversion", "custom_diffusion")
"""The methods whose identifier is a new word of the vocabulary, `<sks>`, with an embedding that is learned."""

_Model = TypeVar("_Model", bound=BaseModel)
MOST_SUBJECTS = 9
"""Of one run, and of an adapter; ours: with two tokens of a name each they take a third of what CLIP reads."""
MOST_VECTORS = 16
"""Of one word; ours: a fifth of what CLIP reads. Textual Inversion tries up to three (arXiv 2208.01618)."""

Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
Crop = tuple[int, int, int, int]

_MOST_TOLD = 10  # wrong settings of one file


MAX_EXAMPLES = 2**31
"""Examples of a run, whose numbers stay below those of the noises (`train._noise_and_timesteps`)."""


def is_new_word(text: str) -> bool:
    """Whether it is written as new words of a vocabulary are: in angle brackets and, as CLIP's tokenizer takes all
    text, in small letters."""
    return re.fullmatch(r"<[\w-]+>", text) is not None and text == text.lower()


def identifier_in(identifier: str) -> re.Pattern[str]:
    """What finds the identifier as a word of its own in a prompt: `sks` is not in "desks", and SKS is the same word, as
    CLIP's tokenizer takes all text in small letters."""
    return re.compile(rf"(?<!\w){re.escape(identifier)}(?!\w)", re.IGNORECASE)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def fields_of(template: str) -> set[str]:
    """What `template` asks to be filled in; raises `ValueError` for an unmatched brace."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r} has an unmatched brace ({error})") from None
    # `{identifier:>9999999}` would be taken by str.format; a prompt needs names alone.
    return {
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in parsed
        if name is not None
    }


class SubjectConfig(_Settings):
    """Who or what the model is taught."""

    photos: Path = Field(description="Folder with the subject's photos; the paper uses 3 to 5.")
    identifier: str = Field(
        "sks",
        min_length=1,
        max_length=60,
        description="The rare word that will mean this subject; `tokens` advises. Source: paper §3.2; `sks` is the "
        "word of most published runs.",
    )
    class_noun: str = Field(
        min_length=1, max_length=60, description="What kind of thing it is, in a word or two: dog, backpack, person."
    )
    instance_prompt: Prompt = Field(
        "a photo of {identifier} {class_noun}",
        description="What every photo of the subject is captioned with. Source: paper §3.2, 'a [identifier] [class "
        "noun]'.",
    )
    captions: bool = Field(
        False,
        description="Caption each photo with the text file of its name (dog1.txt, dog1.caption or dog1.jpg.txt for "
        "dog1.jpg) or its row in metadata.jsonl or metadata.csv (file_name, text), which may use {identifier} and "
        "{class_noun}; photos without one keep the instance prompt.",
    )
    crops: dict[str, Crop] = Field(
        default_factory=dict,
        description="Square crop boxes by photo file name, (left, top, right, bottom) in pixels of the upright photo; "
        "photos not named are cropped around what stands out.",
    )

    @field_validator("photos", mode="before")
    @classmethod
    def _not_blank(cls, path: Any) -> Any:
        if path is None or (isinstance(path, str) and not path.strip()):
            raise ValueError("is empty; give the folder that holds the photos")
        return path

    @field_validator("identifier", "class_noun")
    @classmethod
    def _plain_words(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is empty; give a word")
        if any(c in text for c in "{}\n\r\t") or not text.isprintable():
            raise ValueError(f"{text!r} holds braces, a line break or unprintable characters; give plain words")
        return text.strip()

    @field_validator("instance_prompt")
    @classmethod
    def _names_the_identifier(cls, template: str) -> str:
        if unknown := fields_of(template) - {"identifier", "class_noun"}:
            raise ValueError(f"uses {{{min(unknown)}}}; only {{identifier}} and {{class_noun}} are filled in")
        return template

    def fill(self, template: str) -> str:
        """`template` with {identifier} and {class_noun} filled in."""
        return template.format(identifier=self.identifier, class_noun=self.class_noun)

    def is_named_in(self, prompt: str) -> bool:
        """Whether a prompt, filled in, holds the identifier as a word of its own."""
        return identifier_in(self.identifier).search(prompt) is not None

    def without_identifier(self, prompt: str) -> str:
        """A prompt, filled in, less the identifier, which means nothing to a CLIP that judges by the words."""
        return " ".join(identifier_in(self.identifier).sub("", prompt).split())


def together_prompt(subjects: Iterable[SubjectConfig]) -> str:
    """What a picture of all the subjects is captioned with."""
    return f"a photo of {' and '.join(subject.fill('{identifier} {class_noun}') for subject in subjects)}"


class PriorConfig(_Settings):
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


class DriftConfig(_Settings):
    """Drift penalty: the trained weights are held near the base model's, with or without class images."""

    weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the squared distance of the trained weights from the base model's in the loss: by a "
        "Lipschitz bound it limits how far any picture can drift (Kim et al., arXiv 2505.19519); 0 is none.",
    )


class LoraConfig(_Settings):
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


class WordConfig(_Settings):
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


class TrainConfig(_Settings):
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


class SamplingConfig(_Settings):
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


class EvaluationConfig(_Settings):
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


class Config(_Settings):
    """A whole run: what `train` reads, and what the run directory keeps so that the run can be repeated."""

    preset: str | None = Field(
        None, description="Recipe that fills in what this file leaves out; see `dreambooth/config/presets`."
    )
    base_model: str = Field(
        TOYBOX,
        min_length=1,
        description="toybox, a Hub id, or a local diffusers pipeline folder; `hub:OWNER/NAME` or `./OWNER/NAME` where "
        "it could be either.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the base model on the Hub.")
    method: MethodName = Field(
        "full",
        description="What is trained: full is denoiser and text encoder (the paper); lora low-rank matrices beside "
        "them; textual_inversion a new word alone; custom_diffusion a new word and how the denoiser reads words.",
    )
    seed: int = Field(
        1234,
        ge=0,
        lt=2**32,
        description="Seed of everything random in training. Source: an earlier reimplementation on SD 1.5.",
    )
    device: str = Field(
        "auto",
        description="Where to train: auto, which is a CUDA GPU where there is one, else the CPU; cpu, cuda, cuda:1 for "
        "the second GPU, or mps, Apple's, on which nobody has run it.",
    )
    subject: SubjectConfig
    more_subjects: list[SubjectConfig] = Field(
        default_factory=list, max_length=MOST_SUBJECTS - 1, description="Further subjects, learned in the same run."
    )
    prior: PriorConfig = PriorConfig()
    drift: DriftConfig = DriftConfig()
    lora: LoraConfig = LoraConfig()
    word: WordConfig = WordConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("device")
    @classmethod
    def _names_a_device(cls, name: str) -> str:
        if not re.fullmatch(DEVICES, name):
            raise ValueError(f"is {name!r}; give auto, cpu, cuda, cuda:1 (the second GPU, and so on) or mps")
        return name

    @model_validator(mode="after")
    def _templates_fit(self) -> Config:
        for subject in self.subjects:
            if not subject.is_named_in(subject.fill(subject.instance_prompt)):
                raise ValueError(
                    f"subject.instance_prompt {subject.instance_prompt!r} does not hold the identifier "
                    f"{subject.identifier!r} as a word of its own; write {{identifier}} where it belongs"
                )
            if subject.is_named_in(self.prior.class_prompt.format(class_noun="")):
                raise ValueError(
                    f"prior.class_prompt {self.prior.class_prompt!r} holds the identifier "
                    f"{subject.identifier!r}, but shows the class alone; leave it out"
                )
        for section, prompts in (("sampling", self.sampling.prompts), ("evaluation", self.evaluation.prompts)):
            for prompt in prompts:
                if unknown := fields_of(prompt) - {"identifier", "class_noun"}:
                    raise ValueError(
                        f"{section}.prompts: {prompt!r} uses {{{min(unknown)}}}; only {{identifier}} and "
                        "{class_noun} are filled in"
                    )
        examples = self.train.steps * self.train.gradient_accumulation * self.train.batch_size
        if examples >= MAX_EXAMPLES:
            raise ValueError(
                f"train.steps × gradient_accumulation × batch_size is {examples:,}; {MAX_EXAMPLES:,} "
                "examples are numbered, so lower one of them"
            )
        if self.device == "cpu" and self.train.mixed_precision == "fp16":
            raise ValueError("train.mixed_precision is fp16 but device is cpu; use bf16, no or auto")
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> Config:
        identifiers = [subject.identifier for subject in self.subjects]
        for one, other in permutations(self.subjects, 2):
            if one.is_named_in(other.identifier):
                where = "" if one.identifier == other.identifier else f", which {other.identifier!r} holds, too"
                raise ValueError(f"two subjects have the identifier {one.identifier!r}{where}; each needs its own")
        if self.prior.pack and len(self.class_prompts) > 1:
            raise ValueError("prior.pack holds one class; leave it out, or give subjects of one class")
        if self.word.learned and self.method != "lora":
            raise ValueError(f"word.learned is for method lora, not {self.method}; leave it out")
        if self.method in LEARNS_WORD or self.word.learned:
            for identifier in identifiers:
                if not is_new_word(identifier):
                    raise ValueError(
                        f"subject.identifier {identifier!r}: {self.method} learns a new word, written in "
                        "angle brackets and small letters, for example <sks>"
                    )
        if 1 < len(self.word.initializer) < len(self.subjects):
            raise ValueError(
                f"word.initializer: {len(self.word.initializer)} for {len(self.subjects)} subjects; give "
                "one for all or one for each"
            )
        if self.method in LEARNS_WORD and self.train.text_encoder:
            raise ValueError(
                f"train.text_encoder: {self.method} learns a word and leaves the text encoder as it is; set it to false"
            )
        if self.method == "lora" and self.lora.dora and self.drift.weight:
            raise ValueError("drift.weight: there is no distance in closed form with lora.dora; set one of them off")
        if self.method == "textual_inversion" and self.drift.weight:
            raise ValueError("drift.weight: textual_inversion changes no weight of the base model; set it to 0")
        if self.method == "textual_inversion" and self.prior.active:
            raise ValueError(
                "prior.enabled: textual_inversion changes no weight of the base model, so class images "
                "have nothing to keep; set it to false"
            )
        return self

    @property
    def subjects(self) -> tuple[SubjectConfig, ...]:
        """All subjects; pages and reports tell of the first."""
        return (self.subject, *self.more_subjects)

    @property
    def instance_prompts(self) -> list[str]:
        """Each subject's instance prompt with identifier and class noun filled in."""
        return [subject.fill(subject.instance_prompt) for subject in self.subjects]

    @property
    def instance_prompt(self) -> str:
        """The first subject's."""
        return self.instance_prompts[0]

    @property
    def initializers(self) -> list[str]:
        """The words that each subject's word starts from."""
        words = self.word.initializer
        return [subject.fill(words[i if len(words) > 1 else 0]) for i, subject in enumerate(self.subjects)]

    def prompts_of(self, caption: str) -> tuple[str, ...]:
        """What a photo of this caption is trained with, one drawn for each example: the caption, or, where a word alone
        is learned, `word.templates` in the place of the instance prompt."""
        templates = self.word.templates if self.method == "textual_inversion" else ()
        for subject in self.subjects if templates else ():
            if caption == subject.fill(subject.instance_prompt):
                return tuple(map(subject.fill, templates))
        for pair in permutations(self.subjects, 2) if templates else ():
            if caption == together_prompt(pair):
                both = {name: " and ".join(getattr(s, name) for s in pair) for name in ("identifier", "class_noun")}
                return tuple(template.format(**both) for template in templates)
        return (caption,)

    @property
    def class_prompts(self) -> list[str]:
        """The class prompts with the class nouns filled in: each once, then all classes together."""
        nouns = list(dict.fromkeys(subject.class_noun for subject in self.subjects))
        together = [" and a ".join(nouns)] if len(nouns) > 1 else []
        return list(dict.fromkeys(self.prior.class_prompt.format(class_noun=noun) for noun in nouns + together))

    @property
    def class_prompt(self) -> str:
        """The first subject's."""
        return self.class_prompts[0]

    @property
    def sample_prompts(self) -> list[str]:
        """What is drawn while training: each subject, each class, the subjects together, and what was asked for."""
        together = [together_prompt(self.subjects)] if self.more_subjects else []
        asked = [self.subject.fill(prompt) for prompt in self.sampling.prompts]
        return list(dict.fromkeys([*self.instance_prompts, *self.class_prompts, *together, *asked]))

    def shows_subject(self, prompt: str) -> bool:
        """Whether a picture of this prompt counts as one of the first subject: it names that one alone, and is none of
        the class prompts, whose pictures count as the class'."""
        named = [subject for subject in self.subjects if subject.is_named_in(prompt)]
        return named == [self.subject] and prompt not in self.class_prompts

    @property
    def drawing(self) -> SamplingConfig:
        """How the finished model draws: `sampling`, in the precision of the training where that says auto.

        fp16 is auto then, since another machine may have no GPU.
        """
        if self.sampling.precision != "auto" or self.train.mixed_precision == "fp16":
            return self.sampling
        return self.sampling.model_copy(update={"precision": self.train.mixed_precision})

    @property
    def condition(self) -> str:
        """What tables call what keeps the class from drifting."""
        if self.method == "textual_inversion":  # it changes no weight, so nothing could drift
            return "word alone"
        kept = [*(["PPL"] if self.prior.active else []), *(["drift penalty"] if self.drift.weight else [])]
        return f"with {' and '.join(kept)}" if kept else "without PPL"

    @classmethod
    def from_dict(cls, settings: dict[str, Any], source: str = "config") -> Config:
        """Check nested `settings`, over those of the preset they name, which must be of their method, else of
        `usual_preset`.

        Raises `ConfigError` with every wrong key, its value and what is allowed.
        """
        preset, method = settings.get("preset"), settings.get("method")
        if preset and method not in (None, trained := load_preset(preset).get("method", "full")):
            raise ConfigError(
                f"{source}: preset {preset} is of method {trained}, not {method}.",
                "Leave the preset out, and the method brings its own.",
            )
        preset = preset or usual_preset(settings.get("base_model", TOYBOX), method)
        merged = merge(load_preset(preset), settings) if preset else settings
        return validated(cls, merged | {"preset": preset}, source)

    @classmethod
    def from_record(cls, settings: dict[str, Any], source: str) -> Config:
        """`from_dict` of what this program wrote itself, perhaps an earlier version: a preset that has another name
        now goes by that."""
        return cls.from_dict(settings | {"preset": todays_name(settings.get("preset"))}, source)

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> Config:
        """Read a YAML file; `overrides` are `key.subkey=value` strings. Raises `ConfigError`.

        A relative folder in the file is relative to the file's; in an override, to where you are.
        """
        settings, given = read_yaml(path), override({}, overrides)
        if "base_model" in given:  # then it does not matter what the file means by its own
            settings.pop("base_model", None)
        make_folders_absolute(settings, path.parent)
        make_folders_absolute(given, Path())
        return cls.from_dict(merge(settings, given), source=str(path))

    def to_yaml(self) -> str:
        """The complete settings as YAML; loading it gives an equal config."""
        return to_yaml(self.model_dump(mode="json"))


def validated(kind: type[_Model], settings: dict[str, Any], source: str) -> _Model:
    """`settings` as a strict model; raises `ConfigError` with every wrong key, its value and what is allowed."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        wrong = [_describe(e, kind) for e in error.errors()]
        more = f"; and {len(wrong) - _MOST_TOLD} more" if len(wrong) > _MOST_TOLD else ""  # it may be no config at all
        raise ConfigError(f"{source}: {'; '.join(wrong[:_MOST_TOLD])}{more}") from None


def _describe(error: dict[str, Any], model: type[BaseModel]) -> str:
    """One pydantic finding as: key, what is wrong, the value."""
    kinds = ("int", "bool", "literal['auto']")  # pydantic names the members of a union; the settings' keys are others
    key = ".".join(str(part) for part in error["loc"] if part not in kinds)
    if error["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(error["loc"][:-1], model))
        return f"unknown key {key!r}; known here: {known}"
    if error["type"] == "missing":
        return f"{key!r} is missing; set it"
    message = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    given = error["input"]
    return f"{key} = {given!r}: {message}" if not isinstance(given, dict) else f"{key}: {message}"


def _known_keys(path: tuple, model: type[BaseModel]) -> list[str]:
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
