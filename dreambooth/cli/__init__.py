"""The command line: `python -m dreambooth train | generate | evaluate | compare | batch | methods | merge | push …`.

Exit code 0 on success, 2 on bad input with one line on standard error, 1 otherwise.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import click
from tqdm import tqdm

from dreambooth import events
from dreambooth.errors import ConfigError, DreamBoothError, first_line
from dreambooth.events import Event
from dreambooth.files import check_writable, disk_trouble, named_path, refuse_taken, runs_root
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs import owners

if TYPE_CHECKING:
    from dreambooth.config.settings import Config
    from dreambooth.evaluation.evaluate import Evaluation
    from dreambooth.evaluation.study import StudyConfig
    from dreambooth.runs.directory import Run


def tidy_variables() -> None:
    """Let libraries take an empty variable for unset and `~` for the home folder, as all of ours do."""
    for name in [name for name in os.environ if name.startswith(("GRADIO_", "HF_"))]:
        if not os.environ[name].strip():
            del os.environ[name]
    if "GRADIO_TEMP_DIR" in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = str(named_path(os.environ["GRADIO_TEMP_DIR"].strip(), "GRADIO_TEMP_DIR"))


def prepare_for_the_studio() -> None:
    """See to the variables that the page's library reads when it is imported. Raises `ConfigError` for one with which
    it could not start.

    This machine is excepted from the proxies in the environment, which would be asked for the page that is served here;
    whom else they are not for stays.
    """
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"GRADIO_SERVER_PORT = {port!r} is no port.", "Give a number from 1 to 65535.")
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    excepted = [host.strip() for host in said.split(",") if host.strip()]
    own = ["127.0.0.1", "localhost", "::1", os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")]
    for name in ("no_proxy", "NO_PROXY"):  # libraries differ in which of the two they heed
        os.environ[name] = ",".join(dict.fromkeys([*excepted, *own]))
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, ValueError) as error:  # SOCKS without its library, or no proxy's address
        names = sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy"))
        raise ConfigError(
            f"The proxy in {' or '.join(names)} can't be used ({first_line(error)}).",
            "Give one that begins with http://, or unset the variable.",
        ) from None


class _PathType(click.ParamType):
    """A path that somebody gave; one that is `written` to, a folder or a file, is refused at once where that can't be,
    not after the work is done."""

    name = "path"

    def __init__(self, written: Literal["folder", "file"] | None = None):
        self.written = written

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Raises `ConfigError`, which names the option."""
        name = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(ctx)
        path = named_path(value, name)
        if self.written:
            check_writable(path if self.written == "folder" else path.parent, name)
        return path


class _ModelType(click.ParamType):
    """A run, toybox, a folder or a Hub id; what could be a folder and a repo of the Hub is refused."""

    name = "model"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raises `ConfigError`, which names the option."""
        from dreambooth.config.names import which_model

        name = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(ctx)
        if not value.strip():
            raise ConfigError(f"{name} is empty.", "Give a run, toybox, a folder or a Hub id.")
        return which_model(value, Path(), name)


_MODEL = _ModelType()
_PATH, _NEW_FOLDER, _NEW_FILE = _PathType(), _PathType("folder"), _PathType("file")


def _not_taken(_context: click.Context, _option: click.Parameter, path: Path) -> Path:
    """Refuse a name that is taken before anything is loaded or downloaded."""
    refuse_taken(path)
    return path


_WHICH = click.option(
    "--which",
    default="last",
    show_default=True,
    type=click.Choice(["last", "best"]),
    help="Of a run: the model of its last step, or of the step that measured best.",
)
_SCALE = click.option("--scale", default=1.0, show_default=True, type=float, help="Strength of the adapter.")
_PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "no", "bf16", "fp16"]),
    help="Arithmetic; no is 32 bits (default: sampling.precision, which is the training's).",
)
_BASE = click.option(
    "--base-model",
    metavar="FOLDER",
    type=_MODEL,
    help="The adapter's base model, where that is a folder of this machine.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Teach a text-to-image model one subject from three to five photos."""


@cli.command()
@click.argument("config_source", metavar="CONFIG.yaml")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting: --set train.steps=400.")
@click.option("--run-dir", type=_NEW_FOLDER, help="Where the run is kept (default: a new one in runs/).")
@click.option(
    "--resume", is_flag=True, help="Go on with a stopped run: the one in --run-dir, or the newest with these settings."
)
def train(config_source: str, overrides: tuple[str, ...], run_dir: Path | None, resume: bool) -> None:
    """Fine-tune a model as CONFIG.yaml says.

    hub:USER/NAME, or hub:USER/NAME@REVISION, in its place repeats the training of a model that was published.
    """
    config = _config_of(config_source, overrides)
    if run_dir is None and not resume:
        check_writable(runs_root(), "DREAMBOOTH_RUNS, or --run-dir")
    quiet_third_parties()
    from dreambooth.runs.directory import Run

    run = _run_to_resume(config, run_dir, config_source) if resume else Run.create(config, run_dir)
    with _stopped_by_signal() as should_stop:
        click.echo(f"Run: {run.path}")
        console = _Console()
        for event in run.execute(resume=resume, should_stop=should_stop):
            console.show(event)
    if run.status != "finished":
        raise click.exceptions.Exit(1)
    click.echo(f"Model: {run.path / 'model'}")
    click.echo(_suggestion(config, run.path))


def _suggestion(config: Config, model: Path, *options: object) -> str:
    """A command that draws with what was trained as `config` says."""
    prompt = f"{config.instance_prompt} on a beach"
    words = ["python", "-m", "dreambooth", "generate", model, "--prompt", prompt, *options]
    return f"Try: {shlex.join(map(str, words))}"


def _weighted(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> list[tuple[str, float]]:
    """Each RUN or RUN:WEIGHT as a pair; a weight that is left out is 1."""
    pairs = []
    for text in given:
        source, _, weight = text.rpartition(":")
        try:
            whole = not source or named_path(text, "--adapter").exists()
            pairs.append((text, 1.0) if whole else (source, float(weight)))
        except ValueError:  # a colon of the name's own
            pairs.append((text, 1.0))
    return [(_MODEL.convert(source, option, context), weight) for source, weight in pairs]


@cli.command()
@click.argument("source", metavar="RUN_OR_MODEL", type=_MODEL)
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to draw; may be given several times.")
@click.option("--negative-prompt", default="", help="What to avoid.")
@click.option("--num-images", default=4, show_default=True, type=click.IntRange(1, 10_000), help="Pictures per prompt.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Seed of the first picture."
)
@click.option("--steps", type=click.IntRange(1, 1000), help="Sampling steps (default: the model's).")
@click.option(
    "--guidance", type=click.FloatRange(0, 50), help="How strictly to follow the prompt (default: the model's)."
)
@click.option("--scheduler", help="default, ddim, dpm++, euler, unipc or pndm.")
@click.option(
    "--batch-size", default=16, show_default=True, type=click.IntRange(1, 256), help="Pictures drawn at once."
)
@_PRECISION
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@_WHICH
@_SCALE
@_BASE
@click.option(
    "--adapter",
    "adapters",
    metavar="RUN[:WEIGHT]",
    multiple=True,
    callback=_weighted,
    help="Put another adapter of the same base model on top, of a run the one that --which says; may be given several "
    "times.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, mps, cuda, or cuda:1 for the second GPU.")
@click.option("--out", default=Path("generated"), show_default=True, type=_NEW_FOLDER, help="Folder for the PNGs.")
def generate(
    source,
    prompts,
    negative_prompt,
    num_images,
    seed,
    steps,
    guidance,
    scheduler,
    batch_size,
    precision,
    revision,
    which,
    scale,
    base_model,
    adapters,
    device,
    out,
) -> None:
    """Draw pictures with a run, toybox, a folder with a pipeline or an adapter, or a Hub id.

    A model that was published from here is sampled as its run was, unless other settings are given.
    """
    quiet_third_parties()
    from pydantic import ValidationError

    from dreambooth.config.settings import identifier_in
    from dreambooth.families.tokens import Reader
    from dreambooth.generate import fewer_at_once, open_source, save_picture, shown_adapters
    from dreambooth.generate import generate as draw
    from dreambooth.machine import resolve_device
    from dreambooth.models.fetch import fetch_model

    if not all(prompt.strip() for prompt in prompts):
        raise ConfigError("--prompt is empty.", "Say what to draw.")
    base, device = fetch_model(base_model) if base_model else None, resolve_device(device)
    opened = open_source(
        source, revision, device, which=which, base=base, scale=scale, adapters=adapters, precision=precision
    )
    given = {"steps": steps, "guidance_scale": guidance, "scheduler": scheduler}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        sampling = opened.sampling.model_validate(opened.sampling.model_dump() | given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{first['loc'][0]} {first['input']!r}: {first['msg']}.") from None
    identifiers = tuple(subject.identifier for subject in opened.config.subjects) if opened.config else ()
    reader = Reader(getattr(opened.pipe, opened.family.tokenizers[0]), identifiers)
    for remark in reader.remarks([*prompts, negative_prompt]):
        click.echo(f"warning: {remark}", err=True)
    if identifiers and not any(identifier_in(word).search(prompt) for word in identifiers for prompt in prompts):
        click.echo(f"warning: No prompt names {' or '.join(identifiers)}, which means the subject.", err=True)
    asked, setting = min(batch_size, num_images * len(prompts)), "--batch-size"
    if (batch_size := opened.batch_that_fits(asked, setting, sampling)) < asked:
        click.echo(f"advice: {fewer_at_once(batch_size, asked, setting)}", err=True)
    number = 1 + max((int(path.name[:4]) for path in out.glob("[0-9][0-9][0-9][0-9]-*.png")), default=-1)
    for pictures in draw(
        opened,
        list(prompts),
        num_images=num_images,
        seed=seed,
        sampling=sampling,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        batch_setting=setting,
    ):
        for picture in pictures:
            path = out / f"{number:04d}-{picture.seed}.png"
            facts = sampling.model_dump(include={"steps", "guidance_scale", "scheduler"})
            facts |= {"prompt": picture.prompt, "negative_prompt": negative_prompt, "seed": picture.seed}
            facts |= {"precision": picture.precision} | ({"scale": scale} if scale != 1 else {})
            facts |= {"which": which} if which != "last" else {}
            facts |= {"adapters": shown_adapters(opened.adapters)} if opened.adapters else {}
            save_picture(path, picture.image, model=opened.name, **facts)
            click.echo(path)
            number += 1


@cli.command()
@click.argument("config_file", metavar="CONFIG.yaml", type=_PATH)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting: --set train.steps=400.")
@click.option("--out", type=_NEW_FOLDER, help="Where runs and report are kept (default: studies/<file's name>).")
def compare(config_file: Path, overrides: tuple[str, ...], out: Path | None) -> None:
    """Train one subject with and without prior preservation, else alike, and measure them and the base model.

    Where CONFIG.yaml sets drift.weight, with that penalty instead of prior preservation, too.

    What is done already is kept: after a stop, the same command goes on.
    """
    from dreambooth.config.settings import Config

    config = Config.load(config_file, overrides)
    quiet_third_parties()
    from dreambooth.evaluation.study import comparison

    _carry_out(comparison(config), out or Path("studies") / config_file.stem)


@cli.command()
@click.argument("batch_file", metavar="BATCH.yaml", type=_PATH)
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting: --set config.train.steps=400."
)
@click.option("--out", type=_NEW_FOLDER, help="Where runs and report are kept (default: studies/<file's name>).")
def batch(batch_file: Path, overrides: tuple[str, ...], out: Path | None) -> None:
    """Train and measure many subjects under several conditions, as BATCH.yaml says.

    One that fails is told at once and at the end, and the others go on. What is done already is kept: after a stop, or
    for what failed, give the same command again.
    """
    from dreambooth.config.yaml_file import read_yaml

    read_yaml(batch_file)  # a file that is not there is told at once
    quiet_third_parties()
    from dreambooth.evaluation.study import StudyConfig

    _carry_out(StudyConfig.load(batch_file, overrides), out or Path("studies") / batch_file.stem)


@cli.command("evaluate")
@click.argument("run_dir", metavar="RUN", type=_PATH)
@click.option(
    "--prompts",
    "prompts_file",
    metavar="FILE",
    type=_PATH,
    help="What to draw, a prompt a line, with {identifier} and {class_noun} (default: the run's, else the paper's 25 "
    "or the toybox's own).",
)
@click.option("--images-per-prompt", type=click.IntRange(2, 1000), help="Pictures per prompt (default: the run's).")
@_PRECISION
@_WHICH
@click.option("--base", is_flag=True, help="Measure the run's base model instead, on the same subject.")
@click.option(
    "--out",
    type=_NEW_FOLDER,
    help="Folder for pictures and report (default: evaluation, evaluation-best or evaluation-base in RUN).",
)
def evaluate_run(
    run_dir: Path,
    prompts_file: Path | None,
    images_per_prompt: int | None,
    precision: str | None,
    which: str,
    base: bool,
    out: Path | None,
) -> None:
    """Measure a run by the paper's protocol: DINO, CLIP-I, CLIP-T, PRES, DIV.

    Pictures that are drawn are kept: after a stop, the same command goes on.
    """
    if base and which != "last":
        raise click.UsageError("--base measures the model before training; it has no --which.")
    quiet_third_parties()
    from dreambooth.config.settings import Config
    from dreambooth.config.yaml_file import merge
    from dreambooth.evaluation.evaluate import Evaluation, base_model, evaluate, run_photos, trained_model
    from dreambooth.evaluation.reports import write_report
    from dreambooth.metrics.measures import read_measures
    from dreambooth.runs.directory import Run

    run = Run.open(run_dir)
    prompts = _read_lines(prompts_file, "prompt") if prompts_file else None
    given = {"prompts": prompts, "images_per_prompt": images_per_prompt}
    given = {key: value for key, value in given.items() if value is not None}
    given = {"evaluation": given, "sampling": {"precision": precision} if precision else {}}
    config = Config.from_dict(merge(run.config.model_dump(mode="json"), given), source="evaluate")
    candidate = base_model(config) if base else trained_model(run.path, config, which)
    out = out or run.path / ("evaluation-base" if base else "evaluation-best" if which == "best" else "evaluation")
    check_writable(out, "--out")
    subject = f"{config.subject.identifier} {config.subject.class_noun}"
    console = _Console()
    with _stopped_by_signal() as should_stop:
        for event in evaluate(candidate, config, run_photos(run.path), out, subject=subject, should_stop=should_stop):
            if isinstance(event, events.Cancelled):
                console.headline("Stopped; the same command goes on.")
                raise click.exceptions.Exit(1)
            console.show(event)
    console.headline("write report …")
    evaluation, measures = Evaluation.load(out), None if base else read_measures(run.path)
    measures = {candidate.condition: [measures]} if measures else {}
    report = write_report(out, f"{subject}, {candidate.condition}", [evaluation], measures)
    _print_figures(evaluation)
    for path in (report.html, report.markdown, *report.csvs):
        click.echo(path)


@cli.command("methods")
def list_methods() -> None:
    """List the ways of fine-tuning, each in a sentence."""
    quiet_third_parties()
    from dreambooth.methods import methods

    for method in methods():
        click.echo(f"{method.name}: {method.description}")


@cli.command()
@click.argument("source", metavar="RUN", type=_MODEL)
@click.option("--out", required=True, type=_NEW_FOLDER, callback=_not_taken, help="A new folder.")
@_SCALE
@_BASE
@_WHICH
def fuse(source: str, out: Path, scale: float, base_model: str | None, which: str) -> None:
    """Write a run's adapter and its base model as one diffusers pipeline, which needs neither.

    RUN may be a folder or a Hub id that holds an adapter, too. A pipeline holds no settings to draw with, so those of a
    run are told.
    """
    quiet_third_parties()
    from dreambooth.generate import find_model
    from dreambooth.models import adapters
    from dreambooth.models.fetch import fetch_model

    found = find_model(source, which=which, base=fetch_model(base_model) if base_model else None)
    adapters.fuse(found.model, out, found.base, scale=scale)
    click.echo(out)
    if found.config:
        sampling = found.config.drawing
        sampler = [] if sampling.scheduler == "default" else ["--scheduler", sampling.scheduler]
        precision = [] if sampling.precision == "auto" else ["--precision", sampling.precision]
        options = ["--steps", sampling.steps, "--guidance", f"{sampling.guidance_scale:g}", *sampler, *precision]
        click.echo(_suggestion(found.config, out, *options))


@cli.command()
@click.argument("source", metavar="RUN", type=_MODEL)
@click.option("--out", required=True, type=_NEW_FILE, callback=_not_taken, help="A new file, NAME.safetensors.")
@_WHICH
def export(source: str, out: Path, which: str) -> None:
    """Write a LoRA as one file for Kohya's scripts, A1111, ComfyUI and others.

    RUN may be a folder or a Hub id that holds a LoRA, too.
    """
    quiet_third_parties()
    from dreambooth.generate import find_model
    from dreambooth.models.kohya import export_kohya

    for remark in export_kohya(find_model(source, which=which).model, out):
        click.echo(remark, err=True)
    click.echo(out)


@cli.command("merge")
@click.argument("sources", metavar="RUN RUN …", nargs=-1, required=True, type=_MODEL)
@click.option("--out", required=True, type=_NEW_FOLDER, callback=_not_taken, help="A new folder.")
@click.option(
    "--captions",
    "captions_file",
    metavar="FILE",
    type=_PATH,
    help="Ordinary text whose reading should stay as it is, a caption a line (default: captions of the toybox's world, "
    "else the paper's prompts for many classes).",
)
@_BASE
@_WHICH
def merge_runs(
    sources: tuple[str, ...], out: Path, captions_file: Path | None, base_model: str | None, which: str
) -> None:
    """Make one adapter of subjects that custom_diffusion learned in runs of their own.

    RUN may be a folder or a Hub id that holds such an adapter, too.
    """
    quiet_third_parties()
    from dreambooth.generate import find_model
    from dreambooth.models.fetch import fetch_model
    from dreambooth.models.merge import merge, part_of

    captions = _read_lines(captions_file, "caption") if captions_file else None
    base = fetch_model(base_model) if base_model else None
    found = [find_model(source, which=which, base=base) for source in sources]
    parts = [part_of(one.model, one.config) for one in found]
    merge(parts, out, captions, next((one.base for one in found if one.base), None))
    click.echo(f"Merged: {', '.join(name for part in parts for name in part.names)}")
    click.echo(f"Model: {out}")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=_PATH)
@click.option("--repo-id", required=True, metavar="[OWNER/]NAME", help="The model repo on the Hub to make or renew.")
@click.option("--public", is_flag=True, help="Let everybody see it (default: its owner alone).")
@click.option("--photos", is_flag=True, help="With the subject's photos, as cropped for training.")
@click.option("--half", is_flag=True, help="Weights in 16 bits: half the size.")
@_WHICH
@click.option(
    "--partner",
    metavar="RUN",
    type=_PATH,
    help="The run that differs in what keeps its class alone (PPL, drift penalty): the card shows both.",
)
def push(run_dir: Path, repo_id: str, public: bool, photos: bool, half: bool, which: str, partner: Path | None) -> None:
    """Publish a finished run as a model repo on the Hub, with a card.

    Log in first with `hf auth login`, or set HF_TOKEN. After a failure the same command goes on where it stopped.
    """
    quiet_third_parties()
    from dreambooth.hub import local_token, sign_in
    from dreambooth.runs.directory import Run
    from dreambooth.sharing.publish import Publication, publish

    run, other = Run.open(run_dir), Run.open(partner) if partner else None
    wanted = Publication(repo_id=repo_id, private=not public, photos=photos, half=half, which=which)
    console = _Console()
    for event in publish(run, wanted, sign_in(local_token()), partner=other):
        console.show(event)
        if isinstance(event, events.Published):
            click.echo(f"Published: {event.url} ({'public' if public else 'private'})")


def _read_lines(path: Path, what: str) -> list[str]:
    """The prompts or captions in a file, a line each; raises `ConfigError` where there are none."""
    from dreambooth.files import read_text

    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.", f"Give a text file with a {what} a line.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read ({error}).", f"Give a text file with a {what} a line.") from None
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise ConfigError(f"{path}: holds no {what}.", f"Write a {what} a line.")
    return found


def _print_figures(evaluation: Evaluation) -> None:
    """A line per metric: its mean and interval, what the photos score, and what measured it."""
    from dreambooth.metrics.metrics import METRICS

    rows = [("", "mean [95 % interval]", "photos", "measured by")]
    for name, about in METRICS.items():
        ceiling = evaluation.ceilings.get(name)
        title = f"{about.title} ({about.better} is better)"
        photos = "" if ceiling is None else f"{ceiling:.3f}"
        rows.append((title, str(evaluation.metrics[name]), photos, evaluation.encoder_of[name]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if any(estimate.low is None for estimate in evaluation.metrics.values()):
        click.echo("One prompt, or for PRES one picture, tells no interval.")


def _picture_file(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse, before the work is done, a name by which Pillow can't choose a format."""
    if path is not None and path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise click.BadParameter(f"{str(path)!r} does not end in .png, .jpg or .webp.")
    return path


@cli.command()
@click.option(
    "--base-model", default="toybox", show_default=True, type=_MODEL, help="toybox, a Hub id or a pipeline folder."
)
@click.option(
    "--check", "words", metavar="WORD", multiple=True, help="Judge this identifier; may be given several times."
)
@click.option("--class-noun", default="", help="With --preview: the class noun to show it with.")
@click.option(
    "--preview",
    type=_NEW_FILE,
    callback=_picture_file,
    help="Write a picture of what the base model draws for each word.",
)
def tokens(base_model: str, words: tuple[str, ...], class_noun: str, preview: Path | None) -> None:
    """Help to choose the identifier: judge words, or suggest rare ones."""
    quiet_third_parties()
    from dreambooth.families.tokens import advise, load_text_side, suggest
    from dreambooth.models.fetch import fetch_model

    tokenizer, text_encoder = load_text_side(fetch_model(base_model))
    advice = [advise(w, tokenizer, text_encoder) for w in words] or suggest(tokenizer, text_encoder)
    for a in advice:
        click.echo(f"{a.word}: {a.verdict}. {' '.join(a.reasons)}")
    if preview:
        _write_preview(preview, base_model, [a.word for a in advice], class_noun)


@cli.command()
@click.argument("account")
def rotate(account: str) -> None:
    """Give the runs of a Hugging Face account in this studio another owner id.

    The account goes on seeing them; an id that somebody may have got hold of opens nothing any more.
    """
    quiet_third_parties()

    owners.rotate(account, runs_root())
    click.echo(f"The runs of {account} have another owner id now.")


@cli.group()
def photos() -> None:
    """Look at photos before training."""


@photos.command("check")
@click.argument("folder", type=_PATH)
@click.option(
    "--resolution", default=512, show_default=True, type=click.IntRange(32, 4096), help="Training size in pixels."
)
@click.option("--sheet", type=_NEW_FILE, callback=_picture_file, help="Write a picture of the crops.")
def check_photos(folder: Path, resolution: int, sheet: Path | None) -> None:
    """The photo coach: what would make the training better."""
    from dreambooth.photos.captions import find_captions
    from dreambooth.photos.coach import coach
    from dreambooth.photos.prepare import contact_sheet, find_photos, passed_over, prepare_photos

    found = find_photos(folder)
    prepared = prepare_photos(found, resolution)
    for photo in prepared:
        click.echo(f"{photo.name}: {photo.size[0]} × {photo.size[1]}, crop {tuple(photo.crop)}")
    for remark in passed_over(folder):
        click.echo(f"warning: {remark}")
    if captions := find_captions(folder, found).captions:
        click.echo(f"{len(captions)} of {len(found)} photos have a caption, which subject.captions: true takes.")
    for finding in coach(prepared):
        click.echo(f"{finding.severity}: {finding.message}")
    if sheet:
        from dreambooth.files import atomic_file

        with atomic_file(sheet) as partial:
            contact_sheet([p.preview for p in prepared], 5, [p.name for p in prepared]).save(partial)


@cli.group("class-images")
def class_images() -> None:
    """Share class images, so that nobody draws the same ones twice."""


_PACK_OPTIONS = (
    click.argument("config_file", metavar="CONFIG.yaml", type=_PATH),
    click.option("--repo-id", required=True, metavar="USER/NAME", help="The dataset repo on the Hub."),
    click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting."),
)


def _of_a_pack(command: Callable) -> Callable:
    """The command with what both of the group take."""
    for option in reversed(_PACK_OPTIONS):
        command = option(command)
    return command


@class_images.command("push")
@_of_a_pack
@click.option("--public", is_flag=True, help="Let everybody read it (default: its owner alone).")
def push_class_images(config_file: Path, repo_id: str, overrides: tuple[str, ...], public: bool) -> None:
    """Publish the class images that a training with CONFIG.yaml drew, as a small dataset."""
    config = _config_of(str(config_file), overrides)
    quiet_third_parties()
    from dreambooth.hub import check_repo_id, local_token, sign_in
    from dreambooth.training.packs import publish_pack

    account = sign_in(local_token())
    click.echo(publish_pack(config, check_repo_id(repo_id, account), account, private=not public))


@class_images.command("fetch")
@_of_a_pack
def fetch_class_images(config_file: Path, repo_id: str, overrides: tuple[str, ...]) -> None:
    """Fetch the class images that a training with CONFIG.yaml would draw."""
    config = _config_of(str(config_file), overrides)
    quiet_third_parties()
    from dreambooth.training import prior
    from dreambooth.training.packs import fetch_pack, pack_key

    key, wanted = pack_key(config), config.prior.num_images
    for said in prior.drop_damaged(prior.cache_folder(key), wanted, int(key["resolution"])):
        click.echo(said, err=True)
    fetched = fetch_pack(repo_id, key, wanted)
    lacking = len(prior.missing_images(prior.cache_folder(key), wanted))
    click.echo(f"{fetched} class images fetched" + (f"; training draws the other {lacking}." if lacking else "."))


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed, or SIGTERM came as Slurm, Docker and spot machines send
    it before they end a program; a second one ends it at once."""
    stop = threading.Event()

    def stop_after_this_step(*_: object) -> None:
        stop.set()
        as_before()

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop_after_this_step) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop.is_set
    finally:
        as_before()


def _config_of(source: str, overrides: tuple[str, ...]) -> Config:
    """The settings in a file, or of a published model for hub:USER/NAME[@REVISION]."""
    from dreambooth.config.settings import Config

    if not source.startswith("hub:"):
        return Config.load(named_path(source, "CONFIG.yaml"), overrides)
    repo_id, at, revision = source.removeprefix("hub:").partition("@")
    if repo_id.count("/") != 1 or (at and not revision):
        raise ConfigError(f"{source!r} names no model.", "Write hub:USER/NAME, or hub:USER/NAME@REVISION.")
    quiet_third_parties()
    from dreambooth.sharing.published import published_config
    from dreambooth.training.prior import cache_root

    folder = cache_root().with_name("published") / repo_id.replace("/", "--")
    return published_config(repo_id, revision or None, None, folder, overrides)


def _run_to_resume(config: Config, run_dir: Path | None, source: str) -> Run:
    """The run to go on with; raises `ConfigError` where its settings, or its photos, are others than asked.

    Its own config.yaml as the `source` asks to go on with what it has copied.
    """
    from dreambooth.photos.prepare import join_names
    from dreambooth.runs.directory import Run, list_runs

    if run_dir is None:
        others, damaged = "", []
        for run in list_runs(runs_root()):
            try:
                if not (differing := run.differences(config)):
                    break
                others = others or f" The newest, {run.id}, has other {', '.join(differing)}."
            except ConfigError:
                damaged.append(run.id)
        else:
            if damaged:
                others += f" Damaged, or of another version: {join_names(damaged)}."
            raise ConfigError(
                f"No run in {runs_root()} has these settings.{others}", "Give its --run-dir, or leave --resume out."
            )
    else:
        run = Run.open(run_dir)
    own = run.path / "config.yaml"
    same = own.exists() and Path(source).exists() and own.samefile(source)
    remedy = f"To go on as it began, give {own} with its --run-dir; else train anew in another --run-dir."
    run.require(config, remedy, same_photos=not same)
    run.adopt(config)
    return run


def _carry_out(study: StudyConfig, out: Path) -> None:
    """Plan and run a study, and tell how it goes."""
    from dreambooth.evaluation.study import plan, run_study

    check_writable(out, "--out")
    click.echo("check …", err=True)
    cells = plan(study, out)
    done = sum(cell.evaluation is not None for cell in cells)
    click.echo(f"Study: {out}, {len(cells)} models" + (f", {done} of them done already" if done else ""))
    console, current, failures, stopped = _Console(), None, [], False
    with _stopped_by_signal() as should_stop:
        for cell, event in run_study(study, cells, out, should_stop=should_stop):
            if cell is not current:
                current = cell
                console.headline(f"[{cells.index(cell) + 1}/{len(cells)}] {cell}")
            match event:
                case events.Failed(_, message, hint):
                    failures.append(f"{cell}: {message} {hint}".rstrip())
                    console.headline(f"failed: {failures[-1]}")
                case events.Cancelled():
                    stopped = True
                    console.headline("Stopped; the same command goes on.")
                case events.Finished():
                    pass  # it is measured next
                case _:
                    console.show(event)
    if (out / "report.html").is_file():
        click.echo(f"Report: {out / 'report.html'}")
    if failures:
        click.echo(f"{len(failures)} of {len(cells)} failed; the same command tries them again:", err=True)
        for failure in failures:
            click.echo(failure, err=True)
    if failures or stopped:
        raise click.exceptions.Exit(1)


def _write_preview(path: Path, base_model: str, words: list[str], class_noun: str) -> None:
    from dreambooth.families.tokens import preview_prompts
    from dreambooth.files import atomic_file
    from dreambooth.generate import generate as draw
    from dreambooth.generate import open_source
    from dreambooth.photos.prepare import contact_sheet

    source = open_source(base_model)
    prompts = [prompt for word in words for prompt in preview_prompts(word, class_noun)]
    pictures = [p for batch in draw(source, prompts, num_images=2) for p in batch]
    with atomic_file(path) as partial:
        contact_sheet([p.image for p in pictures], 6, [p.prompt for p in pictures]).save(partial)
    click.echo(path)


class _Console:
    """Shows events: bars on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.bar: tqdm | None = None
        self.stage, self.total, self.tenth, self.recent = "", 0, 0, []

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case events.Stage(name, total):
                self._close()
                self.stage, self.total, self.tenth, self.recent = name, total, 0, []
                if self.terminal and total:
                    unit = {"train": "step", "upload": "B"}.get(name, "")
                    self.bar = tqdm(total=total, desc=name, unit=unit, unit_scale=unit == "B", leave=True)
                else:
                    click.echo(f"{name} …", err=True)
            case events.Progress(done):
                self._advance(done, "")
            case events.Step(step=step):
                self.recent = [*self.recent[-19:], event]
                loss = f"instance loss {self._mean('instance_loss'):.4f}"
                if event.prior_loss is not None:
                    loss += f", prior loss {self._mean('prior_loss'):.4f}"
                if event.drift is not None:
                    loss += f", drift {event.drift:.3g}"
                self._advance(step, loss)
            case events.Metric("estimated_peak_memory_bytes", value):
                self._line(f"estimated peak memory {value / 2**30:.1f} GiB")
            case events.Metric("estimated_seconds", value):
                self._line(f"estimated time roughly {value:.0f} s")
            case events.Metric("peak_memory_bytes", value):
                self._line(f"peak memory {value / 2**30:.2f} GiB")
            case events.Warning(message):
                self._line(f"advice: {message}")
            case events.Checkpoint(path):
                self._line(f"checkpoint {path}")
            case events.Cancelled(step):
                self._close()
                click.echo(f"Stopped after step {step}; go on with --resume.", err=True)
            case events.Finished(seconds=seconds):
                self._close()
                click.echo(f"Finished in {seconds:.0f} s.", err=True)

    def headline(self, text: str) -> None:
        """End what is shown, and say something."""
        self._close()
        click.echo(text, err=True)

    def _mean(self, name: str) -> float:
        return sum(getattr(e, name) for e in self.recent) / len(self.recent)

    def _advance(self, done: int, note: str) -> None:
        if self.bar is not None:
            self.bar.n = done
            self.bar.set_postfix_str(note)
        elif self.total and (tenth := 10 * done // self.total) > self.tenth:
            self.tenth = tenth
            share = f"{done / 1e6:.1f}/{self.total / 1e6:.1f} MB" if self.stage == "upload" else f"{done}/{self.total}"
            click.echo(f"{self.stage} {share} {note}".rstrip(), err=True)

    def _line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def end_in_a_line(work: Callable[[], object]) -> NoReturn:
    """Do the work and end the program: every expected failure is one line on standard error, and code 2 or 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the console's code page may lack what is in a file's name
            stream.reconfigure(errors="replace")
    try:
        tidy_variables()
        sys.exit(work() or 0)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2; the help, on lines of its own
            error.show()
            sys.exit(2)
        message, code = " ".join(error.format_message().split()), 2
    except (click.Abort, KeyboardInterrupt):
        message, code = "stopped.", 1
    except DreamBoothError as error:
        message, code = str(error), error.exit_code
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        message, code = "{} {}.".format(*disk_trouble(error)), 1
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run the command line."""
    end_in_a_line(lambda: cli.main(standalone_mode=False))
