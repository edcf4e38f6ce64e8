"""Base models: what is read of them, and that a missing or damaged one is told in one clear line."""

from __future__ import annotations

import errno
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from dreambooth.errors import ModelError
from dreambooth.families import family_of
from dreambooth.families.folder import loaded_files, name_plainly, what_helps
from dreambooth.families.load import load_pipeline, use_fastest_attention
from dreambooth.families.stable_diffusion import STABLE_DIFFUSION
from dreambooth.models.fetch import fetch_from_hub, fingerprint
from dreambooth.runs.directory import Run
from tests import tiny
from tests.models.test_fetch import repo_files

# ---- Loading


def test_the_family_is_found_by_the_pipeline_class(tiny_model, tmp_path):
    assert family_of(tiny_model) is STABLE_DIFFUSION
    for index, words in [
        ({"_class_name": "FluxPipeline"}, r"is a FluxPipeline. Supported: StableDiffusionPipeline."),
        ({}, "model_index.json can't be read"),
        ([], "model_index.json can't be read"),
    ]:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match=words):
            family_of(tmp_path)


def without(name):
    return lambda folder: (folder / name).unlink() if (folder / name).is_file() else shutil.rmtree(folder / name)


def with_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def without_weight(name, key):
    def damage(folder):
        state = load_file(folder / name)
        del state[key]
        save_file(state, folder / name, {"format": "pt"})

    return damage


def with_index(**changes):
    def damage(folder):
        file = folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def with_fact(name, **changes):
    def damage(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return damage


def pickled(folder):
    (folder / TEXT).unlink()
    nothing_that_weights_need = {"x": torch.zeros(100_000), "y": Path("x")}
    torch.save(nothing_that_weights_need, folder / "text_encoder" / "pytorch_model.bin")


def shards_of_elsewhere(folder):
    """Weights in several files are named by an index: here in the folder of another model."""
    shutil.move(folder / UNET, folder.parent / "diffusion_pytorch_model.safetensors")
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../diffusion_pytorch_model.safetensors"}}
    (folder / f"{UNET}.index.json").write_text(json.dumps(index))
    (folder / "unet" / "x.bin").write_bytes(b"x")


UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *((without(part), f"no {part} folder in it") for part in ("unet", "vae", "text_encoder", "tokenizer")),
        (without("scheduler"), "no scheduler folder in it"),
        (without("unet/config.json"), "config.json"),
        (without(UNET), "no weights in its unet folder"),
        (without(TEXT), "no weights in its text_encoder folder"),
        (without("tokenizer/tokenizer.json"), "no vocabulary in its tokenizer folder"),
        (with_bytes(UNET, half), "Unable to load weights"),
        (with_bytes(UNET, lambda _: b""), "Unable to load weights"),
        (with_bytes("vae/diffusion_pytorch_model.safetensors", half), "Unable to load weights"),
        (with_bytes(TEXT, half), "incomplete metadata"),
        (with_bytes("tokenizer/tokenizer.json", half), "can't be loaded"),
        (with_bytes("unet/config.json", half), "not a valid JSON file"),
        (with_bytes("unet/config.json", lambda b: b.replace(b"CrossAttnDown", b"NoSuch")), "does not exist"),
        (with_bytes("scheduler/scheduler_config.json", lambda _: b"{"), "not a valid JSON file"),
        (with_bytes("model_index.json", half), "model_index.json can't be read"),
        (with_bytes("model_index.json", lambda _: b"\xff\xfe"), "model_index.json can't be read"),
        (with_index(_class_name="StableDiffusionXLPipeline"), "is a StableDiffusionXLPipeline. Supported:"),
        (with_index(unet=["diffusers", "NoSuchModel"]), "NoSuchModel"),
        (with_index(unet=["nosuchlibrary", "Model"]), "nosuchlibrary"),
        (with_index(unet="x"), "can't be loaded"),
        (with_index(text_encoder=["transformers", "NoSuchModel"]), "NoSuchModel"),
        (with_index(image_encoder="x", safety_checker=True), "its safety checker is True"),
        (with_index(safety_checker=["diffusers", "DDIMScheduler"]), "its safety checker is ['diffusers', 'DDIM"),
        (with_index(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]), "no safety_checker folder"),
        (with_fact("scheduler/scheduler_config.json", num_train_timesteps=3e8), "num_train_timesteps is above 10,000"),
        (with_fact("scheduler/scheduler_config.json", trained_betas=[0.1] * 10_001), "has 10,001 entries"),
        (with_fact("text_encoder/config.json", vocab_size=10**7), "vocab_size is above 100,000"),
        (with_fact("text_encoder/config.json", vocab_size=99_999), "the text_encoder has 1,6"),
        (with_fact("text_encoder/config.json", hidden_size=9_000, num_attention_heads=9), "is above 1,280"),
        (with_fact("unet/config.json", block_out_channels=[8, 10**6]), "block_out_channels is above 10,000"),
        (with_fact("tokenizer/tokenizer_config.json", model_max_length=10**9), "model_max_length is above 10,000"),
        (with_bytes("vae/config.json", lambda _: b"[" * 10**5), "vae/config.json is not a valid JSON file"),
        (with_bytes("vae/config.json", lambda _: b"[" * 900 + b"]" * 900), "damaged"),
        (pickled, "can't be loaded: Weights only load failed"),
        (shards_of_elsewhere, "names files that are no weights of this model"),
        (lambda f: (f / "text_encoder" / "adapter_config.json").write_text("{}"), "is an adapter of another model"),
        (without("text_encoder/config.json"), "no config.json in its text_encoder folder"),
        (without("vae/config.json"), "no config.json in its vae folder"),
        (with_index(scheduler=["evil", "Evil"]), "can't be loaded"),
        (without_weight(UNET, "conv_in.weight"), "the unet lacks conv_in.weight"),
        (without_weight(TEXT, "final_layer_norm.weight"), "the text_encoder lacks"),
    ],
)
def test_a_damaged_model_is_told_in_one_line_and_never_half_random(tiny_model, tmp_path, damage, words):
    shutil.copytree(tiny_model, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(ModelError) as caught:
        load_pipeline(tmp_path / "damaged", safety_checker=True)
    said = str(caught.value)
    assert said.startswith("damaged")
    assert str(tmp_path) not in said
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_code_file_is_told_without_where_the_model_lies(hub, tiny_model):
    """The libraries name the folder, on the server, in what they say."""
    files = repo_files(tiny_model)
    index = json.loads(files["model_index.json"]) | {"scheduler": ["evil", "Evil"]}
    hub.add_repo("mona/evil", files | {"scheduler/evil.py": "x = 1", "model_index.json": json.dumps(index)})
    folder = fetch_from_hub("mona/evil", token=False)
    (folder / "scheduler" / "evil.py").write_text("x = 1")
    with pytest.raises(ModelError, match="mona/evil can't be loaded: ") as caught:
        load_pipeline(folder)
    assert str(hub.folder) not in str(caught.value)


def test_weights_that_the_memory_does_not_hold_are_not_loaded(tiny_model, monkeypatch):
    monkeypatch.setattr("dreambooth.families.load.available_memory", lambda device, **_: -1e12)
    with pytest.raises(ModelError, match=r"tiny-sd has 0\.0 GB of weights; .* of memory are free"):
        load_pipeline(tiny_model)


def test_a_model_whose_weights_lie_in_several_files_loads(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "shards")
    pipe, _ = load_pipeline(tiny_model)
    for path in (UNET, TEXT):
        (tmp_path / "shards" / path).unlink()
        part = path.split("/")[0]
        getattr(pipe, part).save_pretrained(tmp_path / "shards" / part, max_shard_size="10KB")
        assert len(list((tmp_path / "shards" / part).glob("*-of-*.safetensors"))) > 1
    ours, theirs = (load_pipeline(folder)[0].unet for folder in (tmp_path / "shards", tiny_model))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def in_halves(model: Path, folder: Path, parts=("unet", "vae", "text_encoder")) -> Path:
    """The model with these parts' weights in 16 bits, as such a variant is called."""
    shutil.copytree(model, folder)
    for file in [file for part in parts for file in (folder / part).glob("*.safetensors")]:
        halves = {key: value.half() for key, value in load_file(file).items()}
        save_file(halves, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})
        file.unlink()
    return folder


@pytest.mark.parametrize("parts", [("unet", "vae", "text_encoder"), ("unet",), ("text_encoder",)])
def test_a_model_that_is_there_in_16_bits_alone_is_loaded(tiny_model, tmp_path, parts):
    folder = in_halves(tiny_model, tmp_path / "half", parts)
    ours, theirs = load_pipeline(folder)[0], load_pipeline(tiny_model)[0]
    for part in ("unet", "vae", "text_encoder"):
        pairs = list(zip(getattr(ours, part).parameters(), getattr(theirs, part).parameters(), strict=True))
        assert all(a.dtype == torch.float32 for a, _ in pairs)
        assert all(torch.equal(a, b.half().float() if part in parts else b) for a, b in pairs)
    assert fingerprint(folder) != fingerprint(tiny_model)


def test_what_is_trained_from_16_bits_is_a_pipeline_of_the_usual_files(make_config, tiny_model, tmp_path):
    """Stock diffusers finds the parts that were not trained, too, which are the base model's files."""
    half = in_halves(tiny_model, tmp_path / "half")
    run = Run.create(make_config(base_model=str(half)), tmp_path / "run")
    list(run.execute())
    names = [path.name for path in (run.path / "model").rglob("*") if path.is_file()]
    assert not [name for name in names if "fp16" in name]
    pipe = StableDiffusionPipeline.from_pretrained(run.path / "model", safety_checker=None)
    assert torch.equal(pipe.vae.decoder.conv_in.weight, load_pipeline(half)[0].vae.decoder.conv_in.weight)


def test_shards_in_16_bits_get_the_usual_names_in_their_index_too(tmp_path):
    names = [f"model.fp16-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": {"a": names[0]}}))
    name_plainly(tmp_path)
    shards = [name.replace(".fp16", "") for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*shards, "model.safetensors.index.json"]
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"] == {"a": shards[0]}


def test_weights_in_32_bits_are_fetched_before_those_in_16():
    both = ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert loaded_files(STABLE_DIFFUSION, both) == both[:1]
    assert loaded_files(STABLE_DIFFUSION, both[1:]) == both[1:]
    shards = [f"vae/diffusion_pytorch_model.fp16-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert loaded_files(STABLE_DIFFUSION, shards) == shards


def test_an_index_of_a_variant_names_no_files_of_elsewhere_either(tiny_model, tmp_path):
    folder = in_halves(tiny_model, tmp_path / "half")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../secret.safetensors"}}))
    with pytest.raises(ModelError, match="names files that are no weights of this model"):
        load_pipeline(folder)


def test_a_pipeline_is_loaded_for_the_cpu_in_float32(tiny_model):
    pipe, family = load_pipeline(tiny_model)
    assert family is STABLE_DIFFUSION
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    assert {pipe.unet.device, pipe.vae.device, pipe.text_encoder.device} == {torch.device("cpu")}
    assert not any(part.training for part in (pipe.unet, pipe.vae, pipe.text_encoder))


# ---- What a family knows


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return load_pipeline(tiny_model)


def test_stable_diffusion_reads_its_facts_from_the_model(loaded, tiny_model):
    pipe, family = loaded
    assert family.resolution(tiny_model) == 32
    assert family.objective(pipe).prediction == "epsilon"
    assert torch.equal(family.objective(pipe).alphas_cumprod, pipe.scheduler.alphas_cumprod)


def test_prompts_are_padded_and_cut_to_the_models_length(loaded):
    pipe, family = loaded
    ids = family.tokenize(pipe, ["a photo of sks dog", "a dog " * 50, ""])
    assert ids.shape == (3, 16)
    assert ids.dtype == torch.int64
    assert ids[1, -1] == pipe.tokenizer.eos_token_id, "a cut prompt still ends"


def test_conditioning_is_what_the_pipeline_would_use(loaded):
    pipe, family = loaded
    prompts = ["a photo of sks dog", "a cat in the snow"]
    with torch.no_grad():
        ours = family.encode_text(pipe, family.tokenize(pipe, prompts))["encoder_hidden_states"]
        theirs, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
    assert torch.equal(ours, theirs)


def test_latents_are_the_scaled_posterior(loaded):
    pipe, family = loaded
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, std = family.encode_images(pipe, pixels)
        posterior = pipe.vae.encode(pixels).latent_dist
    assert mean.shape == std.shape == (2, 4, 8, 8)
    torch.testing.assert_close(mean, posterior.mode() * 0.18215)
    torch.testing.assert_close(std, posterior.std * 0.18215)


def test_the_faster_attention_predicts_the_same(tiny_model, loaded):
    pipe, family = load_pipeline(tiny_model)
    plain, _ = loaded
    use_fastest_attention(pipe, family, 64)
    noisy, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    with torch.no_grad():
        conditioning = family.encode_text(plain, family.tokenize(plain, ["a dog", "a cat"]))
        ours, theirs = (family.predict(p, noisy, t, conditioning) for p in (pipe, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_older_text_encoder_file_loads_its_weights(tiny_model, tmp_path):
    """transformers 4 wrote `text_model.` before each name; what generation saves keeps to that."""
    shutil.copytree(tiny_model, tmp_path / "old")
    file = tmp_path / "old" / TEXT
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    old, _ = load_pipeline(tmp_path / "old")
    new, _ = load_pipeline(tiny_model)
    assert all(torch.equal(a, b) for a, b in zip(old.text_encoder.parameters(), new.text_encoder.parameters()))


def test_two_models_share_no_weights(tmp_path, tiny_model):
    other = tiny.stable_diffusion(tmp_path / "other", seed=1)
    a, b = (load_pipeline(folder)[0] for folder in (tiny_model, other))
    assert not torch.equal(a.unet.conv_in.weight, b.unet.conv_in.weight)


def test_models_are_loaded_whole_by_several_threads_at_once(tiny_model):
    """diffusers and transformers swap PyTorch's own functions meanwhile, for every thread."""
    with ThreadPoolExecutor(3) as pool:
        for pipe, _ in pool.map(lambda _: load_pipeline(tiny_model), range(9)):
            assert not any(weight.is_meta for weight in (*pipe.unet.parameters(), *pipe.text_encoder.parameters()))
    assert not torch.nn.Linear(1, 1).weight.is_meta, "the swap is undone"


# ---- What helps


def a_note(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438354725\n"
    )


def a_dead_link(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("spoil", "helps"),
    [
        (a_note, r"unet/diffusion_pytorch_model\.safetensors is a note of Git LFS .*run `git lfs pull`"),
        (a_dead_link, r"vae/diffusion_pytorch_model\.safetensors is a link to a file that is not there"),
        (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b""), "safetensors is empty: download"),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\1" * 999),
            "Download or save it again",
        ),
    ],
    ids=["Git LFS", "link", "empty", "damaged"],
)
def test_what_is_wrong_with_a_model_is_told_apart(tiny_model, tmp_path, spoil, helps):
    shutil.copytree(tiny_model, tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        load_pipeline(tmp_path / "model")
    assert re.search(helps, caught.value.hint)


def test_a_file_that_is_not_there_is_no_link(tmp_path):
    assert what_helps(tmp_path / "model_index.json") == "model_index.json is not there: download the model again."


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (MemoryError(), "Free some memory"),
        (RuntimeError("CUDA out of memory."), "Free some memory"),
        (ImportError("requires the protobuf library"), "Install what it names"),
        (PermissionError(errno.EACCES, "Permission denied", "/models/sd/x"), "Get the right to it"),
        (ValueError("what it holds"), "Download or save it again."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_that_is_not_the_files_is_not_met_by_other_files(tiny_model, error, helps):
    assert what_helps(tiny_model, error).startswith(helps)
