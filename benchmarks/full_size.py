"""Stable Diffusion 1.5's architecture with random weights through the real command: does it fit, and was that foreseen?

    python -m benchmarks.full_size [--work DIR] [--resolution 256] [--steps 2]

Needs about 5 GB of disk for the model and 25 for the run's checkpoint and result, and 24 GiB of memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth.config.settings import Config

SUBJECT = Path(__file__).parent.parent / "dreambooth" / "toybox" / "subjects" / "backpack"


def build(folder: Path) -> None:
    """Save the pipeline: 860 M denoiser, 123 M text encoder, 84 M VAE (as SD 1.5's), and a tokenizer that spells."""
    torch.manual_seed(0)
    _pipeline().save_pretrained(folder)


def describe(folder: Path) -> Path:
    """Save the same pipeline without a weight: what a rehearsal needs. Returns its folder."""
    with torch.device("meta"):
        pipe = _pipeline()
    pipe.save_config(folder)
    for name in ("unet", "vae", "scheduler"):
        getattr(pipe, name).save_config(folder / name)
    pipe.text_encoder.config.save_pretrained(folder / "text_encoder")
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def _pipeline() -> StableDiffusionPipeline:
    alphabet = [chr(c) for c in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [f"word {number}" for number in range(len(words), 49408)]  # as many as CLIP's; text never comes to them
    tokenizer = CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=77)
    unet = UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
    )
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "sd15" / "model_index.json").is_file():
            build(work / "sd15")
        train = {"steps": args.steps, "resolution": args.resolution, "sample_every": 0, "checkpoint_every": 10**6}
        settings = {
            "base_model": str(work / "sd15"),
            "device": "cpu",
            "subject": {"photos": str(SUBJECT), "class_noun": "backpack"},
            "prior": {"num_images": 1, "steps": 2, "batch_size": 1},
            "train": train | {"mixed_precision": args.precision, "keep_checkpoints": 1},
        }
        (work / "config.yaml").write_text(Config.from_dict(settings).to_yaml())
        run = work / f"run-{time.time():.0f}"
        command = [sys.executable, "-m", "dreambooth", "train", str(work / "config.yaml"), "--run-dir", str(run)]
        started = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - started
        metrics = {
            e["name"]: e["value"] for e in map(json.loads, (run / "events.jsonl").open()) if e["event"] == "metric"
        }
        peak, estimate = metrics["peak_memory_bytes"], metrics["estimated_peak_memory_bytes"]
        print(f"{args.steps} steps at {args.resolution} px in {seconds:.0f} s, everything included")
        print(f"peak {peak / 2**30:.1f} GiB, estimated {estimate / 2**30:.1f} GiB ({estimate / peak - 1:+.0%})")


if __name__ == "__main__":
    main()
