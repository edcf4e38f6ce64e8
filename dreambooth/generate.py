"""From prompts and seeds to pictures: one seed a picture, whose noise is the same everywhere."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import FiniteFloat, TypeAdapter, ValidationError
from torch import nn

from dreambooth.config.names import TOYBOX
from dreambooth.config.presets import load_preset
from dreambooth.config.sections import SamplingConfig
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import read_card_data, read_foreign_yaml, read_yaml
from dreambooth.cores import share_cores
from dreambooth.errors import ConfigError, ModelError, RunError
from dreambooth.families.family import Family
from dreambooth.families.folder import shown_name
from dreambooth.families.load import store_matrices_in, use_fastest_attention
from dreambooth.files import atomic_file
from dreambooth.hub import TAG, Token
from dreambooth.machine import DTYPES, resolve_precision
from dreambooth.metrics.measures import BLANK, read_measures
from dreambooth.models.adapters import fetch_base, is_adapter, is_model, load_model, read_adapter, read_step
from dreambooth.models.fetch import fetch_model
from dreambooth.photos.sheets import is_blank
from dreambooth.rehearsal import fitting_batch

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
}
MAX_BATCH = 16  # pictures drawn at once: bounds memory whatever the count

Which = Literal["last", "best"]
"""Of a run's two models: the one after the last step, or the one whose sample pictures were best."""

OnStep = Callable[[int, int], None]
"""Told after each denoising step how many are done, of how many; what it raises ends the drawing."""


@dataclass(frozen=True)
class Picture:
    """A generated image and what it was made from."""

    image: Image.Image
    prompt: str
    seed: int
    problem: str = ""
    """Why there is nothing to see, in words: a safety checker or failed arithmetic left a blank frame."""
    precision: str = "no"
    """The arithmetic it was drawn in: no, bf16 or fp16."""


@dataclass(frozen=True)
class Source:
    """A loaded model to generate from."""

    pipe: DiffusionPipeline
    family: Family
    name: str
    """What a picture's metadata call it: the base model, or the run's id; never a path of this machine."""
    sampling: SamplingConfig
    """The settings this model is best sampled with."""
    config: Config | None
    """The settings it was trained with, where it is a run's or was published as one's."""
    adapters: tuple[tuple[str, float], ...] = ()
    """What is put on top, by names such as `name`, with weights."""
    precision: str = "no"
    """The arithmetic it draws in: no, bf16 or fp16. Its matrices are stored so."""
    folder: Path | None = None
    """The pipeline's, of an adapter its base model's."""

    def batch_that_fits(self, most: int, setting: str, sampling: SamplingConfig | None = None) -> int:
        """How many pictures, `most` at most, the memory holds at once where the model lies now; `setting` is what the
        user calls that size. Raises `ConfigError` where not even one can be drawn."""
        if self.folder is None:
            return most
        guidance = (sampling or self.sampling).guidance_scale
        return fitting_batch(
            self.folder, self.pipe.device, self.precision, most, setting, guidance_scale=guidance, loaded=True
        )


def finished_model(run: Path, which: Which = "last") -> Path:
    """The folder with a run's model: that of its last step, or the best one by `measures.best_of`.

    A run whose last model is its best, or that was not measured, has one model for both. Raises `RunError` for a run
    without a finished model, and where the best step's model is not what is kept.
    """
    if not is_model(run / "model"):
        raise RunError(f"{run} has no finished model.", "Train it to the end first: `train CONFIG.yaml --resume`.")
    if which == "last":
        return run / "model"
    measures, last, kept = read_measures(run), read_step(run / "model"), is_model(run / "best")
    if not kept and (measures is None or last in (None, measures.best)):
        return run / "model"
    held = read_step(run / "best") if kept else None
    if measures is None or held != measures.best:
        said = f"Step {measures.best} did best, but" if measures else "Nothing says which step did best, and"
        holds = f"best/ holds step {held}" if held is not None else "best/ does not tell of which step it is"
        raise RunError(
            f"{run.resolve().name}: {said} {holds if kept else 'nothing of it is kept'}.",
            "Take the last step's model (--which last), or train anew.",
        )
    return run / "best"


def open_source(
    source: str,
    revision: str | None = None,
    device: torch.device | None = None,
    *,
    safety_checker: bool | Path = True,
    which: Which = "last",
    token: Token = None,
    base: Path | None = None,
    scale: float = 1.0,
    adapters: Sequence[tuple[str, float]] = (),
    precision: str | None = None,
) -> Source:
    """Load a run directory, toybox, a pipeline folder or a Hub id for generation; of a run, `which` of its models.

    An adapter takes part with `scale`, on its base model, whose folder is `base` if known, and on top come further
    `adapters`, each a run (`which` of its models, too), a folder or a Hub id, and its weight. A model that was
    published as a run's is sampled as that run was. Where the model has a safety checker, it looks at every picture
    unless `safety_checker` is off; the one in the folder `safety_checker`, if that is given, looks in its place. It
    draws in `precision` (auto, no, bf16 or fp16), if given, else as its sampling settings say. Raises `RunError` for a
    run without a finished model, `ConfigError` for damaged settings and for what is no adapter, else what `fetch_model`
    and `load_model` raise.
    """
    found = find_model(source, revision, which, token=token, base=base)
    stacked, names = [], []
    for other, weight in adapters:
        on_top = find_model(other, which=which, token=token, base=found.base or found.model)
        if not is_adapter(on_top.model):
            raise ConfigError(f"{other} is a whole model.", "Only adapters can be put on top of a model.")
        stacked.append((on_top.model, weight))
        names.append((on_top.name, weight))
    adapter = is_adapter(found.model)
    base = found.base or (fetch_base(read_adapter(found.model), token=token) if adapter else None)
    pipe, family = load_model(
        found.model, base, scale=scale, adapters=stacked, safety_checker=safety_checker, token=token
    )
    on_toybox = source == TOYBOX or (adapter and read_adapter(found.model).base_model == TOYBOX)
    usual = SamplingConfig(**(load_preset(TOYBOX)["sampling"] if on_toybox else {}))
    sampling = found.config.drawing if found.config else usual
    device = device or torch.device("cpu")
    precision = resolve_precision(precision or sampling.precision, device, "sampling.precision")
    _make_ready(pipe, family, device, precision)
    return Source(pipe, family, found.name, sampling, found.config, tuple(names), precision, base or found.model)


def _make_ready(pipe: DiffusionPipeline, family: Family, device: torch.device, precision: str) -> None:
    """Put the pipeline on the device to draw in `precision`, as the sample pictures of a training are drawn."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    for module in modules:
        module.requires_grad_(False)
    store_matrices_in(DTYPES[precision], modules)
    pipe.to(device)
    use_fastest_attention(pipe, family, getattr(pipe, family.denoiser).config.sample_size ** 2)


class Found(NamedTuple):
    """A model that is there, not loaded yet."""

    model: Path
    """The folder of a pipeline or of an adapter."""
    base: Path | None
    """The base model's folder of an adapter, where it is a run's or was given; else `adapter.json` names it."""
    name: str
    """The base model, or the run's id; never a path of this machine."""
    config: Config | None
    """The settings it was trained with, where it is a run's or was published as one's."""


def find_model(
    source: str,
    revision: str | None = None,
    which: Which = "last",
    *,
    token: Token = None,
    base: Path | None = None,
) -> Found:
    """The model of a run directory, toybox, a folder or a Hub id, which is downloaded if need be; of a run, `which`.

    `base` is the base model's folder if known. Raises as `open_source` does.
    """
    folder = Path(os.path.expanduser(source))
    if _is_run(folder):
        model = finished_model(folder, which)
        trained = Config.from_record(read_yaml(folder / "config.yaml"), source=str(folder / "config.yaml"))
        config: Config | None = trained
        if is_adapter(model) and base is None:
            if os.path.isabs(trained.base_model) and not os.path.exists(trained.base_model):
                raise ModelError(
                    f"The base model of {folder.resolve().name}, {trained.base_model}, is not there any more.",
                    "Put it back, or say where it is (--base-model).",
                )
            base = fetch_model(trained.base_model, trained.revision)
    else:
        model = fetch_model(source, revision, token=token, adapters=True)
        config = published_settings(model)
    return Found(model, base, folder.resolve().name if folder.exists() else source, config)


def _is_run(folder: Path) -> bool:
    """Whether it is a run's directory; a published model has a config.yaml, too."""
    return any((folder / name).is_file() for name in ("config.yaml", "events.jsonl")) and not is_model(folder)


def published_settings(model: Path) -> Config | None:
    """The settings that a pipeline folder was published with by this product; None for any other.

    Raises `ConfigError` where they are damaged, or of another version.
    """
    try:
        tags = read_card_data(model / "README.md", "README.md").get("tags")
    except ConfigError:  # somebody else's card, or none
        return None
    if not (isinstance(tags, list) and TAG in tags and (model / "config.yaml").is_file()):
        return None
    source = f"{shown_name(model)}: config.yaml"
    try:
        return Config.from_record(read_foreign_yaml(model / "config.yaml", source), source)
    except ConfigError as error:
        hint = "It is damaged, or of another version of this program; try another revision of the model."
        raise ConfigError(error.message, hint) from None


def with_scheduler(pipe: DiffusionPipeline, name: str) -> object:
    """The pipeline's own scheduler for `default`, else the named one on the same noise schedule.

    Raises `ConfigError` where that sampler can't follow the model's schedule.
    """
    if name == "default":
        return pipe.scheduler
    kind = getattr(diffusers, SCHEDULERS[name])
    config = pipe.scheduler.config
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in inspect.signature(kind).parameters:
        raise ConfigError(
            f"scheduler {name} can't follow this model's zero-SNR schedule.", "Use default, ddim, dpm++ or euler."
        )
    return kind.from_config(config)


def draw(
    pipe: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    sampling: SamplingConfig,
    *,
    negative_prompt: str = "",
    resolution: int | None = None,
    dtype: torch.dtype | None = None,
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """Draw one picture for each prompt and its seed, all in one batch, in `dtype` autocast if given.

    The noise of a picture comes from its seed alone, drawn on the CPU, so it does not depend on device or batch; they
    change the last bits of the arithmetic. The VAE decodes one picture after the other: it takes more memory for one
    than the denoiser does.
    """
    drawn = _draw(pipe, prompts, seeds, sampling, negative_prompt, resolution, dtype, on_step)
    images: list[Image.Image] = drawn.images
    return images


@torch.inference_mode()
def _draw(
    pipe: DiffusionPipeline,
    prompts: list[str],
    seeds: list[int],
    sampling: SamplingConfig,
    negative_prompt: str = "",
    resolution: int | None = None,
    dtype: torch.dtype | None = None,
    on_step: OnStep | None = None,
) -> BaseOutput:
    """What the pipeline says of the pictures that `draw` describes."""

    def after_step(_pipe: DiffusionPipeline, step: int, _timestep: object, _tensors: dict[str, Any]) -> dict[str, Any]:
        share_cores()
        if on_step:
            on_step(step + 1, pipe.num_timesteps)
        return {}

    own, sliced = pipe.scheduler, pipe.vae.use_slicing
    pipe.vae.use_slicing = True
    pipe.scheduler = with_scheduler(pipe, sampling.scheduler)
    device = pipe._execution_device
    try:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return pipe(
                prompts,
                negative_prompt=[negative_prompt] * len(prompts) if negative_prompt else None,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=resolution,
                width=resolution,
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=[],
            )
    finally:
        pipe.scheduler, pipe.vae.use_slicing = own, sliced


def generate(
    source: Source,
    prompts: list[str],
    *,
    num_images: int = 4,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    negative_prompt: str = "",
    batch_size: int = MAX_BATCH,
    batch_setting: str = "batch_size",
    on_step: OnStep | None = None,
) -> Iterator[list[Picture]]:
    """Yield batches of pictures: `num_images` of each prompt, seeded `seed`, `seed + 1`, … alike for each prompt.

    At most `batch_size` are drawn at once, in the arithmetic that the source was opened for; `on_step` hears of the
    steps of each batch. `batch_setting` is what the user calls that size.

    Raises `ConfigError` for an empty prompt or impossible numbers, before anything is drawn, and `RunError` where the
    memory runs out.
    """
    check_request(prompts, num_images, seed)
    jobs = [(prompt, (seed + i) % 2**32) for prompt in prompts for i in range(num_images)]
    yield from draw_jobs(
        source,
        jobs,
        sampling,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        batch_setting=batch_setting,
        on_step=on_step,
    )


def draw_jobs(
    source: Source,
    jobs: Sequence[tuple[str, int]],
    sampling: SamplingConfig | None = None,
    *,
    negative_prompt: str = "",
    batch_size: int = MAX_BATCH,
    batch_setting: str = "batch_size",
    on_step: OnStep | None = None,
) -> Iterator[list[Picture]]:
    """Yield batches of pictures, one for each prompt and seed, in order; `generate` describes the rest."""
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        texts, seeds = [prompt for prompt, _ in batch], [s for _, s in batch]
        try:
            drawn = _draw(
                source.pipe,
                texts,
                seeds,
                sampling or source.sampling,
                negative_prompt,
                dtype=DTYPES[source.precision],
                on_step=on_step,
            )
        except (torch.OutOfMemoryError, MemoryError):
            fewer = f"Draw fewer at once ({batch_setting})" if len(batch) > 1 else "Close what else uses it"
            raise RunError(
                f"The memory ran out while drawing {len(batch)} picture{'s'[: len(batch) > 1]} at once.",
                f"{fewer}, or take a smaller model.",
            ) from None
        blocked = getattr(drawn, "nsfw_content_detected", None) or [False] * len(batch)
        yield [
            Picture(image, text, seed, _problem(image, held), source.precision)
            for image, text, seed, held in zip(drawn.images, texts, seeds, blocked, strict=True)
        ]


def fewer_at_once(fits: int, asked: int, setting: str) -> str:
    """What to say where the memory holds fewer pictures at once than were asked for."""
    return f"{fits} pictures are drawn at once, not {asked}, which the memory does not hold ({setting})."


def check_request(prompts: list[str], num_images: int, seed: int) -> None:
    """Raise `ConfigError` for what `generate` would refuse, without a model at hand."""
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ConfigError("The prompt is empty.", "Say what to draw, for example 'a photo of sks dog on a beach'.")
    if num_images < 1:
        raise ConfigError(f"num_images is {num_images}.", "Give 1 or more.")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed}.", "Give a whole number from 0 to 4294967295.")


def _problem(image: Image.Image, blocked: bool) -> str:
    if blocked:
        return "held back by the model's safety checker"
    return BLANK if is_blank(image) else ""


def save_picture(path: Path, image: Image.Image, **facts: object) -> None:
    """Write a PNG, whole or not at all, with `facts` (prompt, seed, model, …) as its text metadata."""
    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, str(value))
    with atomic_file(path) as partial:
        image.save(partial, pnginfo=info)


_ADAPTERS = TypeAdapter(list[tuple[str, FiniteFloat]])


def shown_adapters(adapters: Sequence[tuple[str, float]]) -> str:
    """Names of what is put on top of a model, with weights, as a picture's `adapters` keeps them: [["rex",0.5]]."""
    return _ADAPTERS.dump_json(list(adapters)).decode()


def read_adapters(text: str) -> list[tuple[str, float]]:
    """What `shown_adapters` wrote; nothing of any other text, such as older pictures have."""
    try:
        return _ADAPTERS.validate_json(text)
    except ValidationError:
        return []
