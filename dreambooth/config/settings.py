"""Every setting of a run, checked before anything loads: strict models, the only home of defaults.

The defaults suit Stable Diffusion 1.x; presets (`presets/*.yaml`) hold other recipes, each number with its source.
A setting is taken from, in this order: `--set`, the YAML file, the file's `preset`, the default here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from dreambooth.config.names import TOYBOX, make_folders_absolute
from dreambooth.config.presets import load_preset, todays_name, usual_preset
from dreambooth.config.sections import (
    DEVICES,
    LEARNS_WORD,
    MAX_EXAMPLES,
    MOST_SUBJECTS,
    DriftConfig,
    EvaluationConfig,
    LoraConfig,
    MethodName,
    PriorConfig,
    SamplingConfig,
    TrainConfig,
    WordConfig,
)
from dreambooth.config.subject import SubjectConfig, fields_of, is_new_word, together_prompt
from dreambooth.config.validation import Settings, validated
from dreambooth.config.yaml_file import merge, override, read_yaml, to_yaml
from dreambooth.errors import ConfigError


class Config(Settings):
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
