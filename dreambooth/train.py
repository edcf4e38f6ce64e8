"""The training: one loop that yields events and keeps everything it knows in the run directory.

`train(config, run)` is a generator; whoever drives it appends each event to `events.jsonl`. It reads top to bottom:
prepare, resume, loop (one step, report, sample, checkpoint, stop), save.
"""

from __future__ import annotations

import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState, ThreadLocalSharedDict
from diffusers import DiffusionPipeline
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor, nn

from dreambooth import events, packs, prior
from dreambooth.checkpoints import Checkpoint, list_checkpoints
from dreambooth.coach import coach
from dreambooth.config import Config
from dreambooth.dataset import CLASS, INSTANCE, DreamBoothDataset, class_variants, encode, generator, photo_variants
from dreambooth.encoders import load_encoders
from dreambooth.errors import ConfigError, HubError, ModelError, PhotoError, RunError
from dreambooth.events import Event
from dreambooth.families import Family, family_of, load_pipeline, use_fastest_attention
from dreambooth.fetch import fetch_model
from dreambooth.files import atomic_folder
from dreambooth.generate import MAX_BATCH, draw, save_picture
from dreambooth.machine import resolve_device, resolve_precision
from dreambooth.methods import get_method
from dreambooth.monitor import Monitor
from dreambooth.objectives import dreambooth_loss
from dreambooth.photos import find_photos, prepare_photos, save_prepared
from dreambooth.preflight import check as preflight
from dreambooth.rehearsal import enable_gradient_checkpointing

for _state in (PartialState, AcceleratorState, GradientState):  # else runs in two threads change each other's precision
    _state._shared_state = ThreadLocalSharedDict()

DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    config: Config, run: Path, *, resume: bool = False, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Fine-tune as `config` says into the directory `run`, yielding an event for everything that happens.

    With `resume`, goes on from the newest checkpoint in `run` and ends with the weights of an uninterrupted run (bit
    for bit on a CPU). `should_stop` is asked between steps; on True a checkpoint is written and `Cancelled` ends it.
    Raises `DreamBoothError`s; what is on disk then is whole.
    """
    started = time.monotonic()
    settings, method = config.train, get_method(config.method)

    # -- prepare: check everything before a weight is loaded ---------------------------------------------------------
    yield events.Stage("prepare")
    device = resolve_device(config.device)
    precision = resolve_precision(settings.mixed_precision, device)
    dtype = DTYPES[precision]
    model = fetch_model(config.base_model, config.revision)
    resolution = family_of(model).resolution(model) if settings.resolution == "auto" else settings.resolution
    if not (run / "photos").is_dir():
        yield from _prepare_photos(config, run, resolution)
    estimate = preflight(config, model, device)
    yield events.Metric("estimated_peak_memory_bytes", estimate.peak_bytes, 0)
    yield events.Metric("estimated_seconds", estimate.seconds, 0)

    use_prior = config.prior.active
    if use_prior:
        key = prior.cache_key(config, model, resolution, precision)
        class_folder = prior.cache_folder(key)
        if config.prior.pack and prior.missing_images(class_folder, config.prior.num_images):
            yield events.Stage("fetch class images")
            packs.fetch_pack(config.prior.pack, key, config.prior.num_images)

    photos, prompts = _photos_and_prompts(config, run)
    monitor = yield from _monitor(config, run, photos)

    yield events.Stage("load model")
    pipe, family = load_pipeline(model)
    pipe.to(device)
    use_fastest_attention(pipe, family, (resolution // pipe.vae_scale_factor) ** 2)
    if use_prior:
        missing = len(prior.missing_images(class_folder, config.prior.num_images))
        if missing:
            yield events.Stage("class images", config.prior.num_images)
            for done in prior.draw_class_images(pipe, config, class_folder, key, dtype):
                yield events.Progress(done)
                if should_stop() and done < config.prior.num_images:
                    yield events.Cancelled(0)
                    return
        _point_to(run / "class_images", class_folder)

    # -- prepare: encode every picture once --------------------------------------------------------------------------
    yield events.Stage("encode")
    instance = encode(pipe, family, (photo_variants(p, config, i) for i, p in enumerate(photos)), prompts, dtype)
    classes = None
    if use_prior:
        paths = prior.class_images(class_folder, config.prior.num_images)
        pictures = (class_variants(path, config) for path in paths)
        classes = encode(pipe, family, pictures, [config.class_prompt] * len(paths), dtype)
    batch_size, accumulation = settings.batch_size, settings.gradient_accumulation
    dataset = DreamBoothDataset(instance, classes, config.seed, settings.steps * accumulation * batch_size)

    # -- prepare: what is trained, and with what ---------------------------------------------------------------------
    AcceleratorState._reset_state(reset_partial_state=True)  # else a process keeps its first run's precision
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    trainable = method.attach(pipe, family, config)
    objective = family.objective(pipe)
    modules = nn.ModuleDict(trainable.modules).train()
    if estimate.gradient_checkpointing:
        for module in modules.values():
            enable_gradient_checkpointing(module)
    optimizer = accelerator.prepare(_optimizer(config, trainable.parameter_groups))
    schedule = get_scheduler(
        {"constant": "constant_with_warmup"}.get(settings.lr_schedule, settings.lr_schedule), optimizer.optimizer,
        num_warmup_steps=settings.warmup_steps, num_training_steps=settings.steps,
    )  # fmt: skip
    parameters = [p for group in trainable.parameter_groups for p in group["params"]]
    ema = deepcopy(modules).requires_grad_(False) if settings.ema_decay else None
    text_trained = any(name in trainable.modules for name in family.text_encoders)
    conditioning = _conditioning(pipe, family, dataset, frozen=not text_trained)
    idle = ["vae", *(() if text_trained else family.text_encoders)]
    _move(pipe, idle, "cpu")  # what a step does not use makes room

    # -- resume ------------------------------------------------------------------------------------------------------
    checkpoint = Checkpoint(modules, optimizer.optimizer, schedule, accelerator.scaler, ema)
    if resume and (saved := list_checkpoints(run / "checkpoints")):
        checkpoint.load(saved[-1])
    else:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)

    def sample(step: int) -> Iterator[Event]:
        """Draw the sample pictures, measure them, and keep the model that is the best so far."""
        _move(pipe, idle, device)
        with _weights_of(ema, modules):
            pictures = yield from _draw_samples(pipe, config, run, step, resolution, dtype, should_stop)
            if monitor and pictures:
                yield from monitor.measure(step, pictures, device)
                if monitor.best == step and 0 < step < settings.steps:
                    with atomic_folder(run / "best") as folder:
                        trainable.save(folder, model)
        _move(pipe, idle, "cpu")

    # -- loop --------------------------------------------------------------------------------------------------------
    yield events.Stage("train", settings.steps)
    if settings.sample_every and checkpoint.step == 0:  # what the base model draws
        yield from sample(0)
        if should_stop():
            yield events.Cancelled(0)
            return
    done = checkpoint.step >= settings.steps or (monitor is not None and monitor.exhausted(checkpoint.step))
    while not done:
        # one step
        tick = time.monotonic()
        parts = []
        for micro in range(accumulation):
            number = checkpoint.step * accumulation + micro
            batch = dataset.batch(number, batch_size)
            x0, ids = batch["instance_images"], batch["instance_prompt_ids"]
            noise, t = _noise_and_timesteps(x0, objective, config.seed, INSTANCE, number)
            if use_prior:  # one forward pass for both; the photos' noise is the same with and without
                x0 = torch.cat([x0, batch["class_images"]])
                ids = torch.cat([ids, batch["class_prompt_ids"]])
                class_noise, class_t = _noise_and_timesteps(
                    batch["class_images"], objective, config.seed, CLASS, number
                )
                noise, t = torch.cat([noise, class_noise]), torch.cat([t, class_t])
            x0, noise, t = x0.to(device), noise.to(device), t.to(device)
            with accelerator.autocast():
                prediction = family.predict(pipe, objective.add_noise(x0, noise, t), t, conditioning(ids))
            losses = objective.loss(prediction, x0, noise, t, settings.snr_gamma)
            loss = dreambooth_loss(losses, batch_size, config.prior.weight)
            if not torch.isfinite(loss.total):
                raise RunError(
                    f"The loss is not finite at step {checkpoint.step + 1}, so the weights would be ruined.",
                    "Lower train.learning_rate, or set train.mixed_precision to no or bf16.",
                )
            accelerator.backward(loss.total / accumulation)
            parts.append(torch.stack([loss.total, loss.instance, loss.prior if use_prior else loss.total * 0]).detach())
        accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if trainable.after_step:
            trainable.after_step()
        checkpoint.step = step = checkpoint.step + 1
        if ema is not None:
            _update_average(ema, modules, settings.ema_decay, step)

        # report
        total, instance_loss, prior_loss = torch.stack(parts).mean(0).tolist()
        seconds = time.monotonic() - tick
        yield events.Step(step, total, instance_loss, prior_loss if use_prior else None, lr, seconds)

        # sample, measure
        done = step == settings.steps
        if settings.sample_every and (step % settings.sample_every == 0 or done):
            yield from sample(step)
            done = done or (monitor is not None and monitor.exhausted(step))

        # checkpoint, stop
        stopping = should_stop() and not done
        if stopping or step % settings.checkpoint_every == 0 or done:
            path = checkpoint.save(run / "checkpoints", settings.keep_checkpoints)
            yield events.Checkpoint(str(path.relative_to(run)), step)
        if stopping:
            yield events.Cancelled(step)
            return

    # -- save --------------------------------------------------------------------------------------------------------
    yield events.Stage("save")
    if monitor and monitor.best == checkpoint.step:  # then the last is the best
        shutil.rmtree(run / "best", ignore_errors=True)
    with _weights_of(ema, modules), atomic_folder(run / "model") as folder:
        trainable.save(folder, model)
        load_pipeline(folder)  # stock diffusers takes it, or this run has not finished
    yield events.Metric("peak_memory_bytes", _peak_memory(device), settings.steps)
    yield events.Finished("model", time.monotonic() - started)


def _prepare_photos(config: Config, run: Path, resolution: int) -> Iterator[Event]:
    """Write `photos/`: 00.png, 01.png, … and beside each, in a text file, the prompt it is trained with."""
    paths = find_photos(config.subject.photos)
    prepared = prepare_photos(paths, resolution, config.subject.crops)
    for finding in coach(prepared):
        yield events.Warning(finding.message)
    prompts = [caption_of(config, path) for path in paths]
    with atomic_folder(run / "photos") as folder:
        for image, prompt in zip(save_prepared(prepared, folder), prompts, strict=True):
            image.with_suffix(".txt").write_text(prompt, encoding="utf-8")


def caption_of(config: Config, photo: Path) -> str:
    """The prompt that a photo is trained with; raises `PhotoError` for a caption that can't be used."""
    text = photo.with_suffix(".txt")
    if not (config.subject.captions and text.is_file()):
        return config.instance_prompt
    try:
        caption = config.subject.fill(text.read_text(encoding="utf-8").strip())
    except (OSError, LookupError, ValueError, AttributeError) as error:
        raise PhotoError(f"{text.name}: can't be used as a caption ({error}).", "Write plain text; {identifier} and "
                         "{class_noun} are filled in.") from None  # fmt: skip
    if config.subject.identifier not in caption:
        raise PhotoError(
            f"{text.name}: does not hold the identifier.", "Write {identifier} where the subject is named."
        )
    return caption


def _photos_and_prompts(config: Config, run: Path) -> tuple[list[Image.Image], list[str]]:
    files = sorted((run / "photos").glob("*.png"))
    return [Image.open(f).convert("RGB") for f in files], [
        f.with_suffix(".txt").read_text(encoding="utf-8") for f in files
    ]


def _monitor(config: Config, run: Path, photos: list[Image.Image]) -> Generator[Event, None, Monitor | None]:
    """What measures the sample pictures, if there are any and that is wanted; its encoders wait on the CPU."""
    evaluation = config.evaluation
    if not (config.train.sample_every and evaluation.while_training):
        return None
    if len(photos) < 2:
        yield events.Warning("One photo has no other to be compared with, so this run is not measured.")
        return None
    try:
        encoders = load_encoders(evaluation, config.base_model, "cpu")
    except ConfigError as error:  # no LPIPS: it is no condition of training, only of DIV
        if evaluation.perceptual != "auto":
            raise
        yield events.Warning(f"DIV is not measured while training. {error}")
        encoders = load_encoders(evaluation, config.base_model, "cpu", perceptual=False)
    except (HubError, ModelError) as error:
        hint = f"{error.hint} Or train unmeasured: evaluation.while_training: false."
        raise type(error)(error.message, hint) from None
    return Monitor(config, run, encoders, photos)


def _point_to(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to the shared cache, or a text file with its path where links can't be made."""
    if link.is_symlink() or link.exists():
        link.unlink()
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:  # Windows without the right, and some network disks
        link.write_text(str(target), encoding="utf-8")


def _optimizer(config: Config, groups: list[dict]) -> torch.optim.Optimizer:
    settings = config.train
    arguments = {"lr": settings.learning_rate, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **arguments)
    return torch.optim.AdamW(groups, **arguments, fused=True)


def _move(pipe: DiffusionPipeline, names: list[str], device: torch.device | str) -> None:
    for name in names:
        getattr(pipe, name).to(device)


def _noise_and_timesteps(x0: Tensor, objective, seed: int, stream: int, number: int) -> tuple[Tensor, Tensor]:
    """ε like `x0` and timesteps (B,), from (seed, stream, batch number) alone."""
    g = generator(seed, stream, 2**31 + number)  # item numbers stay below this
    return torch.randn(x0.shape, generator=g), objective.sample_timesteps(len(x0), g)


def _conditioning(
    pipe: DiffusionPipeline, family: Family, dataset: DreamBoothDataset, frozen: bool
) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function from prompt ids (B, tokens) to conditioning; each different prompt is encoded once a batch, or, with
    a frozen text side, once for all."""
    device = pipe.device

    def encode_distinct(ids: Tensor) -> dict[str, Tensor]:
        distinct, where = ids.unique(dim=0, return_inverse=True)
        encoded = family.encode_text(pipe, distinct.to(device))
        return {name: value[where.to(device)] for name, value in encoded.items()}

    if not frozen:
        return encode_distinct
    sides = [side.prompt_ids for side in (dataset.instance, dataset.prior) if side is not None]
    distinct = torch.cat(sides).unique(dim=0)
    with torch.no_grad():
        encoded = family.encode_text(pipe, distinct.to(device))
    rows = {tuple(row): i for i, row in enumerate(distinct.tolist())}

    def look_up(ids: Tensor) -> dict[str, Tensor]:
        where = torch.tensor([rows[tuple(row)] for row in ids.tolist()], device=device)
        return {name: value[where] for name, value in encoded.items()}

    return look_up


@torch.no_grad()
def _update_average(ema: nn.Module, modules: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the weights; early steps count more, so that the start does not linger."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(modules.parameters()), 1 - decay)


@contextmanager
def _weights_of(ema: nn.Module | None, modules: nn.Module) -> Iterator[None]:
    """Inside the block the modules hold the averaged weights, if there are any."""
    if ema is None:
        yield
        return
    pairs = list(zip(modules.parameters(), ema.parameters(), strict=True))
    for ours, theirs in pairs:
        ours.data, theirs.data = theirs.data, ours.data
    try:
        yield
    finally:
        for ours, theirs in pairs:
            ours.data, theirs.data = theirs.data, ours.data


def _draw_samples(
    pipe: DiffusionPipeline, config: Config, run: Path, step: int, resolution: int, dtype: torch.dtype | None,
    should_stop: Callable[[], bool],
) -> Generator[Event, None, list[tuple[Image.Image, str]]]:  # fmt: skip
    """Draw the subject's prompt, the class prompt and any others with the same seeds each time.

    Returns the pictures with their prompts; none where it was told to stop before it had drawn all.
    """
    sampling = config.sampling
    prompts = [config.instance_prompt, config.class_prompt, *(config.subject.fill(p) for p in sampling.prompts)]
    jobs = [(prompt, sampling.seed + i) for prompt in dict.fromkeys(prompts) for i in range(sampling.num_images)]
    drawn = []
    for start in range(0, len(jobs), MAX_BATCH):
        if start and should_stop():
            return []
        batch = jobs[start : start + MAX_BATCH]
        images = draw(pipe, [p for p, _ in batch], [s for _, s in batch], sampling, resolution=resolution, dtype=dtype)
        for image, (prompt, seed) in zip(images, batch, strict=True):
            slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
            path = run / "samples" / f"step-{step:06d}-{slug}-{seed}.png"
            save_picture(path, image, prompt=prompt, seed=seed, step=step, model=run.name)
            yield events.Image(str(path.relative_to(run)), prompt, seed, step)
            drawn.append((image, prompt))
    return drawn


def _peak_memory(device: torch.device) -> int:
    """The most memory in use so far, in bytes: of the process on a CPU, of the accelerator else."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024)
