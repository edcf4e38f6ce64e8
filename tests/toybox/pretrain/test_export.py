"""What ships: plain diffusers and transformers load it, in float32, with the trained weights."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import AutoImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer, ViTModel

from dreambooth.models.fetch import TOYBOX_FOLDER
from dreambooth.toybox import world
from dreambooth.toybox.pretrain import export
from dreambooth.toybox.pretrain.base import new_base
from dreambooth.toybox.pretrain.data import load_pictures
from dreambooth.toybox.tokenizer import RARE_WORDS, build_tokenizer


@pytest.fixture(scope="module")
def images(trained):
    return [Image.fromarray(picture) for chunk in load_pictures(trained) for picture in chunk]


def test_files_are_small_and_name_no_folder_of_this_machine(exported, trained):
    files = [path for path in exported.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) == 5
    assert max(path.stat().st_size for path in files) <= 10e6
    for path in files:
        assert str(trained.parent).encode() not in path.read_bytes(), path


def test_stock_diffusers_loads_the_pipeline_with_the_last_decoder(exported, trained):
    pipe = StableDiffusionPipeline.from_pretrained(exported / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a photo of a dog", num_inference_steps=2).images[0].size == (128, 128)
    assert {p.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()} == {torch.float32}
    kept = torch.load(trained / "decoder.pt", weights_only=True)["ema"]["decoder.conv_out.weight"]
    assert torch.equal(pipe.vae.decoder.conv_out.weight, kept.half().float())


@torch.no_grad()
def test_clip_loads_as_the_public_ones_do_and_sees_the_same(exported, trained, images):
    folder = exported / "encoders" / "clip"
    processor, shipped = CLIPProcessor.from_pretrained(folder), CLIPModel.from_pretrained(folder)
    kept = CLIPModel.from_pretrained(trained / "clip")
    assert {p.dtype for p in shipped.parameters()} == {torch.float32}
    inputs = processor(text=["a photo of a dog", "a cat"], images=images[:3], padding=True, return_tensors="pt")
    assert inputs.pixel_values.shape == (3, 3, 64, 64)
    ours, theirs = shipped(**inputs), kept(**inputs)
    torch.testing.assert_close(ours.image_embeds, theirs.image_embeds, atol=5e-3, rtol=0)
    torch.testing.assert_close(ours.text_embeds, theirs.text_embeds, atol=5e-3, rtol=0)
    assert CLIPTokenizer.from_pretrained(folder).model_max_length == 24


@torch.no_grad()
def test_vit_loads_as_the_public_ones_do_and_sees_the_same(exported, trained, images):
    folder = exported / "encoders" / "vit"
    processor, shipped = AutoImageProcessor.from_pretrained(folder), ViTModel.from_pretrained(folder)
    kept = ViTModel.from_pretrained(trained / "vit", add_pooling_layer=False)
    assert {p.dtype for p in shipped.parameters()} == {torch.float32}
    pixels = processor(images[:3], return_tensors="pt").pixel_values
    assert pixels.shape == (3, 3, 64, 64)
    tokens = [model(pixels).last_hidden_state[:, 0] for model in (shipped, kept)]
    torch.testing.assert_close(*tokens, atol=2e-2, rtol=0)


def test_only_what_is_there_is_exported(tmp_path):
    export.export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unseen_words_get_embeddings_of_typical_length(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    torch.manual_seed(0)
    text_encoder = new_base(len(tokenizer))[1].requires_grad_(False)
    table = text_encoder.get_input_embeddings().weight
    seen = sorted(set(tokenizer(" ".join(world.vocabulary()), truncation=False).input_ids))
    table[seen] *= 5
    before = table.clone()
    export._lift_unseen_words(text_encoder, tokenizer)
    assert torch.equal(table[seen], before[seen])
    rare = tokenizer.convert_tokens_to_ids([word + "</w>" for word in RARE_WORDS])
    torch.testing.assert_close(table[rare].norm(dim=1), table[seen].norm(dim=1).median().expand(len(rare)))
    torch.testing.assert_close(
        table[rare] / table[rare].norm(dim=1, keepdim=True), before[rare] / before[rare].norm(dim=1, keepdim=True)
    )


def test_the_sample_subjects_that_ship_are_what_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SUBJECTS", {"cat": export.SUBJECTS["cat"]})
    export.save_subjects(tmp_path)
    for path in sorted((tmp_path / "cat").iterdir()):
        shipped = Image.open(TOYBOX_FOLDER.parent / "subjects" / "cat" / path.name)
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(shipped)), path.name
