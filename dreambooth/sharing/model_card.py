"""The card of a published model: front matter for the Hub, and what a stranger reads."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dreambooth.config.names import TOYBOX
from dreambooth.config.sections import LEARNS_WORD
from dreambooth.config.settings import Config
from dreambooth.evaluation.evaluate import BASE, ENCODER_OF, FILE, Evaluation
from dreambooth.evaluation.reports.published import caution
from dreambooth.evaluation.reports.tables import (
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
from dreambooth.families import words
from dreambooth.files import shown_size
from dreambooth.hub import TAG
from dreambooth.methods import get_method, methods
from dreambooth.metrics.measures import Measures
from dreambooth.metrics.metrics import METRICS

HUB = "https://huggingface.co"
UNKNOWN = "unknown"
"""The Hub's word for a licence that is not told."""
CONFIG, PHOTOS, IMAGES = "config.yaml", "photos", "images"
WORDS = "."
"""Where published settings have the word that was learned before: beside them."""
COMPARISON, LOSS, PROGRESS, DRIFT = (f"{IMAGES}/{n}.png" for n in ("comparison", "loss", "progress", "drift"))
"""Files of the repo that the card speaks of where they are there."""


def photos_of(number: int) -> str:
    """The folder, in a run's directory and in a repo, of the first subject's photos, the second's, …"""
    return PHOTOS if number == 1 else f"{PHOTOS}/subject-{number}"


def method_of(tags: Collection[str]) -> str | None:
    """The name of the method that a card's tags tell of; None where they tell of none."""
    return next((m.name for m in methods() if m.name != "full" and m.tags[0] in tags), None)


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
    photos: tuple[int, ...]
    """Of each subject."""
    side: int
    """Of the training pictures, in pixels."""
    weights: tuple[str, ...]
    """An adapter's files; none of a whole pipeline."""
    parameters: int | None
    """How many numbers were trained; None where that was not noted."""
    size: int
    """Of the model's files, in bytes."""
    safety_checker: bool | None
    """Whether the pipeline has one; None for an adapter, where that is up to the base model."""
    conditions: tuple[str, ...]
    """Of this run and its partner, if there is one: without PPL, with PPL, with drift penalty."""
    own: Evaluation | None
    evaluations: tuple[Evaluation, ...]
    """`own`, and the base model's and the partner's that were made alike: base first, then as `conditions`."""
    measures: Measures | None
    pictures: tuple[tuple[str, str], ...]
    """The gallery's (file, prompt)."""
    files: frozenset[str]
    """Of the repo, beside the model."""

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
    named: dict[str, Any] = {}
    if licence.id == "other":
        named = {"license_name": licence.name, "license_link": licence.link}
    return ModelCardData(
        base_model=facts.base_repo,
        base_model_relation=("adapter" if facts.weights else "finetune") if facts.base_repo else None,
        license=licence.id,
        **named,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        instance_prompt=facts.config.instance_prompt,
        tags=["text-to-image", "diffusers", *get_method(facts.config.method).tags, "stable-diffusion", TAG],
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
            task_type="text-to-image",
            dataset_type="dreambooth",
            dataset_name=dataset,
            metric_type=name,
            metric_name=f"{METRICS[name].title} by {own.encoder_of[name]} ({METRICS[name].better} is better)",
            metric_value=round(estimate.value, 4),
            metric_args={key: round(value, 4) for key, value in beside.items() if value is not None} or None,
        )
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
    subjects, method = facts.config.subjects, get_method(facts.config.method)
    names = " and ".join(f"{subject.identifier} {subject.class_noun}" for subject in subjects)
    known = _listed(f"one particular {_words(s.class_noun)}, by the word {_prompt(s.identifier)}" for s in subjects)
    what = f"An adapter of {_base(facts)} that teaches it" if facts.weights else "A text-to-image model that knows"
    made = f"{_photos(facts)} with [{method.title}](https://arxiv.org/abs/{method.paper})"
    together = f"; {_prompt(f'a photo of {names}')} asks for all in one picture" if len(subjects) > 1 else ""
    return [
        f"# {_words(names)}",
        f"{what} {known}. It was made from {made if facts.weights else f'{_base(facts)} and {made}'}. Begin with "
        f"{_listed(map(_prompt, facts.config.instance_prompts), 'or')} and say what else the picture shows{together}; "
        f"{_what_became_of_the_class(facts)}.",
        "<Gallery />" if facts.pictures else "",
    ]


def _what_became_of_the_class(facts: Facts) -> str:
    config, nouns = facts.config, _nouns(facts)
    if config.method == "textual_inversion":
        return f"any other {nouns} stays as it was, since the word alone was learned"
    if config.prior.active:
        asked = _listed(map(_prompt, config.class_prompts))
        return f"{asked} still {'asks' if len(config.class_prompts) == 1 else 'ask'} for any {nouns}"
    held = ", and the drift penalty alone held it back" if config.drift.weight else ""
    return f"any other {nouns} may come to look like it, since prior preservation was off{held}"


def _photos(facts: Facts) -> str:
    """How many of each subject."""
    return f"{_listed(map(str, facts.photos))} photo{'' if facts.photos == (1,) else 's'}"


def _nouns(facts: Facts) -> str:
    return _listed(dict.fromkeys(_words(subject.class_noun) for subject in facts.config.subjects), "or")


def _listed(parts: Iterable[str], word: str = "and") -> str:
    """The parts as a phrase: a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} {word} {last}" if first else last


def _usage(facts: Facts) -> list[str]:
    sampling = facts.config.sampling
    scheduler = "" if sampling.scheduler == "default" else f" and the scheduler {sampling.scheduler}"
    drawn = f" The pictures on this page were drawn with these settings{scheduler}." if facts.pictures else ""
    if facts.weights and facts.config.base_model == TOYBOX:
        told = "The toybox is a part of DreamBooth Studio, which draws with it"
    else:
        peft = "peft " if facts.config.method == "lora" else ""
        gpu = 'on a GPU, add `.to("cuda")` to the second line'
        told = f"Install with `pip install diffusers transformers {peft}torch`; {gpu}"
    if facts.weights and facts.base_repo is None and facts.config.base_model != TOYBOX:
        told = f"In place of FOLDER give yours of {_words(facts.config.base_model)}, the base model. {told}"
    return [
        "## Use it",
        "\n".join(["```python", *_code(facts), "```"]),
        f"{told}; while this repo is private, log in with `hf auth login`.{drawn}",
    ]


def _code(facts: Facts) -> list[str]:
    """Lines of Python that draw a picture with stock diffusers; of an adapter of the toybox, which is no repo, with
    this library."""
    config, prompt = facts.config, _literal(facts.config.instance_prompt)
    repo, save = _literal(facts.repo_id), 'save("picture.png")'
    if facts.weights and config.base_model == TOYBOX:
        return [
            "from dreambooth.generate import generate, open_source",
            f"source = open_source({repo})",
            f"next(generate(source, [{prompt}], num_images=1))[0].image.{save}",
        ]
    source, revision = repo, ""
    if facts.weights:
        source = _literal(facts.base_repo or "FOLDER")
        revision = f", revision={_literal(config.revision)}" if config.revision else ""
    settings = f"num_inference_steps={config.sampling.steps}, guidance_scale={config.sampling.guidance_scale}"
    return [
        "from diffusers import DiffusionPipeline",
        f"pipe = DiffusionPipeline.from_pretrained({source}{revision})",
        *(_loading_line(file, config.method, repo) for file in facts.weights),
        f"pipe({prompt}, {settings}).images[0].{save}",
    ]


def _loading_line(file: str, method: str, repo: str) -> str:
    """What puts one of an adapter's files into `pipe`."""
    if fnmatch(file, words.PATTERN):  # the first one's name is that which diffusers looks for
        more = "" if file == words.file_name(1) else f", weight_name={_literal(file)}"
        return f"pipe.load_textual_inversion({repo}{more})"
    if method == "lora":
        return f"pipe.load_lora_weights({repo})"
    # without `_pipeline`, diffusers 0.42 reads the file and changes nothing
    return f"pipe.unet.load_attn_procs({repo}, weight_name={_literal(file)}, _pipeline=pipe)"


def _quality(facts: Facts) -> list[str]:
    own, measures = facts.own, facts.measures
    if own:
        return [
            "## How good it is",
            _headline(facts, own),
            comparison_table(facts.evaluations),
            f"This model is the row “{_words(capital(own.condition))}”{_terms(facts)}. "
            f"Each drew {len(own.prompts)} prompts × {own.images_per_prompt} pictures of {_measured(facts)} and "
            f"{own.class_images} of its class from the same seeds, which were compared with the photos by the "
            f"DreamBooth paper's protocol. {reading(facts.evaluations)}",
            meanings(),
            f"{caution(own.encoders.values())} Every figure, picture by picture: [{FILE}]({FILE}).",
        ]
    if measures and len(measures.measures) > 1:
        return [
            "## How good it is",
            f"Measured on the few sample pictures of {_measured(facts)} while it trained, too few for intervals:",
            _measured_table(facts, measures),
            meanings(),
            caution(measures.encoders.values()),
        ]
    return ["## How good it is", "It was not measured."]


def _terms(facts: Facts) -> str:
    """What the rows' names mean."""
    meant = {"PPL": "PPL is prior preservation", "drift": "the drift penalty holds the weights near the base model's"}
    told = [words for name, words in meant.items() if any(name in condition for condition in facts.conditions)]
    return f"; {', '.join(told)}" if told else ""


def _measured(facts: Facts) -> str:
    first = facts.config.subject
    return "the subject" if len(facts.photos) == 1 else f"the first subject, {_prompt(first.fill('{identifier}'))},"


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
    pair = capital(_listed(facts.conditions))
    parts = [
        f"## {pair}" if both else "## Before and after",
        "The same prompts and seeds in every column; the last rows are of the class prompt, without the word for it.",
        f"![Pictures by each model, side by side]({COMPARISON})",
    ]
    if changed:
        parts += ["What the one changes beside the other, prompt by prompt and seed by seed:", changed]
    if DRIFT in facts.files:
        parts += [
            "While training: PRES that rises is a class that comes to look like the subject, DIV that falls is "
            "pictures that come to look like each other.",
            f"![PRES and DIV against training steps: {pair}]({DRIFT})",
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
    kin = f"λ = {prior.weight:g}, {prior.num_images} pictures of {_listed(map(_prompt, config.class_prompts))}"
    batch = f"{_count(train.batch_size, 'photo')}{' and as many class images' if prior.active else ''} a step"
    best = f"; this is step {facts.step:,}, whose sample pictures were best" if facts.step != facts.steps else ""
    captioned = ", each with its caption" if config.subject.captions else ""
    counts = _listed(str(count) for count in facts.photos)
    of_text = f", {train.text_learning_rate:g} for the text side" if train.text_learning_rate else ""
    rows = {
        "Base model": _base(facts) + (f", revision {_prompt(config.revision)}" if config.revision else ""),
        "Method": f"{get_method(config.method).title}: {_trained(config)}",
        **_of_the_method(config),
        "Trained parameters": f"{facts.parameters:,}" if facts.parameters is not None else "",
        "Size": shown_size(facts.size),
        "Photos": f"{counts}, cropped to {facts.side} × {facts.side} px{captioned}",
        "Instance prompt": _listed(map(_prompt, config.instance_prompts)),
        "Prior preservation (PPL)": kin if prior.active else "" if config.method == "textual_inversion" else "off",
        "Drift penalty": f"{config.drift.weight:g} × squared distance of the weights" if config.drift.weight else "",
        "Steps": f"{facts.steps:,}{best}",
        "Batch": batch + (f", {train.gradient_accumulation} times" if train.gradient_accumulation > 1 else ""),
        "Learning rate": f"{train.learning_rate:g}{of_text}, {train.lr_schedule}"
        + (f" after {train.warmup_steps} steps of warm-up" if train.warmup_steps else ""),
        "Optimiser": f"{train.optimizer}, weight decay {train.weight_decay:g}",
        "min-SNR γ": f"{train.snr_gamma:g}" if train.snr_gamma else "",
        "Average of weights": f"decay {train.ema_decay:g}" if train.ema_decay else "",
        "Seed": str(config.seed),
        "Pictures": f"{sampling.steps} steps, guidance {sampling.guidance_scale:g}, scheduler {sampling.scheduler}",
    }
    return markdown_table(["Setting", "Value"], [[k, v] for k, v in rows.items() if v], words=(0, 1))


def _trained(config: Config) -> str:
    """What the method changes."""
    word = "the new word" if len(config.subjects) == 1 else "the new words"
    side = " and the text encoder" if config.train.text_encoder else ""
    return get_method(config.method).trains.format(word=word, side=side)


def _of_the_method(config: Config) -> dict[str, str]:
    """The rows of settings that are the method's own."""
    lora, word, rows = config.lora, config.word, {}
    if config.method == "lora":
        rows["LoRA"] = f"rank {lora.rank}, alpha {lora.alpha or lora.rank:g}"
        rows["LoRA"] += (f", dropout {lora.dropout:g}" if lora.dropout else "") + (", DoRA" if lora.dora else "")
        rows["LoRA's layers"] = _listed(map(_prompt, lora.targets)) if lora.targets else ""
    if config.method in LEARNS_WORD:
        begun = _listed(_prompt(words) for words in config.initializers)
        rows["New word"] = f"{_count(word.vectors, 'embedding')}, begun as {begun}"
        if (taught := config.prompts_of(config.instance_prompt)) != (config.instance_prompt,):
            rows["Captions"] = f"{len(taught)} in the instance prompt's place, such as {_prompt(taught[0])}"
    elif word.learned:
        rows["New word"] = "learned by Textual Inversion before, and left as it was (pivotal tuning)"
    return rows


def _limits(facts: Facts) -> list[str]:
    config = facts.config
    many = len(facts.photos) > 1
    subject = "these subjects" if many else "this subject"
    checked = {
        True: "The pipeline's safety checker holds some pictures back and misses others.",
        False: "The pipeline has no safety checker: nobody looks at the pictures but you.",
        None: "Whether a safety checker looks at the pictures is up to the base model; it misses some.",
    }
    lines = [
        f"It knows its {'subjects' if many else 'subject'} from {_photos(facts)}: "
        "sides that they don't show are made up, and lettering and fine patterns may come out wrong.",
        "The further a prompt is from the photos, the less it is followed, and a photo's background may come along.",
        "It inherits what its base model can't draw, and its biases.",
        checked[facts.safety_checker],
    ]
    if many:
        lines.append("Of several subjects in one picture, one may take the other's looks, or its place.")
    if config.base_model == TOYBOX:
        lines[2] += f" The toybox is for trying and teaching: {facts.side} px, few kinds of things, few words."
    if not config.prior.active and config.method != "textual_inversion":
        held = ", as far as the drift penalty let them" if config.drift.weight else ""
        lines.append(f"Prior preservation was off: pictures of any {_nouns(facts)} may have drifted to this one{held}.")
    return [
        "## Limits and intended use",
        f"For pictures of {subject}, by whoever may make them. Not for pictures that deceive, harass or defame, nor of "
        "a person who has not agreed.",
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
    folders = "" if len(facts.photos) == 1 else ", the second subject's photos in the folder `subject-2` in it"
    command = " ".join(
        ["python -m dreambooth train", f"hub:{facts.repo_id}", *(f"--set {key}=FOLDER" for key in missing)]
    )
    lacking = f" What was not published, give from a folder of yours{folders}:" if missing else ""
    return [
        "## Repeat it",
        f"DreamBooth Studio made this model, and makes it again.{lacking}",
        f"```sh\n{command}\n```",
    ]
