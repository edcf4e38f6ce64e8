"""From trained parts to what ships: fp16 folders that stock diffusers and transformers load, and the sample photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer, ViTImageProcessor, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dreambooth.methods.full import forget_paths, use_classic_names
from dreambooth.toybox import world
from dreambooth.toybox.pretrain.base import new_base, scheduler_config
from dreambooth.toybox.pretrain.data import SMALL
from dreambooth.toybox.tokenizer import build_tokenizer

BASES = ("anneal.pt", "base.pt")  # the first that is there ships


@torch.no_grad()
def _lift_unseen_words(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Scale the embeddings of words that no caption holds to the typical length of the others'.

    They keep their random direction, so they mean nothing yet; but at a fifth of the length (0.24 beside 1.2, measured)
    an identifier hardly changed what the encoder gives, and fine-tuning moved the whole class instead of the subject.
    """
    words = set(tokenizer(" ".join(world.vocabulary()), truncation=False).input_ids)
    seen = torch.tensor([i in words for i in range(len(tokenizer))])
    table = cast(nn.Embedding, text_encoder.get_input_embeddings()).weight
    lengths = table.norm(dim=1, keepdim=True)
    table[~seen] *= (lengths[seen].median() / lengths)[~seen]


def export(work: Path, out: Path) -> None:
    """Write into `out` what ships of the parts that are there: `model/`, the pipeline, and `encoders/`, clip and vit.

    Of the base model that is what was annealed last; before that, and while it is annealed, the latest moving average,
    so that it can be looked at.
    """
    if any((work / name).exists() for name in BASES):
        export_pipeline(work, out / "model")
    for name in ("clip", "vit"):
        if (work / name).exists():
            export_encoder(name, work, out / "encoders" / name)


def export_pipeline(work: Path, folder: Path) -> None:
    """Write the fp16 pipeline that plain `StableDiffusionPipeline.from_pretrained` loads."""
    tokenizer = build_tokenizer(work / "tokenizer")
    unet, text_encoder = new_base(len(tokenizer))
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    source = next(work / name for name in BASES if (work / name).exists())
    state = torch.load(source, map_location="cpu", weights_only=True)
    model.load_state_dict(state["ema"])
    _lift_unseen_words(text_encoder, tokenizer)
    vae = AutoencoderKL.from_pretrained(work / ("decoder" if (work / "decoder").exists() else "vae"))
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**scheduler_config()),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder)
    forget_paths(folder)
    shutil.copytree(work / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)  # with the classic files too
    use_classic_names(folder / "text_encoder" / "model.safetensors")
    _load_as_float32(folder / "text_encoder")
    print(f"exported {state['step']}/{state['steps']} steps of {source.name} to {folder}")


def export_encoder(name: str, work: Path, folder: Path) -> None:
    """Write an encoder in fp16 with its processor, in the file layout of the public ones."""
    kinds: dict[str, tuple[Any, Any]] = {"clip": (CLIPModel, CLIPImageProcessor), "vit": (ViTModel, ViTImageProcessor)}
    model, processor = kinds[name]
    options = {"add_pooling_layer": False} if name == "vit" else {}
    model.from_pretrained(work / name, **options).half().save_pretrained(folder)
    if name == "clip":
        processor(size={"shortest_edge": SMALL}, crop_size={"height": SMALL, "width": SMALL}).save_pretrained(folder)
        shutil.copytree(work / "tokenizer", folder, dirs_exist_ok=True)
    else:
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        processor(size={"height": SMALL, "width": SMALL}, image_mean=mean, image_std=std).save_pretrained(folder)
    _load_as_float32(folder)


def _load_as_float32(folder: Path) -> None:
    """transformers 5 takes the stored type for the wanted one, diffusers takes float32: both must load the same."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


SUBJECTS = {"backpack": 3, "bear": 22, "cat": 3, "robot": 2, "sneaker": 7, "teapot": 18}
"""The sample subjects that ship: identities counted from the first held-out one."""


def save_subjects(folder: Path) -> None:
    """Draw the sample subjects, five 256 px photos each in five contexts: `<class>/00.png` …"""
    for class_noun, number in SUBJECTS.items():
        (folder / class_noun).mkdir(parents=True, exist_ok=True)
        photos = world.sample_subject(class_noun, world.HELD_OUT_FROM + number, size=256)
        for i, (_, image) in enumerate(photos):
            image.save(folder / class_noun / f"{i:02d}.png", optimize=True)
