"""The training: one loop that yields events and keeps everything it knows in the run directory.

`train(config, run)` is a generator; whoever drives it appends each event to `events.jsonl`. It reads top to bottom:
prepare, resume, loop (one step, report, sample, checkpoint, stop), save.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState, ThreadLocalSharedDict
from diffusers import DiffusionPipeline
from diffusers.optimization import get_scheduler
from torch import Tensor

from dreambooth import events
from dreambooth.config.sections import MAX_EXAMPLES
from dreambooth.config.settings import Config
from dreambooth.cores import share_cores
from dreambooth.errors import RunError
from dreambooth.events import Event
from dreambooth.families import family_of
from dreambooth.families.family import Family
from dreambooth.families.load import load_pipeline, use_fastest_attention
from dreambooth.families.tokens import Reader
from dreambooth.families.words import keep_learned_word
from dreambooth.files import atomic_folder
from dreambooth.machine import DTYPES, peak_memory, reset_peak_memory, resolve_device, resolve_precision
from dreambooth.methods import get_method
from dreambooth.methods.method import Trainable, store_frozen_in
from dreambooth.metrics.measures import exhausted, read_measures
from dreambooth.models.adapters import is_adapter, is_model, load_model, read_step, save_trained
from dreambooth.models.fetch import fetch_model, fingerprint
from dreambooth.objectives import Diffusion, dreambooth_loss
from dreambooth.rehearsal import enable_gradient_checkpointing
from dreambooth.training import packs, prior
from dreambooth.training.checkpoints import Checkpoint, Writer, list_checkpoints
from dreambooth.training.dataset import (
    CLASS,
    DROPOUT,
    INSTANCE,
    DreamBoothDataset,
    Encoded,
    generator,
    photo_variants,
    prompts_of_variants,
)
from dreambooth.training.examples import encode_classes, encode_photos, keep_photos, known_classes, photos_and_prompts
from dreambooth.training.preflight import check as preflight
from dreambooth.training.samples import draw_samples, monitor_of, sample_jobs

for _state in (PartialState, AcceleratorState, GradientState):  # else runs in two threads change each other's precision
    _state._shared_state = ThreadLocalSharedDict()
MOST_OVERFLOWS = 20
"""Times in a row that fp16 may overflow in one step, as it does at the start: each halves the loss' scale, from 65,536
to a sixteenth. Ours."""


def train(
    config: Config, run: Path, *, resume: bool = False, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Fine-tune as `config` says into the directory `run`, yielding an event for everything that happens.

    With `resume`, goes on from the newest checkpoint in `run` and ends with the weights of an uninterrupted run (bit
    for bit on a CPU). `should_stop` is asked between steps; on True a checkpoint is written and `Cancelled` ends it.
    Raises `DreamBoothError`s; what is on disk then is whole.
    """
    with Writer() as disk:
        yield from _train(config, run, disk, resume, should_stop)


def _train(config: Config, run: Path, disk: Writer, resume: bool, should_stop: Callable[[], bool]) -> Iterator[Event]:
    """`train`, with what writes to disk beside the steps."""
    started = time.monotonic()
    settings, config = config.train, keep_learned_word(config, run)

    # -- prepare: check everything before a weight is loaded ---------------------------------------------------------
    yield events.Stage("prepare")
    if resume and _has_ended(config, run):  # its checkpoints are gone, and there is nothing left to do
        yield events.Finished("model", time.monotonic() - started)
        return
    device = resolve_device(config.device)
    yield events.Metric("memory_before_bytes", reset_peak_memory(device), 0)
    precision = resolve_precision(settings.mixed_precision, device)
    dtype = DTYPES[precision]
    model = fetch_model(config.base_model, config.revision)
    resolution = family_of(model).resolution(model) if settings.resolution == "auto" else settings.resolution
    reader = Reader.of(config, model)
    for remark in reader.check_run(config):
        yield events.Warning(remark)
    if not (run / "photos").is_dir():
        yield from keep_photos(config, run, resolution, reader)
    estimate = preflight(config, model, device)
    yield events.Metric("estimated_peak_memory_bytes", estimate.peak_bytes, 0)
    yield events.Metric("estimated_seconds", estimate.seconds, 0)

    use_prior = config.prior.active
    if use_prior:
        keys = [prior.cache_key(config, model, resolution, precision, prompt) for prompt in config.class_prompts]
        class_folders = [prior.cache_folder(key) for key in keys]
        for class_folder in class_folders:
            prior.touch(class_folder)
            for said in prior.drop_damaged(class_folder, config.prior.num_images, resolution):
                yield events.Warning(said)
        if config.prior.pack and prior.missing_images(class_folders[0], config.prior.num_images):
            yield events.Stage("fetch class images")
            packs.fetch_pack(config.prior.pack, keys[0], config.prior.num_images)

    photos, prompts, groups = photos_and_prompts(run)
    monitor = yield from monitor_of(config, run, photos[: len([*run.glob("photos/*.png")])])

    yield events.Stage("load model")
    pipe, family = load_pipeline(model)
    pipe.to(device)
    use_fastest_attention(pipe, family, (resolution // pipe.vae_scale_factor) ** 2)
    for number, (key, class_folder) in enumerate(zip(keys, class_folders) if use_prior else (), 1):
        missing = len(prior.missing_images(class_folder, config.prior.num_images))
        if missing:
            yield events.Stage("class images", config.prior.num_images)
            for done in prior.draw_class_images(pipe, config, class_folder, key, dtype):
                yield events.Progress(done)
                if should_stop() and done < config.prior.num_images:
                    yield events.Cancelled(0)
                    return
        _point_to(run / ("class_images" if number == 1 else f"class_images-{number}"), class_folder)

    # -- prepare: what is trained, and every picture encoded once ----------------------------------------------------
    trainable = get_method(config.method).attach(pipe, family, config)  # it may teach the tokenizer a word
    sides = []
    for class_folder, prompt in zip(class_folders, config.class_prompts) if use_prior else ():
        sides.append((yield from known_classes(class_folder, prompt, config, precision, device)))
    yield events.Stage("encode", len(photos) + config.prior.num_images * sum(side.latents is None for side in sides))
    taught = [
        prompts_of_variants(text, p.mode == "RGBA", config, i) for i, (p, text) in enumerate(zip(photos, prompts))
    ]
    pictures = (photo_variants(photo, config, i) for i, photo in enumerate(photos))
    instance = yield from encode_photos(pipe, family, pictures, taught, dtype, 0, should_stop)
    encoded, done = [instance], len(photos)
    for side in sides:
        if encoded[-1] is not None:
            encoded.append((yield from encode_classes(pipe, family, side, config, dtype, done, should_stop)))
            done += config.prior.num_images * (side.latents is None)
    kinds = [kind for kind in encoded if kind is not None]
    if len(kinds) < len(encoded):
        yield events.Cancelled(0)
        return
    classes = Encoded.join(kinds[1:]) if use_prior else None
    batch_size, accumulation = settings.batch_size, settings.gradient_accumulation
    instance = replace(kinds[0], groups=groups, together=settings.side_by_side if len(photos) > sum(groups) else 0.0)
    dataset = DreamBoothDataset(instance, classes, config.seed, settings.steps * accumulation * batch_size)

    # -- prepare: with what it is trained ----------------------------------------------------------------------------
    AcceleratorState._reset_state(reset_partial_state=True)  # else a process keeps its first run's precision
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    objective = family.objective(pipe)
    store_frozen_in(dtype, trainable)
    _set_training(trainable, True)
    for module in trainable.modules.values() if estimate.gradient_checkpointing else ():
        enable_gradient_checkpointing(module)
    optimizer = accelerator.prepare(_optimizer(config, trainable.parameter_groups))
    schedule = get_scheduler(
        {"constant": "constant_with_warmup"}.get(settings.lr_schedule, settings.lr_schedule),
        optimizer.optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=settings.steps,
    )
    weights: list[Tensor] = [*trainable.parameters]
    ema = [p.detach().clone() for p in weights] if settings.ema_decay else None
    yield events.Metric("trainable_parameters", sum(p.numel() for p in weights), 0)
    text_trained = any(name in trainable.modules for name in family.text_encoders)
    conditioning = _conditioning(pipe, family, dataset, frozen=not text_trained)
    idle = ["vae", *(() if text_trained else family.text_encoders)]
    _move(pipe, idle, "cpu")  # what a step does not use makes room

    # -- resume ------------------------------------------------------------------------------------------------------
    checkpoint = Checkpoint(weights, optimizer.optimizer, schedule, accelerator.scaler, ema, fingerprint(model))
    if resume and (kept := list_checkpoints(run / "checkpoints")):
        checkpoint.load(kept[-1])
    for earlier in () if resume else ("checkpoints", "samples", "best", "model"):
        shutil.rmtree(run / earlier, ignore_errors=True)
    if monitor:
        monitor.forget_after(checkpoint.step if resume else -1)

    def sample(step: int) -> Generator[Event, None, bool]:
        """Draw the sample pictures, measure them, and keep the weights if they may turn out to be the best; whether it
        came to its end before it was told to stop."""
        _move(pipe, idle, device)
        _set_training(trainable, False)
        with _weights_of(ema, weights):
            pictures = yield from draw_samples(pipe, config, run, step, resolution, precision, should_stop)
            if monitor and pictures:
                yield from monitor.measure(step, pictures, device)
                if monitor.first == step and 0 < step < settings.steps:
                    save_best = checkpoint.to_save_best(run / "checkpoints")
                    yield from disk.write(partial(_silently, save_best))
        _set_training(trainable, True)
        _move(pipe, idle, "cpu")
        return bool(pictures)

    def is_sampling_step(step: int) -> bool:
        return settings.sample_every > 0 and (step % settings.sample_every == 0 or step == settings.steps)

    def is_sampled(step: int) -> bool:
        """Whether nothing of it was lost to a stop or a crash."""
        drawn = all(path.is_file() for path, _, _ in sample_jobs(config, run, step))
        return drawn and (monitor is None or monitor.knows(step))

    # -- loop --------------------------------------------------------------------------------------------------------
    yield events.Stage("train", settings.steps)
    if is_sampling_step(checkpoint.step) and not is_sampled(checkpoint.step):  # step 0 is what the base model draws
        whole = yield from sample(checkpoint.step)
        if not whole or should_stop():
            yield events.Cancelled(checkpoint.step)
            return
    saved_at = time.monotonic()
    overflows = 0  # in a row; only fp16 may have any
    done = checkpoint.step >= settings.steps or (monitor is not None and monitor.exhausted(checkpoint.step))
    while not done:
        # one step
        tick = time.monotonic()
        parts = []
        for micro in range(accumulation):
            number = checkpoint.step * accumulation + micro
            batch = dataset.batch(number, batch_size)
            x0, ids, mask = batch["instance_images"], batch["instance_prompt_ids"], batch["instance_masks"]
            noise, t = _noise_and_timesteps(x0, objective, config.seed, INSTANCE, number)
            if use_prior:  # one forward pass for both; the photos' noise is the same with and without
                x0 = torch.cat([x0, batch["class_images"]])
                ids = torch.cat([ids, batch["class_prompt_ids"]])
                mask = torch.cat([mask, batch["class_masks"]])
                class_noise, class_t = _noise_and_timesteps(
                    batch["class_images"], objective, config.seed, CLASS, number
                )
                noise, t = torch.cat([noise, class_noise]), torch.cat([t, class_t])
            x0, noise, t, mask = x0.to(device), noise.to(device), t.to(device), mask.to(device)
            if config.lora.dropout:  # it has no generator of its own
                torch.manual_seed(generator(config.seed, DROPOUT, number).initial_seed())
            with accelerator.autocast():
                prediction = family.predict(pipe, objective.add_noise(x0, noise, t), t, conditioning(ids))
            losses = objective.loss(prediction, x0, noise, t, settings.snr_gamma, mask)
            loss = dreambooth_loss(losses, batch_size, config.prior.weight)
            drift = trainable.drift() if trainable.drift else loss.total.new_zeros(())
            total = loss.total + config.drift.weight * drift
            accelerator.backward(total / accumulation)
            class_loss = total.new_zeros(()) if loss.prior is None else loss.prior
            parts.append(torch.stack([total, loss.instance, class_loss, drift]).detach())
        norm = accelerator.clip_grad_norm_(weights, settings.max_grad_norm)
        *figures, norm = torch.stack([*torch.stack(parts).mean(0), norm]).tolist()  # where a GPU is waited for, once
        if not math.isfinite(norm):  # then nothing is changed by it
            optimizer.zero_grad(set_to_none=True)
            overflows += 1
            if accelerator.scaler is None or overflows > MOST_OVERFLOWS:
                raise RunError(
                    f"The gradient is not finite at step {checkpoint.step + 1}, so the weights would be ruined.",
                    "Lower train.learning_rate, or set train.mixed_precision to no or bf16.",
                )
            accelerator.scaler.update()  # the same step again, at a lower scale of the loss
            continue
        overflows = 0
        lr, *text_lr = schedule.get_last_lr()  # the denoiser's, and the text side's where that is trained beside it
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        checkpoint.step = step = checkpoint.step + 1
        if ema is not None and settings.ema_decay:
            _update_average(ema, weights, settings.ema_decay, step)

        # report
        total, instance_loss, prior_loss, drift = figures
        yield events.Step(
            step,
            total,
            instance_loss,
            prior_loss if use_prior else None,
            lr,
            time.monotonic() - tick,
            drift if trainable.drift else None,
            *text_lr[:1],
        )
        if device.type == "cpu" and (threads := share_cores()):
            yield events.Metric("threads", threads, step)

        # sample, measure
        whole = True
        if is_sampling_step(step):
            whole = yield from sample(step)
        done = step == settings.steps or (monitor is not None and monitor.exhausted(step))

        # checkpoint, stop
        yield from disk.finished()
        stopping = not whole or (should_stop() and not done)  # pictures that are missing are drawn when it goes on
        late = time.monotonic() - saved_at > 60 * settings.checkpoint_minutes
        if stopping or ((step % settings.checkpoint_every == 0 or late) and not done):  # the last is the model itself
            save, saved_at = checkpoint.to_save(run / "checkpoints", settings.keep_checkpoints), time.monotonic()
            yield from disk.write(partial(_checkpoint, save, run, step))
        if stopping:
            yield from disk.wait()
            yield events.Cancelled(step)
            return

    # -- save --------------------------------------------------------------------------------------------------------
    yield events.Stage("save")
    yield from disk.wait()
    shutil.rmtree(run / "best", ignore_errors=True)
    best = monitor.best if monitor else None
    if best not in (None, checkpoint.step):  # else the last is the best
        held, snapshot = checkpoint.load_best(run / "checkpoints") or (None, None)
        if held == best:
            with _weights_of(snapshot, weights), atomic_folder(run / "best") as folder:
                save_trained(trainable, config, model, folder, best)
        else:
            yield events.Warning(f"Step {best} did best, but its weights are not kept; the model is the last step's.")
    with _weights_of(ema, weights), atomic_folder(run / "model") as folder:
        save_trained(trainable, config, model, folder, checkpoint.step)
        base = model if is_adapter(folder) else None
        load_model(folder, base)  # stock diffusers takes it, or this run has not finished
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # several times the model, and of no use from here on
    yield events.Metric("model_bytes", size, settings.steps)
    yield events.Metric("peak_memory_bytes", peak_memory(device), settings.steps)
    yield events.Finished("model", time.monotonic() - started)


def _has_ended(config: Config, run: Path) -> bool:
    """Whether the run has its model and, as it is then, no checkpoints; raises `RunError` where it is to go on after
    its end."""
    if not is_model(run / "model") or list_checkpoints(run / "checkpoints"):
        return False
    step, measures = read_step(run / "model"), read_measures(run)
    early = measures is not None and exhausted(measures, config.evaluation.patience, step or 0)
    if step is not None and step < config.train.steps and not early:
        raise RunError(
            f"This run ended at step {step} and kept no checkpoint to go on from.",
            f"For {config.train.steps} steps, train anew in another folder (--run-dir).",
        )
    return True


def _silently(save: Callable[[], object]) -> None:
    """Save what no event tells of."""
    save()


def _checkpoint(save: Callable[[], Path], run: Path, step: int) -> Event:
    """Write it, and tell when it is whole."""
    return events.Checkpoint(str(save().relative_to(run)), step)


def _point_to(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to the shared cache, or a text file with its path where links can't be made."""
    if link.is_symlink() or link.exists():
        link.unlink()
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:  # Windows without the right, and some network disks
        link.write_text(str(target), encoding="utf-8")


def _optimizer(config: Config, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    settings = config.train
    arguments: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **arguments)
    return torch.optim.AdamW(groups, **arguments, fused=True)


def _move(pipe: DiffusionPipeline, names: list[str], device: torch.device | str) -> None:
    for name in names:
        getattr(pipe, name).to(device)


def _set_training(trainable: Trainable, training: bool) -> None:
    """Turn dropout on, or off as pictures want it."""
    for module in trainable.modules.values():
        module.train(training)


def _noise_and_timesteps(
    x0: Tensor, objective: Diffusion, seed: int, stream: int, number: int
) -> tuple[Tensor, Tensor]:
    """ε like `x0` and timesteps (B,), from (seed, stream, batch number) alone."""
    g = generator(seed, stream, MAX_EXAMPLES + number)
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
    sides = [side.prompt_ids.flatten(0, 2) for side in (dataset.instance, dataset.prior) if side is not None]
    distinct = torch.cat(sides).unique(dim=0)
    with torch.no_grad():
        encoded = family.encode_text(pipe, distinct.to(device))
    rows = {tuple(row): i for i, row in enumerate(distinct.tolist())}

    def look_up(ids: Tensor) -> dict[str, Tensor]:
        where = torch.tensor([rows[tuple(row)] for row in ids.tolist()], device=device)
        return {name: value[where] for name, value in encoded.items()}

    return look_up


@torch.no_grad()
def _update_average(ema: list[Tensor], weights: list[Tensor], decay: float, step: int) -> None:
    """Move the average towards the weights; early steps count more, so that the start does not linger."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(ema, weights, 1 - decay)


@contextmanager
def _weights_of(ema: list[Tensor] | None, weights: list[Tensor]) -> Iterator[None]:
    """Inside the block the weights are the averaged ones, if there are any."""
    if ema is None:
        yield
        return
    pairs = list(zip(weights, ema, strict=True))
    for ours, theirs in pairs:
        ours.data, theirs.data = theirs.data, ours.data
    try:
        yield
    finally:
        for ours, theirs in pairs:
            ours.data, theirs.data = theirs.data, ours.data
