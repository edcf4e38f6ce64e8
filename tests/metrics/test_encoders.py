"""DINO, CLIP and the perceptual distances: tiny random models in the files that are published, prepared by hand too."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
import types
import urllib.error
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer, ViTModel

from dreambooth.config.sections import EvaluationConfig
from dreambooth.errors import ConfigError, HubError, ModelError, PhotoError
from dreambooth.metrics import encoders
from dreambooth.metrics.encoders import Encoders, PatchDistance, embed_files, fetch_encoder, load_encoders
from dreambooth.photos import read as photos
from tests import pictures, tiny
from tests.models.test_fetch import closed_port, loopback_hub, point_client_at

PHOTOS = sorted((Path(encoders.__file__).parents[1] / "toybox" / "subjects").glob("*/*.png"))
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {
        "vits16": tiny.dino(root / "dino-vits16"),
        "vits8": tiny.dino(root / "dino-vits8", patch=8),
        "clip": tiny.clip(root / "clip-vit-base-patch32"),
    }


def load(folders: dict[str, Path], dino: str = "vits16", batch_size: int = 16) -> Encoders:
    settings = EvaluationConfig(
        dino=str(folders[dino]), clip=str(folders["clip"]), perceptual="toybox", batch_size=batch_size
    )
    return load_encoders(settings, "toybox", "cpu")


@pytest.fixture(scope="module")
def loaded(folders) -> Encoders:
    return load(folders)


class NoFloat64(TorchFunctionMode):
    """An Apple GPU's way with 64 bits: only what was moved to the CPU may have them."""

    def __init__(self):
        super().__init__()
        self.moved = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = (*args, *(kwargs or {}).values())
        wide = function is torch.Tensor.double or any(one is torch.float64 for one in given)
        if wide and not any(args[0] is tensor for tensor in self.moved if isinstance(args[0], torch.Tensor)):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.cpu:
            self.moved.append(result)
        return result


def test_nothing_is_in_64_bits_before_it_is_on_the_cpu(folders, images):
    """Apple's GPUs have no such numbers. Distances and embeddings; a training is in test_monitor."""
    with pytest.raises(TypeError, match="MPS"), NoFloat64():
        torch.ones(2).double().cpu()
    found = load(folders)
    same = [image.resize((64, 64)) for image in images]
    with NoFloat64():
        found.perceptual.distances([(same[0], same[1])])
        found.dino.embed(images)
        found.clip.embed(images)
        found.clip.embed_texts(["a dog"])


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Wide, tall, square, small and odd ones: real photos, cut to shapes of their own."""
    whole = [Image.open(path).convert("RGB") for path in PHOTOS[:5]]
    boxes = [(0, 10, 128, 100), (20, 0, 90, 128), (0, 0, 128, 128), (10, 10, 74, 60), (0, 0, 127, 111)]
    cut = [image.crop(box) for image, box in zip(whole, boxes, strict=True)]
    return [cut[0].resize((640, 451)), cut[1].resize((333, 609)), *cut[2:]]


def prepared(image: Image.Image, mean: tuple, std: tuple) -> np.ndarray:
    """(3, H, W) of a picture already of its size, by the definition."""
    return ((np.asarray(image, np.float64) / 255 - mean) / std).transpose(2, 0, 1)


def dino_pixels(image: Image.Image) -> np.ndarray:
    """What dino-vits16's preprocessor_config.json says: squeezed to 224 x 224, bilinear, ImageNet's mean and std."""
    return prepared(image.resize((224, 224), Image.Resampling.BILINEAR), *IMAGENET)


def clip_pixels(image: Image.Image) -> np.ndarray:
    """What CLIP's says: the short side to 224, bicubic, the middle cropped out, OpenAI's mean and std."""
    scale = 224 / min(image.size)
    width, height = (224 if side == min(image.size) else int(side * scale) for side in image.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return prepared(resized.crop((left, top, left + 224, top + 224)), *OPENAI)


def unit(rows: torch.Tensor) -> np.ndarray:
    rows = rows.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---- Preparation and embedding, against the models themselves


@pytest.mark.parametrize("name", ["vits16", "vits8"])
def test_dino_is_the_class_token_of_pictures_prepared_as_published(folders, images, name):
    dino = load(folders, name).dino
    ours = np.stack([dino_pixels(image) for image in images])
    theirs = AutoImageProcessor.from_pretrained(folders[name], backend="pil")(images, return_tensors="pt").pixel_values
    assert np.abs(dino.pixels(images).numpy() - ours).max() < 1e-5
    assert torch.equal(dino.pixels(images), theirs)
    raw = ViTModel.from_pretrained(folders[name], add_pooling_layer=False).eval()
    tokens = raw(torch.from_numpy(ours).float()).last_hidden_state
    assert tokens.shape == (5, (224 // raw.config.patch_size) ** 2 + 1, 24)
    found = dino.embed(images)
    assert (found.shape, found.dtype) == ((5, 24), np.float32)
    assert found == pytest.approx(unit(tokens[:, 0]), abs=1e-5)
    assert (dino.name, dino.model.pooler) == (folders[name].name, None)


def test_clip_sees_pictures_prepared_as_published(folders, loaded, images):
    ours = np.stack([clip_pixels(image) for image in images])
    processor = AutoImageProcessor.from_pretrained(folders["clip"], backend="pil")
    theirs = processor(images, return_tensors="pt").pixel_values
    assert np.abs(loaded.clip.pixels(images).numpy() - ours).max() < 1e-5
    assert torch.equal(loaded.clip.pixels(images), theirs)
    raw = CLIPModel.from_pretrained(folders["clip"]).eval()
    whole = raw(pixel_values=torch.from_numpy(ours).float(), input_ids=torch.tensor([[0, 1]]))
    assert loaded.clip.embed(images) == pytest.approx(unit(whole.image_embeds), abs=1e-5)


def test_clip_reads_texts_as_published(folders, loaded):
    """Of any length in any company: padding changes nothing, and what is too long is cut to CLIP's 77 tokens."""
    texts = ["a photo of sks dog", "a cat", "in the snow " * 60, ""]
    tokenizer = CLIPTokenizer.from_pretrained(folders["clip"])
    raw = CLIPModel.from_pretrained(folders["clip"]).eval()
    alone = []
    for text in texts:
        ids = tokenizer(text, truncation=True, return_tensors="pt").input_ids
        assert ids[0, -1] == tokenizer.eos_token_id == ids.max(), (
            "the old configuration finds the end by the highest id"
        )
        state = raw.text_model(ids).last_hidden_state[:, -1]
        alone.append(unit(raw.text_projection(state))[0])
    assert tokenizer(texts[2], truncation=True, return_tensors="pt").input_ids.shape == (1, 77)
    assert loaded.clip.embed_texts(texts) == pytest.approx(np.stack(alone), abs=1e-5)


def test_the_weights_are_those_of_the_file_under_their_published_names(folders, loaded):
    stored = torch.load(folders["vits16"] / "pytorch_model.bin", weights_only=True)
    held = list(loaded.dino.model.state_dict().values())
    for name in ("embeddings.cls_token", "encoder.layer.1.attention.attention.query.weight", "layernorm.bias"):
        assert any(tensor.shape == stored[name].shape and torch.equal(tensor, stored[name]) for tensor in held), name
    assert not any(parameter.requires_grad for parameter in loaded.dino.model.parameters())
    assert not loaded.clip.model.training


def test_pictures_do_not_depend_on_their_batch(folders, images, loaded):
    for kind in ("dino", "clip"):
        whole = getattr(loaded, kind).embed(images)
        one_by_one = getattr(load(folders, batch_size=1), kind).embed(images)
        pairwise = getattr(load(folders, batch_size=2), kind).embed(images)
        assert one_by_one == pytest.approx(whole, abs=1e-5)
        assert pairwise == pytest.approx(whole, abs=1e-5)


def test_other_modes_are_seen_as_rgb(loaded, images):
    grey = ImageOps.grayscale(images[0])
    assert np.array_equal(loaded.dino.embed([grey]), loaded.dino.embed([grey.convert("RGB")]))
    assert np.array_equal(loaded.clip.embed([grey]), loaded.clip.embed([grey.convert("RGB")]))


def test_half_weights_and_a_training_around_it_change_no_arithmetic(folders, tmp_path, images):
    """Weights kept in fp16 are computed in float32, and a training's bf16 autocast does not reach in."""
    half = shutil.copytree(folders["vits8"], tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, half / "model.safetensors", {"format": "pt"})
    rounded = shutil.copytree(half, tmp_path / "rounded")
    facts = (half / "config.json").read_text()
    (half / "config.json").write_text(facts.replace('"torch_dtype": "float32"', '"torch_dtype": "float16"'))
    save_file(
        {name: tensor.half().float() for name, tensor in weights.items()},
        rounded / "model.safetensors",
        {"format": "pt"},
    )
    first, second = (load(folders | {"vits8": folder}, "vits8") for folder in (half, rounded))
    assert first.dino.model.dtype == torch.float32
    expected = second.dino.embed(images)
    assert np.array_equal(first.dino.embed(images), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(first.dino.embed(images), expected)
        pair = [(images[2], images[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
        inside = first.perceptual.distances(pair)
    assert np.array_equal(inside, first.perceptual.distances(pair))


def test_a_gpus_shortened_floats_are_off_while_a_picture_is_looked_at(folders, images):
    """TF32 keeps 10 of 23 bits, and is on for convolutions unless told otherwise; the setting can be read anywhere."""
    looked, before = [], torch.backends.cudnn.allow_tf32
    dino = load(folders).dino
    dino.model.embeddings.register_forward_pre_hook(
        lambda *_: looked.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled))
    )
    dino.embed(images[2:3])
    assert looked == [(False, True)]
    assert torch.backends.cudnn.allow_tf32 == before


def test_weights_that_give_no_numbers_are_told(folders, images):
    broken = load(folders)
    broken.dino.model.layernorm.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="dino-vits16 gives no numbers"):
        broken.dino.embed(images)


# ---- The toybox's distance


def test_the_patch_distance_is_lpips_formula_in_loops(images):
    toybox = load_encoders(EvaluationConfig(batch_size=2), "toybox", "cpu")
    a, b, c = (image.resize((128, 128)) for image in images[:3])
    with torch.inference_mode():
        layers = toybox.dino.model(toybox.dino.pixels([a, b, c]), output_hidden_states=True).hidden_states
    assert len(layers) == toybox.dino.model.config.num_hidden_layers + 1, "the embedding, and each layer"

    def distance(left: int, right: int) -> float:
        total = 0.0
        for layer in layers[1:]:
            tokens, over = layer[:, 1:].double().numpy(), 0.0  # without the class token
            for x, y in zip(tokens[left], tokens[right], strict=True):
                over += float(((x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2).sum())
            total += over / tokens.shape[1]
        return total / (len(layers) - 1)

    found = toybox.perceptual.distances([(a, b), (a, c), (b, c), (a, a), (c, b)])
    expected = [distance(0, 1), distance(0, 2), distance(1, 2), 0, distance(2, 1)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found.dtype == np.float64
    assert 0 < found[0] < 4
    assert found[2] == pytest.approx(found[4], abs=1e-6), "the same both ways"


def test_pictures_of_different_sizes_are_refused(loaded, images):
    with pytest.raises(ValueError, match="128 x 128 and 640 x 451 pixels can't be compared"):
        loaded.perceptual.distances([(images[0], images[2])])
    assert loaded.perceptual.distances([]).shape == (0,)


# ---- LPIPS


class StandInLPIPS(torch.nn.Module):
    """A small module with the call that lpips 0.1.4 documents: (N, 3, H, W) twice in [-1, 1] to (N, 1, 1, 1)."""

    def __init__(self, pretrained=True, net="alex", version="0.1", lpips=True, spatial=False, verbose=True):
        super().__init__()
        assert (pretrained, net, version, lpips, spatial, verbose) == (True, "alex", "0.1", True, False, False)
        self.weight = torch.nn.Parameter(torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1))
        self.calls = []

    def forward(self, in0, in1, retPerLayer=False, normalize=False):  # noqa: N803
        assert (retPerLayer, normalize, in0.dtype, torch.is_grad_enabled()) == (False, False, torch.float32, False)
        assert in0.shape == in1.shape
        self.calls.append((in0, in1))
        return (self.weight * (in0 - in1) ** 2).sum(1, keepdim=True).mean((2, 3), keepdim=True)


@pytest.fixture
def with_lpips(monkeypatch):
    package = types.ModuleType("lpips")
    package.LPIPS = StandInLPIPS
    monkeypatch.setitem(sys.modules, "lpips", package)
    return package


def test_lpips_is_called_as_its_package_documents(with_lpips, images):
    """The wrapper alone: `lpips` itself needs torchvision and its weights, so a stand-in with its call is measured.

    That shows range, batches, pairing and order, and nothing of the figures that the real LPIPS would give.
    """
    found = load_encoders(EvaluationConfig(perceptual="lpips", batch_size=2), "toybox", "cpu")
    assert found.names["perceptual"] == "LPIPS 0.1 (AlexNet)"
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (20, 30, 3), np.uint8) for _ in range(4)]
    arrays[0][0, 0], arrays[0][0, 1] = 0, 255
    a, b, c, d = (Image.fromarray(array) for array in arrays)
    pairs = [(a, b), (a, c), (d, b), (c, c), (b, a)]
    distances = found.perceptual.distances(pairs)

    def distance(left: Image.Image, right: Image.Image) -> float:
        x, y = (np.asarray(image, np.float64) / 127.5 - 1 for image in (left, right))
        return float((((x - y) ** 2) * [0.5, 0.3, 0.2]).sum(2).mean())

    assert distances == pytest.approx([distance(*pair) for pair in pairs], abs=1e-5)
    assert (distances.shape, distances.dtype) == ((5,), np.float64)
    calls = found.perceptual.model.calls
    assert [len(left) for left, _ in calls] == [2, 2, 1]
    first = calls[0][0][0]
    assert first.shape == (3, 20, 30)
    assert (first[:, 0, 0].tolist(), first[:, 0, 1].tolist()) == ([-1] * 3, [1] * 3)
    with pytest.raises(ValueError, match="can't be compared"):
        found.perceptual.distances([(a, images[0])])


def test_lpips_is_asked_for_before_anything_is_loaded(tmp_path):
    assert importlib.util.find_spec("lpips") is None, "this test is of a machine without it"
    nothing = EvaluationConfig(dino=str(tmp_path / "no-dino"), clip="nobody/no-clip")
    for settings, base in ((nothing, "owner/model"), (EvaluationConfig(perceptual="lpips"), "toybox")):
        with pytest.raises(ConfigError) as caught:
            load_encoders(settings, base, "cpu")
        assert "pip install lpips torchvision" in str(caught.value)
        assert "No module named 'lpips'" in str(caught.value)
    with pytest.raises(ModelError, match="no-dino: no such folder"):
        load_encoders(nothing, "owner/model", "cpu", perceptual=False)


def test_a_torchvision_that_does_not_fit_is_told_as_such(monkeypatch, tmp_path):
    (tmp_path / "lpips.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="torchvision::nms does not exist"):
        load_encoders(EvaluationConfig(perceptual="lpips"), "toybox", "cpu")


def test_alexnet_that_can_not_be_downloaded_is_told(with_lpips):
    def unreachable(**_options):
        raise urllib.error.URLError("Name or service not known")

    with_lpips.LPIPS = unreachable
    with pytest.raises(HubError, match=r"LPIPS's AlexNet could not be downloaded or read: .*Name or service not known"):
        load_encoders(EvaluationConfig(perceptual="lpips"), "toybox", "cpu")


# ---- Which are loaded


def test_the_toybox_is_measured_by_its_own_and_says_so():
    found = load_encoders(EvaluationConfig(), "toybox", "cpu")
    assert found.names == {"dino": "toybox ViT", "clip": "toybox CLIP", "perceptual": "toybox ViT patch distance"}
    assert found.perceptual.dino is found.dino, "loaded once"
    assert found.to("cpu") is found
    without = load_encoders(EvaluationConfig(), "toybox", "cpu", perceptual=False)
    assert (without.perceptual, without.names) == (None, {"dino": "toybox ViT", "clip": "toybox CLIP"})


def test_encoders_can_be_mixed_and_are_named_without_paths(loaded):
    assert loaded.names == {
        "dino": "dino-vits16",
        "clip": "clip-vit-base-patch32",
        "perceptual": "toybox ViT patch distance",
    }
    assert isinstance(loaded.perceptual, PatchDistance)
    assert loaded.perceptual.dino.fingerprint != loaded.dino.fingerprint


def test_a_real_model_is_measured_by_the_public_ones():
    settings = EvaluationConfig(perceptual="toybox")
    with pytest.raises(HubError, match=r"facebook/dino-vits16 is not downloaded and the Hub can't be reached"):
        load_encoders(settings, "stable-diffusion-v1-5/stable-diffusion-v1-5", "cpu")
    with pytest.raises(HubError, match="openai/clip-vit-base-patch32 is not downloaded"):
        load_encoders(EvaluationConfig(dino="toybox", perceptual="toybox"), "owner/model", "cpu")


def test_dino_comes_from_the_hub_with_nothing_that_is_not_needed(folders, tmp_path, monkeypatch):
    """dino-vits16 has a pickle alone; dino-vits8 has both, and only the safe one is taken; then no Hub is needed."""
    for name, expected in (("vits16", "pytorch_model.bin"), ("vits8", "model.safetensors")):
        published = shutil.copytree(folders[name], tmp_path / name)
        for other in ("tf_model.h5", "README.md", ".gitattributes", "flax_model.msgpack"):
            (published / other).write_bytes(b"x" * 1000)
        repo = f"facebook/dino-{name}"
        with loopback_hub(published, tmp_path / "hub", monkeypatch, repo) as hub:
            settings = EvaluationConfig(dino=repo, clip="toybox", perceptual="toybox")
            found = load_encoders(settings, "owner/model", "cpu")
            assert sorted(hub.sent) == sorted(["config.json", "preprocessor_config.json", expected])
            hub.sent.clear()
            again = load_encoders(settings, "owner/model", "cpu")
            assert hub.sent == []
        point_client_at(closed_port(), tmp_path / "hub", monkeypatch)
        offline = load_encoders(settings, "owner/model", "cpu")
        assert found.dino.name == offline.dino.name == repo
        assert found.dino.fingerprint == again.dino.fingerprint == offline.dino.fingerprint
        local = load(folders, name)
        image = [Image.open(PHOTOS[0])]
        assert np.array_equal(found.dino.embed(image), local.dino.embed(image))
        assert found.dino.fingerprint == local.dino.fingerprint, "of the files, wherever they lie"


def test_clip_comes_from_the_hub_with_its_tokenizer(folders, tmp_path, monkeypatch):
    published = shutil.copytree(folders["clip"], tmp_path / "clip")
    (published / "tf_model.h5").write_bytes(b"x")
    with loopback_hub(published, tmp_path / "hub", monkeypatch, "openai/clip-vit-base-patch32") as hub:
        settings = EvaluationConfig(dino="toybox", perceptual="toybox")
        found = load_encoders(settings, "owner/model", "cpu")
    assert sorted(hub.sent) == [
        "config.json",
        "merges.txt",
        "preprocessor_config.json",
        "pytorch_model.bin",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    assert found.clip.name == "openai/clip-vit-base-patch32"
    assert found.clip.embed_texts(["a dog"]).shape == (1, 12)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("config.json", "lacks a file"),
        ("pytorch_model.bin", "lacks a file"),
        ("preprocessor_config.json", "can't be loaded"),
    ],
)
def test_a_repo_that_lacks_a_file_is_told(folders, tmp_path, monkeypatch, gone, words):
    published = shutil.copytree(folders["vits16"], tmp_path / "dino")
    (published / gone).unlink()
    with (
        loopback_hub(published, tmp_path / "hub", monkeypatch, "owner/dino"),
        pytest.raises(ModelError, match=f"owner/dino {words}") as caught,
    ):
        load_encoders(EvaluationConfig(dino="owner/dino"), "toybox", "cpu")
    assert "diffusers" not in str(caught.value)


def test_another_kind_of_model_is_refused_before_its_weights_are_downloaded(folders, tmp_path, monkeypatch):
    with (
        loopback_hub(folders["clip"], tmp_path / "hub", monkeypatch, "owner/clip") as hub,
        pytest.raises(
            ModelError, match=r"owner/clip is a clip\. Give a vision transformer such as facebook/dino-vits16"
        ),
    ):
        fetch_encoder("owner/clip", "vit")
    assert "pytorch_model.bin" not in hub.sent
    with pytest.raises(ModelError, match=r"dino-vits8 is a vit\. Give a CLIP such as openai/clip-vit-base-patch32"):
        fetch_encoder(str(folders["vits8"]), "clip")


@pytest.mark.parametrize("kind", ["vit", "clip"])
@pytest.mark.parametrize("source", ["nowhere", "./no/where", "a/b/c"])
def test_what_is_no_model_is_named(source, kind):
    with pytest.raises(ModelError, match="no such folder"):
        fetch_encoder(source, kind)


def test_a_folder_of_something_else_is_told(tiny_model):
    with pytest.raises(ModelError, match=r"config\.json can't be read") as caught:
        fetch_encoder(str(tiny_model), "vit")
    assert str(tiny_model) not in str(caught.value), "no path of this machine"


def without(name: str, tensor: str):
    def damage(folder: Path) -> None:
        weights = torch.load(folder / name, weights_only=True)
        del weights[tensor]
        torch.save(weights, folder / name)

    return damage


def cut(name: str):
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def absent(*names: str):
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def wider(folder: Path) -> None:
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"hidden_size": 32}))


DAMAGES = [
    ("vits16", cut("pytorch_model.bin")),
    ("vits8", cut("model.safetensors")),
    ("vits16", wider),
    ("vits16", absent("pytorch_model.bin")),
    ("vits16", absent("preprocessor_config.json")),
    ("vits16", cut("preprocessor_config.json")),
    ("vits16", without("pytorch_model.bin", "encoder.layer.1.output.dense.weight")),
    ("clip", without("pytorch_model.bin", "visual_projection.weight")),
    ("clip", absent("vocab.json", "tokenizer.json")),
    ("clip", cut("tokenizer.json")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_encoder_is_told_in_one_line_and_never_half_random(folders, tmp_path, name, damage):
    folder = shutil.copytree(folders[name], tmp_path / "hurt")
    damage(folder)
    settings = EvaluationConfig(**{"clip" if name == "clip" else "dino": str(folder)})
    with pytest.raises(ModelError, match=r"^hurt can't be loaded: ") as caught:
        load_encoders(settings, "toybox", "cpu")
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path.parent) not in caught.value.message, "no path of this machine"


def test_a_fingerprint_is_of_all_that_decides_an_embedding(folders, tmp_path):
    whole = load(folders).clip.fingerprint
    for name in ("config.json", "preprocessor_config.json", "vocab.json", "tokenizer.json"):
        folder = shutil.copytree(folders["clip"], tmp_path / name)
        (folder / name).write_text((folder / name).read_text() + "\n")
        assert load(folders | {"clip": folder}).clip.fingerprint != whole, name
    folder = tiny.clip(tmp_path / "other", seed=1)
    assert load(folders | {"clip": folder}).clip.fingerprint != whole
    folder = shutil.copytree(folders["clip"], tmp_path / "moved")
    (folder / "README.md").write_text("words")
    assert load(folders | {"clip": folder}).clip.fingerprint == whole


# ---- Files and their cache


class Counting:
    """An encoder that keeps count of what it is shown: the mean colour, scaled to unit length."""

    def __init__(self, batch_size: int = 4, fingerprint: str = "one", fail_after: int = 10**9):
        self.name, self.fingerprint, self.batch_size = "colours", fingerprint, batch_size
        self.shown, self.most_open, self.fail_after, self._seen = 0, 0, fail_after, []

    def embed(self, images):
        if self.shown >= self.fail_after:
            raise KeyboardInterrupt
        self._seen += [weakref.ref(image) for image in images]
        self.most_open = max(self.most_open, sum(ref() is not None for ref in self._seen))
        self.shown += len(images)
        colours = np.stack([np.asarray(image, np.float32).mean((0, 1)) + 1 for image in images])
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Thirty small pictures, each of a colour of its own."""
    folder = tmp_path / "images"
    folder.mkdir()
    return pictures.saved(folder, [Image.new("RGB", (8, 6), (8 * i, 255 - 5 * i, 90)) for i in range(30)])


def test_files_are_embedded_in_order_with_one_batch_open_at_a_time(files):
    encoder = Counting(batch_size=4)
    rows = embed_files(encoder, files)
    expected = Counting().embed([Image.open(path).convert("RGB") for path in files])
    assert np.array_equal(rows, expected)
    assert (encoder.shown, encoder.most_open) == (30, 4)


def test_real_files_are_embedded_as_their_pictures_are(loaded):
    opened = [Image.open(path).convert("RGB") for path in PHOTOS[:6]]
    assert embed_files(loaded.dino, PHOTOS[:6]) == pytest.approx(loaded.dino.embed(opened), abs=1e-6)


def test_what_was_embedded_is_not_looked_at_again(files, tmp_path):
    cache, encoder = tmp_path / "deep" / "colours.npz", Counting()
    first = embed_files(encoder, files[:20], cache)
    assert np.array_equal(embed_files(encoder, files[:20], cache), first)
    assert encoder.shown == 20
    both = embed_files(encoder, files, cache)
    assert encoder.shown == 30, "only the new ones"
    assert np.array_equal(both[:20], first)
    assert np.array_equal(embed_files(encoder, files[5:8][::-1], cache), both[5:8][::-1]), "in the order asked for"
    moved = shutil.copy(files[3], tmp_path / "elsewhere.png")
    assert np.array_equal(embed_files(encoder, [Path(moved)], cache), both[3:4])
    assert encoder.shown == 30
    assert [path.name for path in cache.parent.iterdir()] == ["colours.npz"], "nothing half-written beside it"


def test_a_changed_file_is_looked_at_again(files, tmp_path):
    cache, encoder = tmp_path / "c.npz", Counting()
    before = embed_files(encoder, files, cache)
    Image.new("RGB", (8, 6), (1, 2, 250)).save(files[7])
    after = embed_files(encoder, files, cache)
    assert encoder.shown == 31
    assert [i for i in range(30) if not np.array_equal(before[i], after[i])] == [7]


def test_another_encoder_makes_the_cache_anew(files, tmp_path):
    cache = tmp_path / "c.npz"
    embed_files(Counting(), files, cache)
    other = Counting(fingerprint="two")
    embed_files(other, files, cache)
    assert other.shown == 30


def test_equal_files_are_looked_at_once(files):
    encoder = Counting()
    rows = embed_files(encoder, [files[2], files[5], files[2]])
    assert encoder.shown == 2
    assert np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[1])


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "strange", "pickled", "not numbers"])
def test_a_damaged_cache_is_made_anew(files, tmp_path, damage):
    cache, encoder = tmp_path / "c.npz", Counting()
    rows = embed_files(encoder, files, cache)
    data = cache.read_bytes()
    with np.load(cache) as kept:
        whole = dict(kept)
    if damage == "strange":
        np.savez(cache, something=np.zeros(3))
    elif damage == "pickled":
        np.savez(cache, **whole | {"rows": np.array([{"a": 1}] * 30, object)})
    elif damage == "not numbers":
        np.savez(cache, **whole | {"rows": np.full_like(whole["rows"], np.nan)})
    else:
        flipped = bytearray(data)
        flipped[-len(data) // 2] ^= 0xFF
        hurt = {"empty": b"", "text": b"no cache", "cut": data[: len(data) // 2], "flipped": bytes(flipped)}[damage]
        cache.write_bytes(hurt)
    assert np.array_equal(embed_files(encoder, files, cache), rows)
    assert encoder.shown == 60
    assert np.array_equal(embed_files(encoder, files, cache), rows)
    assert encoder.shown == 60, "and whole again"


def test_an_interruption_keeps_what_was_done(files, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "SAVE_EVERY", 8)
    cache, stopped = tmp_path / "c.npz", Counting(fail_after=20)
    with pytest.raises(KeyboardInterrupt):
        embed_files(stopped, files, cache)
    again = Counting()
    embed_files(again, files, cache)
    assert again.shown == 30 - 16


def test_a_file_that_is_no_picture_is_named(files, tmp_path):
    files[3].write_text("words")
    with pytest.raises(PhotoError, match=r"3\.png holds text"):
        embed_files(Counting(), files)
    with pytest.raises(PhotoError, match=r"gone\.png can't be read"):
        embed_files(Counting(), [tmp_path / "gone.png"])


def test_small_pictures_can_be_measured_though_not_trained_on(tmp_path, loaded):
    path = pictures.saved(tmp_path, [Image.new("RGB", (32, 32), "teal")])
    with pytest.raises(PhotoError, match="too small"):
        photos.open_photo(path[0])
    assert embed_files(loaded.dino, path).shape == (1, 24)
