"""Training steps a second on toybox: our loop beside the plain one that scripts commonly use, in one process.

    python -m benchmarks.step_speed [--steps 30]

The plain loop does what diffusers' DreamBooth example does at its defaults on a CPU: each step encodes the batch's
pictures with the VAE and all its prompts with the text encoder, in 32 bits, and updates with unfused AdamW. The two
take turns, so that noise of the machine meets both.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from dreambooth import events
from dreambooth.config.settings import Config
from dreambooth.families.load import load_pipeline
from dreambooth.models.fetch import fetch_model
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs.directory import Run
from dreambooth.training.dataset import class_variants, photo_variants
from dreambooth.training.prior import class_images

SUBJECT = Path(__file__).parent.parent / "dreambooth" / "toybox" / "subjects" / "backpack"


def plain_loop(config: Config, run: Path):
    """Yield the seconds of each step of the plain loop, on the run's own photos and class images."""
    pipe, _ = load_pipeline(fetch_model(config.base_model))
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    from PIL import Image

    photos = [photo_variants(Image.open(p), config, i)[0] for i, p in enumerate(sorted((run / "photos").glob("*.png")))]
    classes = [class_variants(p, config)[0] for p in class_images(run / "class_images", config.prior.num_images)]
    b = config.train.batch_size
    pipe.vae.requires_grad_(False)
    modules = [pipe.unet.train(), pipe.text_encoder.train()]
    parameters = [p for m in modules for p in m.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.train.learning_rate, foreach=False)
    for step in itertools.count():
        tick = time.perf_counter()
        pick = [photos[(step * b + i) % len(photos)] for i in range(b)]
        pick += [classes[(step * b + i) % len(classes)] for i in range(b)]
        x0 = pipe.vae.encode(torch.stack(pick)).latent_dist.sample() * pipe.vae.config.scaling_factor
        prompts = [config.instance_prompt] * b + [config.class_prompt] * b
        ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (2 * b,))
        prediction = pipe.unet(scheduler.add_noise(x0, noise, t), t, pipe.text_encoder(ids)[0]).sample
        target = scheduler.get_velocity(x0, noise, t)
        ours, prior = (F.mse_loss(p, q) for p, q in zip(prediction.chunk(2), target.chunk(2)))
        (ours + prior).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield time.perf_counter() - tick


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    quiet_third_parties()
    settings = {"steps": steps, "sample_every": 0, "checkpoint_every": 10**6}
    subject = {"photos": str(SUBJECT), "class_noun": "backpack"}
    config = Config.from_dict({"base_model": "toybox", "device": "cpu", "subject": subject, "train": settings})
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(config, Path(folder) / "run")
        ours, theirs, plain = [], [], None
        for event in run.execute():
            if isinstance(event, events.Step):
                plain = plain or plain_loop(config, run.path)
                ours.append(event.seconds)
                theirs.append(next(plain))
    warm = steps // 5  # the first steps set up kernels
    a, b = statistics.median(ours[warm:]), statistics.median(theirs[warm:])
    print(f"ours {1 / a:.1f} steps/s, plain loop {1 / b:.1f} steps/s: {b / a:.2f} times as fast")


if __name__ == "__main__":
    main()
