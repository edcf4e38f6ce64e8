"""Trains the toybox base model from nothing, part by part: `python -m dreambooth.toybox.pretrain PART --work DIR`.

Parts, in order: `pictures` (render the world), `vae`, `latents` (encode every picture once), `base` (UNet and text
encoder), `export` (write the fp16 pipeline that ships), `subjects` (draw the sample subjects that ship). Each part
picks up where it was stopped, even by SIGKILL, and ends with the same weights as if it had not been: schedules count
samples, not time, and each step's randomness is drawn from (seed, step) alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dreambooth.toybox import world

SIZE = 128  # pixels; the latents are 16 × 16 (f = 8), so the UNet costs the same as at 64 px with f = 4
LATENT_CHANNELS = 12
CHUNK = 500  # pictures a file
CAPTIONS_PER_PICTURE = 4
TEXTURES = 3000
CHECKPOINT_SECONDS = 240


# ---------------------------------------------------------------------------------------------- one resumable training


class Ema:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = copy.deepcopy(module).requires_grad_(False).eval(), decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards `module`; the first steps count fully, so that the random start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)


def learning_rate(progress: float, peak: float, final: float, decay_from: float, warmup: float = 0.005) -> float:
    """Linear warm-up, constant, then cosine from `peak` to `final` over the last `1 - decay_from` of the samples."""
    if progress < decay_from:
        return peak * min(1.0, (progress + 1e-4) / warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (progress - decay_from) / (1 - decay_from)))


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[np.random.Generator, torch.Generator, float], Tensor],
    work: Path,
    *,
    samples: int,
    batch: int,
    lr: float,
    final_lr: float,
    decay_from: float,
    ema: float = 0.999,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.01,
    seed: int = 0,
) -> nn.Module:
    """Train `module` until it has seen `samples` examples and return its moving average.

    `loss(numpy rng, torch rng, progress)` gives one batch's scalar loss. The checkpoint `<name>.pt` is written every
    few minutes; `<name>-constant.pt`, written where the decay begins, is where a later call with more samples goes on.
    """
    device = next(module.parameters()).device
    averaged = Ema(module, ema)
    matrices = [p for p in module.parameters() if p.ndim >= 2 and p.shape[0] != _vocabulary_rows(module)]
    taken = {id(p) for p in matrices}
    others = [p for p in module.parameters() if id(p) not in taken]  # rare words' rows must not decay to zero
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, foreach=True)
    steps, step = samples // batch, 0
    latest, constant = work / f"{name}.pt", work / f"{name}-constant.pt"
    for path in (latest, constant):
        if path.exists():
            state = torch.load(path, map_location=device, weights_only=True)
            if path == latest and state["steps"] != steps and state["step"] > decay_from * state["steps"]:
                continue  # it decayed towards another end; go on from before its decay
            module.load_state_dict(state["module"])
            averaged.module.load_state_dict(state["ema"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
            break

    def save(path: Path) -> None:
        state = {"module": module.state_dict(), "ema": averaged.module.state_dict()}
        state |= {"optimizer": optimizer.state_dict(), "step": step, "steps": steps}
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    since = saved = time.monotonic()
    counted, total = 0, 0.0
    while step < steps:
        numpy_rng = np.random.default_rng([seed, step])
        torch_rng = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / steps, lr, final_lr, decay_from)
        value = loss(numpy_rng, torch_rng, step / steps)
        value.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise RuntimeError(
                f"{name}: the gradient is not finite at step {step}; go on from {latest} with a lower lr"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        averaged.update(module, step)
        total += value.item()
        counted += 1
        if step % 200 == 0 or step == steps:
            speed = counted * batch / (time.monotonic() - since)
            left = (steps - step) * batch / speed / 60
            mean = total / counted
            print(f"{name} {step}/{steps} loss {mean:.4f} {speed:.0f} samples/s, {left:.0f} min left", flush=True)
            since, counted, total = time.monotonic(), 0, 0.0
        if step == int(decay_from * steps):
            save(constant)
        if time.monotonic() - saved > CHECKPOINT_SECONDS or step == steps:
            save(latest)
            saved = time.monotonic()
    return averaged.module


def _vocabulary_rows(module: nn.Module) -> int:
    embeddings = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    return max((m.num_embeddings for m in embeddings), default=-1)


# ------------------------------------------------------------------------------------------------ pictures, captions


def _scene(index: int, seed: int) -> tuple[world.Scene, list[str]]:
    rng = np.random.default_rng([seed, index])
    scene = world.random_scene(rng)
    return scene, [world.caption(scene, rng) for _ in range(CAPTIONS_PER_PICTURE)]


def _render_chunk(job: tuple[Path, int, int]) -> None:
    folder, chunk, seed = job
    pixels = np.empty((CHUNK, SIZE, SIZE, 3), np.uint8)
    captions = []
    for i in range(CHUNK):
        scene, texts = _scene(chunk * CHUNK + i, seed)
        pixels[i] = np.asarray(world.render(scene, SIZE))
        captions.append(texts)
    (folder / f"{chunk:05d}.json").write_text(json.dumps(captions))
    np.save(folder / f"{chunk:05d}.tmp.npy", pixels)
    os.replace(folder / f"{chunk:05d}.tmp.npy", folder / f"{chunk:05d}.npy")


def render_pictures(work: Path, count: int, seed: int = 0, processes: int | None = None) -> None:
    """Render the first `count` scenes, (CHUNK, 128, 128, 3) uint8 a file, with captions; skip the files there are."""
    folder = work / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(math.ceil(count / CHUNK)) if not (folder / f"{i:05d}.npy").exists()]
    with multiprocessing.Pool(processes) as pool:
        jobs = [(folder, i, seed) for i in missing]
        for done, _ in enumerate(pool.imap_unordered(_render_chunk, jobs), 1):
            print(f"pictures {done * CHUNK}/{len(missing) * CHUNK}", flush=True)


def load_pictures(work: Path) -> list[np.ndarray]:
    """The rendered chunks, each (CHUNK, 128, 128, 3) uint8, mapped from disk."""
    return [np.load(path, mmap_mode="r") for path in sorted((work / "pictures").glob("?????.npy"))]


# ---------------------------------------------------------------------------------------------------------------- VAE


def new_vae() -> nn.Module:
    """A stock `AutoencoderKL`, f = 8, 1.7 M parameters, for 128 px."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64, 96), latent_channels=LATENT_CHANNELS, layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False, sample_size=SIZE, scaling_factor=1.0,
    )  # fmt: skip
    with torch.no_grad():  # start almost noiseless: the KL term finds the noise that costs nothing
        vae.quant_conv.bias[LATENT_CHANNELS:] -= 4.0
    return vae


def _augment(crops: Tensor, rng: torch.Generator) -> Tensor:
    """Strong colour changes for half of the (B, 3, h, w) crops in [-1, 1], so that real photos' colours are met too."""
    b = crops.shape[0]
    draw = torch.rand(b, 8, 1, 1, generator=rng, device=crops.device)
    gain = 0.6 + 0.8 * draw[:, 0:3]
    shift = 0.5 * (draw[:, 3:6] - 0.5)
    changed = (crops * gain + shift).clamp(-1, 1)
    grey = changed.mean(1, keepdim=True)
    changed = torch.lerp(grey.expand_as(changed), changed, draw[:, 6:7] * 1.4).clamp(-1, 1)
    return torch.where(draw[:, 7:8] < 0.5, changed, crops)


def _reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 + ½ · L1 of the image gradients + MSE, over (B, 3, h, w)."""
    error = out - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * edges + error.square().mean()


def train_vae(work: Path, samples: int, device: torch.device, crop: int = 64, batch: int = 16) -> nn.Module:
    """Train the autoencoder on crops of renders and, for a third of the batch, textures; then the decoder alone.

    The last fifth freezes the encoder: the decoder gets finer while the latents that the UNet learns stay the same.
    """
    pictures = load_pictures(work)
    texture_file = work / "textures.npy"
    if not texture_file.exists():
        rng = np.random.default_rng(77)
        np.save(texture_file, np.stack([np.asarray(world.texture(rng, SIZE)) for _ in range(TEXTURES)]))
    textures = np.load(texture_file, mmap_mode="r")
    torch.manual_seed(0)
    vae = new_vae().to(device)
    encoder_parts = [vae.encoder, vae.quant_conv]

    def loss(numpy_rng, torch_rng, progress):
        crops = np.empty((batch, crop, crop, 3), np.uint8)
        for i in range(batch):
            chunk = textures if i % 3 == 0 else pictures[numpy_rng.integers(len(pictures))]
            y, x = numpy_rng.integers(SIZE - crop + 1, size=2)
            crops[i] = chunk[numpy_rng.integers(len(chunk)), y : y + crop, x : x + crop]
            if numpy_rng.random() < 0.5:
                crops[i] = crops[i, :, ::-1]
        pixels = _augment(to_pixels(crops, device), torch_rng)
        frozen = progress >= 0.8
        for part in encoder_parts:
            part.requires_grad_(not frozen)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=torch_rng, device=device)
            out = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return _reconstruction_loss(out.float(), pixels) + (0 if frozen else 3e-4 * kl)

    settings = dict(samples=samples, batch=batch, lr=2e-3, final_lr=2e-5, decay_from=0.3, weight_decay=0.0)
    trained = fit("vae", vae, loss, work, **settings)
    _standardise_latents(trained, pictures, device)
    trained.save_pretrained(work / "vae")
    return trained


@torch.no_grad()
def _standardise_latents(vae: nn.Module, pictures: list[np.ndarray], device: torch.device) -> None:
    """Fold zero mean and unit variance per latent channel into the 1 × 1 convolutions: the scaling factor is 1."""
    total = len(pictures) * CHUNK
    chosen = np.linspace(0, total - 1, min(total, 1500)).astype(int)
    parts = np.array_split(np.stack([pictures[i // CHUNK][i % CHUNK] for i in chosen]), -(-len(chosen) // 32))
    latents = torch.cat([vae.encode(to_pixels(part, device)).latent_dist.mean for part in parts])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, back, c = vae.quant_conv, vae.post_quant_conv, LATENT_CHANNELS
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std.view(1, c, 1, 1)
    into.weight[:c] /= std.view(c, 1, 1, 1)
    into.bias[:c] = (into.bias[:c] - mean) / std
    into.bias[c:] -= 2 * std.log()  # the posterior's log-variance scales along


def to_pixels(images: np.ndarray, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_latents(work: Path, device: torch.device) -> None:
    """Encode every picture once: `latents.npy`, (N, 12, 16, 16) float16 posterior means."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(work / "vae").to(device).eval()
    done = []
    pictures = load_pictures(work)
    for i, chunk in enumerate(pictures):
        with torch.autocast(device.type, torch.bfloat16):
            parts = [vae.encode(to_pixels(part, device)).latent_dist.mean for part in np.array_split(chunk, 10)]
        done.append(torch.cat(parts).half().cpu().numpy())
        print(f"latents {i + 1}/{len(pictures)}", flush=True)
    np.save(work / "latents.tmp.npy", np.concatenate(done))
    os.replace(work / "latents.tmp.npy", work / "latents.npy")


# -------------------------------------------------------------------------------------------- UNet and text encoder


def scheduler_config() -> dict:
    """SD's schedule made noisier and rescaled to zero terminal SNR (Lin et al., arXiv 2305.08891), v-prediction.

    SD's own leaves a signal of 0.068 at the last timestep. Averaged over 16 × 16 latents that tells training the
    picture's mean colour, which sampling from pure noise does not have: the study's contexts came out grey from it.
    """
    return dict(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.02,
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=True, steps_offset=1,
    )  # fmt: skip


def new_base(vocabulary_size: int) -> tuple[nn.Module, nn.Module]:
    """A stock UNet (4.2 M parameters) and CLIP text encoder (0.7 M), freshly initialised."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from dreambooth.toybox.tokenizer import MAX_LENGTH

    unet = UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=1,
        block_out_channels=(48, 96, 128), norm_num_groups=16, cross_attention_dim=128, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    config = CLIPTextConfig(
        vocab_size=vocabulary_size, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=128,
    )  # fmt: skip
    return unet, CLIPTextModel(config)


def train_base(work: Path, samples: int, device: torch.device, batch: int = 32) -> None:
    """Train UNet and text encoder together on cached latents: v-prediction, 10 % caption dropout, stratified t."""
    from diffusers import DDIMScheduler
    from diffusers.models.attention_processor import AttnProcessor

    from dreambooth.toybox.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(work / "tokenizer")
    latents = torch.from_numpy(np.load(work / "latents.npy"))
    texts = [
        text for f in sorted((work / "pictures").glob("*.json")) for row in json.loads(f.read_text()) for text in row
    ]
    ids = tokenizer([*texts, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids.short()
    captions, empty = ids[:-1].view(-1, CAPTIONS_PER_PICTURE, ids.shape[1])[: len(latents)], ids[-1]

    torch.manual_seed(0)
    unet, text_encoder = new_base(len(tokenizer))
    unet.set_attn_processor(AttnProcessor())  # 20–30 % faster than SDPA at these sizes on a CPU (measured)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(device)
    alphas = DDIMScheduler(**scheduler_config()).alphas_cumprod.to(device)

    def loss(numpy_rng, torch_rng, progress):
        rows = torch.from_numpy(numpy_rng.integers(len(latents), size=batch))
        x0 = latents[rows].to(device).float()
        chosen = captions[rows, torch.from_numpy(numpy_rng.integers(CAPTIONS_PER_PICTURE, size=batch))]
        dropped = torch.from_numpy(numpy_rng.random(batch) < 0.1)
        tokens = torch.where(dropped[:, None], empty, chosen).long().to(device)
        # Stratified: one number from each of `batch` equal slices, so that every batch sees all noise levels.
        u = (torch.arange(batch, device=device) + torch.rand(batch, generator=torch_rng, device=device)) / batch
        t = _timesteps(u)
        noise = torch.randn(x0.shape, generator=torch_rng, device=device)
        a, s = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            hidden = text_encoder(tokens).last_hidden_state
            v = unet(a * x0 + s * noise, t, hidden).sample
        return F.mse_loss(v.float(), a * noise - s * x0)

    settings = dict(samples=samples, batch=batch, lr=1e-3, final_lr=2e-5, decay_from=0.55)
    trained = fit("base", model, loss, work, **settings)
    trained["unet"].save_pretrained(work / "unet")
    trained["text_encoder"].save_pretrained(work / "text_encoder")


def _timesteps(u: Tensor) -> Tensor:
    """Timesteps for uniform `u` in [0, 1): 70 % of them from 375 to 775 (SNR 0.56 to 0.008), where shapes are decided.

    With all equally often, a model of 135,000 examples had learnt every place and not one class.
    """
    below, middle = 0.1875, 0.70
    return torch.where(
        u < below,
        u / below * 375,
        torch.where(
            u < below + middle,
            375 + (u - below) / middle * 400,
            775 + (u - below - middle) / (1 - below - middle) * 225,
        ),
    ).long()


# ------------------------------------------------------------------------------------------------------------- export


@torch.no_grad()
def _lift_unseen_words(text_encoder: nn.Module, tokenizer: CLIPTokenizer) -> None:
    """Scale the embeddings of words that no caption holds to the typical length of the others'.

    They keep their random direction, so they mean nothing yet; but at a fifth of the length (0.24 beside 1.2, measured)
    an identifier hardly changed what the encoder gives, and fine-tuning moved the whole class instead of the subject.
    """
    words = set(tokenizer(" ".join(world.vocabulary()), truncation=False).input_ids)
    seen = torch.tensor([i in words for i in range(len(tokenizer))])
    table = text_encoder.get_input_embeddings().weight
    lengths = table.norm(dim=1, keepdim=True)
    table[~seen] *= (lengths[seen].median() / lengths)[~seen]


def export(work: Path, folder: Path) -> None:
    """Write the fp16 pipeline that plain `StableDiffusionPipeline.from_pretrained` loads, from the trained parts.

    Before `base` has finished, its latest moving average is exported, so that a first version can be looked at.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    from dreambooth.methods.full import forget_paths, use_classic_names
    from dreambooth.toybox.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(work / "tokenizer")
    unet, text_encoder = new_base(len(tokenizer))
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    state = torch.load(work / "base.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["ema"])
    _lift_unseen_words(text_encoder, tokenizer)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"), unet=unet, text_encoder=text_encoder, tokenizer=tokenizer,
        scheduler=DDIMScheduler(**scheduler_config()), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(folder)
    forget_paths(folder)
    build_tokenizer(folder / "tokenizer")  # with the classic files too
    use_classic_names(folder / "text_encoder" / "model.safetensors")
    # transformers 5 takes the stored type for the wanted one, diffusers takes float32: both must load the same.
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    print(f"exported {state['step']}/{state['steps']} steps to {folder}")


SUBJECTS = {"backpack": 3, "bear": 22, "cat": 3, "robot": 2, "sneaker": 7, "teapot": 18}
"""The sample subjects that ship: identities counted from the first held-out one."""


def save_subjects(folder: Path) -> None:
    """Draw the sample subjects, five 256 px photos each in five contexts: `<class>/00.png` …"""
    for class_noun, number in SUBJECTS.items():
        (folder / class_noun).mkdir(parents=True, exist_ok=True)
        photos = world.sample_subject(class_noun, world.HELD_OUT_FROM + number, size=256)
        for i, (_, image) in enumerate(photos):
            image.save(folder / class_noun / f"{i:02d}.png", optimize=True)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(prog="python -m dreambooth.toybox.pretrain", description=__doc__)
    parser.add_argument("part", choices=["pictures", "vae", "latents", "base", "export", "subjects"])
    parser.add_argument("--work", type=Path, default=Path(".toybox-build"), help="where pictures and checkpoints lie")
    parser.add_argument("--pictures", type=int, default=40_000, help="how many pictures to render")
    parser.add_argument("--samples", type=int, help="examples to see (default: vae 400,000; base 1,100,000)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where export and subjects write")
    args = parser.parse_args()
    device = torch.device(args.device)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.part == "pictures":
        render_pictures(args.work, args.pictures)
    elif args.part == "vae":
        train_vae(args.work, args.samples or 400_000, device)
    elif args.part == "latents":
        encode_latents(args.work, device)
    elif args.part == "base":
        train_base(args.work, args.samples or 1_100_000, device)
    elif args.part == "export":
        export(args.work, args.out / "model")
    else:
        save_subjects(args.out / "subjects")


if __name__ == "__main__":
    main()
