"""The card of a published model: front matter for the Hub, and what a stranger reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dreambooth.config import TOYBOX, Config
from dreambooth.evaluate import BASE, ENCODER_OF, FILE, Evaluation
from dreambooth.hub import TAG
from dreambooth.metrics import METRICS
from dreambooth.monitor import Measures
from dreambooth.reports.published import caution
from dreambooth.reports.tables import (
    capital,
    comparison_table,
    difference_table,
    escape,
    figure,
    heads,
    markdown_table,
    meanings,
    reading,
    shown,
)

HUB = "https://huggingface.co"
UNKNOWN = "unknown"
"""The Hub's word for a licence that is not told."""
CONFIG, PHOTOS, IMAGES = "config.yaml", "photos", "images"
COMPARISON, LOSS, PROGRESS, DRIFT = (f"{IMAGES}/{n}.png" for n in ("comparison", "loss", "progress", "drift"))
"""Files of the repo that the card speaks of where they are there."""


@dataclass(frozen=True)
class Licence:
    """The licence of a base model, which holds for what is made from it."""

    id: str
    """As the Hub has it: `apache-2.0`; `other`, which has a name and a link; `unknown`."""
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Facts:
    """All that the card tells of."""

    config: Config
    """As published: without a folder of any machine."""
    repo_id: str
    base_repo: str | None
    """The base model's Hub repo; None for the toybox and for a model from a folder."""
    licence: Licence
    steps: int
    """How long it was trained."""
    step: int
    """Which step's model this is."""
    photos: int
    side: int
    """Of the training pictures, in pixels."""
    safety_checker: bool
    """Whether the pipeline has one."""
    own: Evaluation | None
    evaluations: tuple[Evaluation, ...]
    """`own`, and the base model's and the partner's that were made alike: base, without PPL, with PPL."""
    measures: Measures | None
    pictures: tuple[tuple[str, str], ...]
    """The gallery's (file, prompt)."""
    files: frozenset[str]
    """Of the repo, beside the pipeline."""

    @property
    def shows_photos(self) -> bool:
        """Whether the photos are published."""
        return any(file.startswith(f"{PHOTOS}/") for file in self.files)


def model_card(facts: Facts) -> ModelCard:
    """The whole card; whatever a person wrote stands in it as plain text."""
    sections = (_opening, _usage, _quality, _comparison, _making, _limits, _licence, _repeating)
    body = "\n\n".join(part for section in sections for part in section(facts) if part)
    return ModelCard(f"---\n{_front_matter(facts).to_yaml()}\n---\n\n{body}\n")


# --------------------------------------------------------------------------------------------------------- front matter


def _front_matter(facts: Facts) -> ModelCardData:
    licence = facts.licence
    named = {"license_name": licence.name, "license_link": licence.link} if licence.id == "other" else {}
    return ModelCardData(
        base_model=facts.base_repo,
        base_model_relation="finetune" if facts.base_repo else None,
        license=licence.id,
        **named,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        instance_prompt=facts.config.instance_prompt,
        tags=["text-to-image", "diffusers", "dreambooth", "stable-diffusion", TAG],
        widget=[{"text": prompt, "output": {"url": file}} for file, prompt in facts.pictures] or None,
        model_name=facts.repo_id.split("/")[-1] if facts.own else None,
        eval_results=_results(facts.own) if facts.own else None,
    )


def _results(own: Evaluation) -> list[EvalResult]:
    """The five metrics, each with its encoder's name, its interval and its ceiling."""
    dataset = f"{len(own.prompts)} prompts × {own.images_per_prompt} pictures, compared with {own.photos} photos"
    results = []
    for name, estimate in own.metrics.items():
        beside = {"low": estimate.low, "high": estimate.high, "ceiling": own.ceilings.get(name)}
        found = EvalResult(
            task_type="text-to-image", dataset_type="dreambooth", dataset_name=dataset, metric_type=name,
            metric_name=f"{METRICS[name].title} by {own.encoder_of[name]} ({METRICS[name].better} is better)",
            metric_value=round(estimate.value, 4),
            metric_args={key: round(value, 4) for key, value in beside.items() if value is not None} or None,
        )  # fmt: skip
        results.append(found)
    return results


# --------------------------------------------------------------------------------------------------- words for Markdown


def _words(text: str) -> str:
    """What a person wrote, as text that means nothing but itself."""
    return escape("".join(c if c.isprintable() else " " for c in text))


def _prompt(text: str) -> str:
    """A prompt, set apart: as code, or where a character could end that, in quotes."""
    return f"“{_words(text)}”" if set(text) & set("`|\\") or not text.isprintable() else f"`{text}`"


def _literal(text: str) -> str:
    """A text in Python, on one line, with nothing in it that could end a block of code."""
    quoted = json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)
    return quoted.replace("`", r"\x60")


def _link(words: str, url: str) -> str:
    return f"[{_words(words)}]({quote(url, safe=':/?#@!$&*+,;=%~')})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _base(facts: Facts) -> str:
    """What the card calls the base model."""
    if facts.base_repo:
        return _link(facts.base_repo, f"{HUB}/{facts.base_repo}")
    name = facts.config.base_model
    return "the toybox of DreamBooth Studio" if name == TOYBOX else f"{_words(name)}, a model from its maker's disk"


# ------------------------------------------------------------------------------------------------------------- sections


def _opening(facts: Facts) -> list[str]:
    subject, noun = facts.config.subject, _words(facts.config.subject.class_noun)
    rest = f"any other {noun} may come to look like it, since prior preservation was off"
    if facts.config.prior.active:
        rest = f"{_prompt(facts.config.class_prompt)} still asks for any {noun}"
    return [
        f"# {_words(f'{subject.identifier} {subject.class_noun}')}",
        f"A text-to-image model that knows one particular {noun}, by the word {_prompt(subject.identifier)}. It was "
        f"made from {_base(facts)} and {_count(facts.photos, 'photo')} with "
        f"[DreamBooth](https://arxiv.org/abs/2208.12242). Begin with {_prompt(facts.config.instance_prompt)} and say "
        f"what else the picture shows; {rest}.",
        "<Gallery />" if facts.pictures else "",
    ]


def _usage(facts: Facts) -> list[str]:
    sampling = facts.config.sampling
    settings = f"num_inference_steps={sampling.steps}, guidance_scale={sampling.guidance_scale}"
    scheduler = "" if sampling.scheduler == "default" else f" and the scheduler {sampling.scheduler}"
    drawn = f" The pictures on this page were drawn with these settings{scheduler}." if facts.pictures else ""
    lines = (
        "from diffusers import DiffusionPipeline",
        f"pipe = DiffusionPipeline.from_pretrained({_literal(facts.repo_id)})",
        f'pipe({_literal(facts.config.instance_prompt)}, {settings}).images[0].save("picture.png")',
    )
    return [
        "## Use it",
        "\n".join(["```python", *lines, "```"]),
        "Install with `pip install diffusers transformers torch`; while this repo is private, log in with "
        f'`hf auth login`; on a GPU, add `.to("cuda")` to the second line.{drawn}',
    ]


def _quality(facts: Facts) -> list[str]:
    own, measures = facts.own, facts.measures
    if own:
        return [
            "## How good it is",
            _headline(facts, own),
            comparison_table(facts.evaluations),
            f"This model is the row “{_words(capital(own.condition))}”; PPL is prior preservation. Each drew "
            f"{len(own.prompts)} prompts × {own.images_per_prompt} pictures of the subject and {own.class_images} of "
            "its class from the same seeds, which were compared with the photos by the DreamBooth paper's protocol. "
            f"{reading(facts.evaluations)}",
            meanings(),
            f"{caution(own.encoders.values())} Every figure, picture by picture: [{FILE}]({FILE}).",
        ]
    if measures and len(measures.measures) > 1:
        return [
            "## How good it is",
            "Measured on the few sample pictures of the training, too few for intervals:",
            _measured_table(facts, measures),
            meanings(),
            caution(measures.encoders.values()),
        ]
    return ["## How good it is", "It was not measured."]


def _headline(facts: Facts, own: Evaluation) -> str:
    """How like the subject it draws, beside what there was before and what could be."""
    beside = [f"the base model has {figure(e.metrics['dino'].value)}" for e in facts.evaluations if e.condition == BASE]
    beside += [f"the photos among themselves have {figure(own.ceilings['dino'])}"] * ("dino" in own.ceilings)
    told = f", where {' and '.join(beside)}" if beside else ""
    return f"How like the subject its pictures are, by DINO: **{shown(own.metrics['dino'])}**{told}."


def _measured_table(facts: Facts, measures: Measures) -> str:
    ours = next(measure for measure in measures.measures if measure.step == facts.step)
    rows = [["Real photos (ceiling)", figure(measures.ceiling), *["–"] * (len(METRICS) - 1)]]
    for title, measure in (("Base model", measures.base), (f"This model, step {ours.step:,}", ours)):
        rows.append([title, *(figure(getattr(measure, name)) for name in METRICS)])
    rows.append(["*Measured by*", *(f"*{_words(measures.encoders.get(ENCODER_OF[name], '–'))}*" for name in METRICS)])
    return markdown_table(["", *heads()], rows)


def _comparison(facts: Facts) -> list[str]:
    if COMPARISON not in facts.files:
        return []
    trained = [e.condition for e in facts.evaluations if e.condition != BASE]
    changed = difference_table(facts.evaluations, *reversed(trained)) if len(trained) == 2 else ""
    both = bool(changed) or DRIFT in facts.files
    parts = [
        "## With and without prior preservation" if both else "## Before and after",
        "The same prompts and seeds in every column; the last rows are of the class prompt, without the word for it.",
        f"![Pictures by each model, side by side]({COMPARISON})",
    ]
    if changed:
        parts += ["What prior preservation changes, prompt by prompt and seed by seed:", changed]
    if DRIFT in facts.files:
        parts += [
            "While training: PRES that rises is a class that comes to look like the subject, DIV that falls is "
            "pictures that come to look like each other.",
            f"![PRES and DIV against training steps, with and without prior preservation]({DRIFT})",
        ]
    return parts


def _making(facts: Facts) -> list[str]:
    parts = ["## How it was made", _settings(facts), f"All settings: [{CONFIG}]({CONFIG})."]
    parts.append(f"![Loss against training steps]({LOSS})")
    if PROGRESS in facts.files:
        parts.append("The loss says little of likeness, so the sample pictures were measured while training:")
        parts.append(f"![DINO, CLIP-T and PRES against training steps]({PROGRESS})")
    return parts


def _settings(facts: Facts) -> str:
    config, train, prior, sampling = facts.config, facts.config.train, facts.config.prior, facts.config.sampling
    kin = f"λ = {prior.weight:g}, {prior.num_images} pictures of {_prompt(config.class_prompt)}"
    batch = f"{_count(train.batch_size, 'photo')}{' and as many class images' if prior.active else ''} a step"
    best = f"; this is step {facts.step:,}, whose sample pictures were best" if facts.step != facts.steps else ""
    captioned = ", each with its caption" if config.subject.captions else ""
    rows = {
        "Base model": _base(facts) + (f", revision {_prompt(config.revision)}" if config.revision else ""),
        "Method": f"{config.method} (denoiser{' and text encoder' if train.text_encoder else ''})",
        "Photos": f"{facts.photos}, cropped to {facts.side} × {facts.side} px{captioned}",
        "Instance prompt": _prompt(config.instance_prompt),
        "Prior preservation (PPL)": kin if prior.active else "off",
        "Steps": f"{facts.steps:,}{best}",
        "Batch": batch + (f", {train.gradient_accumulation} times" if train.gradient_accumulation > 1 else ""),
        "Learning rate": f"{train.learning_rate:g}, {train.lr_schedule}"
        + (f" after {train.warmup_steps} steps of warm-up" if train.warmup_steps else ""),
        "Optimiser": f"{train.optimizer}, weight decay {train.weight_decay:g}",
        "min-SNR γ": f"{train.snr_gamma:g}" if train.snr_gamma else "",
        "Average of weights": f"decay {train.ema_decay:g}" if train.ema_decay else "",
        "Seed": str(config.seed),
        "Pictures": f"{sampling.steps} steps, guidance {sampling.guidance_scale:g}, scheduler {sampling.scheduler}",
    }
    return markdown_table(["Setting", "Value"], [[k, v] for k, v in rows.items() if v], words=(0, 1))


def _limits(facts: Facts) -> list[str]:
    noun = _words(facts.config.subject.class_noun)
    lines = [
        f"It knows its subject from {_count(facts.photos, 'photo')}: sides that they don't show are made up, and "
        "lettering and fine patterns may come out wrong.",
        "The further a prompt is from the photos, the less it is followed, and a photo's background may come along.",
        "It inherits what its base model can't draw, and its biases.",
        "The pipeline's safety checker holds some pictures back and misses others."
        if facts.safety_checker
        else "The pipeline has no safety checker: nobody looks at the pictures but you.",
    ]
    if facts.config.base_model == TOYBOX:
        lines[2] += f" The toybox is for trying and teaching: {facts.side} px, few kinds of things, few words."
    if not facts.config.prior.active:
        lines.append(f"Prior preservation was off: pictures of any {noun} may have drifted to this one.")
    return [
        "## Limits and intended use",
        "For pictures of this subject, by whoever may make them. Not for pictures that deceive, harass or defame, nor "
        "of a person who has not agreed.",
        "\n".join(f"- {line}" for line in lines),
    ]


def _licence(facts: Facts) -> list[str]:
    licence = facts.licence
    name = licence.name or licence.id
    told = _link(name, licence.link) if licence.link else _words(name)
    said = f"The base model's licence holds for this model too: {told}."
    if licence.id == UNKNOWN:
        said = "The base model's licence is not known here: ask its makers before you use this model."
    photos = "are not in this repo"
    if facts.shows_photos:
        photos = f"are in [{PHOTOS}]({PHOTOS}), as they were cropped for training,"
    return [
        "## Licence and consent",
        f"{said} The photos {photos} and belong to whoever took them. If they show a person, this model may be shared "
        "and used with that person's consent alone; if you are that person and did not give it, report this repo.",
    ]


def _repeating(facts: Facts) -> list[str]:
    missing = [] if facts.shows_photos else ["subject.photos"]
    if facts.base_repo is None and facts.config.base_model != TOYBOX:
        missing.append("base_model")
    command = " ".join(
        ["python -m dreambooth train", f"hub:{facts.repo_id}", *(f"--set {key}=FOLDER" for key in missing)]
    )
    lacking = " What was not published, give from a folder of yours:" if missing else ""
    return [
        "## Repeat it",
        f"DreamBooth Studio made this model, and makes it again.{lacking}",
        f"```sh\n{command}\n```",
    ]
