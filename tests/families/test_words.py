"""New words of the vocabulary, and Textual Inversion, which trains nothing else."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dreambooth.config.sections import NEUTRAL_TEMPLATES
from dreambooth.errors import ConfigError, ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.families.words import Words, add_tokens, file_name, read_words
from dreambooth.models.adapters import load_model
from tests.methods import attached, claimed, distance, method_settings, pixels, trained

WORD = "learned_embeds.safetensors"


def state_of(pipe) -> dict[str, torch.Tensor]:
    """All numbers of a pipeline but its embedding layer's."""
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    state = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    return {key: value.clone() for key, value in state.items() if "token_embedding" not in key}


@pytest.mark.parametrize("vectors", [1, 3])
def test_steps_change_the_word_s_rows_and_nothing_else(vectors, make_config, tiny_model):
    """The known rows and every other weight of the pipeline stay as they were, bit by bit."""
    settings = method_settings("textual_inversion", word={"vectors": vectors})
    pipe, family, trainable = attached(make_config(**settings))
    base, _ = load_pipeline(tiny_model)
    known, before = base.text_encoder.get_input_embeddings().weight.detach(), state_of(pipe)
    words = pipe.text_encoder.get_input_embeddings()
    start = words.learned.detach().clone()
    assert [p.shape for p in trainable.parameters] == [(vectors, 16)]
    optimizer = torch.optim.AdamW(trainable.parameter_groups, lr=0.1)
    for step in range(3):
        ids = family.tokenize(pipe, ["a photo of <sks> dog"])
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        prediction = family.predict(pipe, noisy, torch.tensor([500]), family.encode_text(pipe, ids))
        prediction.square().mean().backward()
        optimizer.step()
    assert torch.equal(words.known.weight, known)
    after = state_of(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (words.learned - start).abs().amin() > 0, "each number of each vector has been trained"


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_loaded_word_leaves_the_base_as_it_is(vectors, make_config, tiny_model, tmp_path):
    trained(make_config(**method_settings("textual_inversion", word={"vectors": vectors})), tmp_path / "word")
    base, _ = load_pipeline(tiny_model)
    pipe, _ = load_model(tmp_path / "word", tiny_model)
    before, after = state_of(base), state_of(pipe)
    assert all(torch.equal(before[key], after[key]) for key in before)
    known = base.text_encoder.get_input_embeddings().weight
    rows = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(rows[: len(known)], known)
    assert torch.equal(rows[len(known) :], load_file(tmp_path / "word" / WORD)["<sks>"])
    assert distance(pixels(base, "a photo of a dog"), pixels(pipe, "a photo of a dog")) == 0


def test_the_layer_is_an_embedding_of_all_rows():
    """Its output and its gradient are those of one layer with the learned rows after the known ones."""
    known, learned = nn.Embedding(7, 4), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    known.requires_grad_(False)
    words, whole = Words(known, learned), nn.Embedding.from_pretrained(torch.cat([known.weight, learned]), freeze=False)
    ids = torch.tensor([[0, 7, 8, 7], [6, 1, 8, 8]])
    assert torch.equal(words(ids), whole(ids))
    for layer in (words, whole):
        (layer(ids) * torch.arange(4.0)).sum().backward()
    np.testing.assert_allclose(words.learned.grad, whole.weight.grad[7:])
    assert words.known.weight.grad is None


@pytest.mark.parametrize(("initializer", "known"), [("{class_noun}", ["dog"]), ("a photo", ["a", "photo"])])
def test_a_word_starts_from_the_mean_of_its_initializer(initializer, known, make_config, tiny_model):
    settings = method_settings("textual_inversion", word={"vectors": 2, "initializer": initializer})
    pipe, _, _ = attached(make_config(**settings))
    base, _ = load_pipeline(tiny_model)
    ids = [base.tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in known]
    mean = base.text_encoder.get_input_embeddings().weight.detach().double().numpy()[ids].mean(0)
    for row in pipe.text_encoder.get_input_embeddings().learned.detach().numpy():
        np.testing.assert_allclose(row, mean, rtol=1e-6)


def test_each_word_starts_from_its_own_initializer(make_config, photo_folder, tiny_model):
    more = {"photos": str(photo_folder), "identifier": "<ohwx>", "class_noun": "cat"}
    settings = method_settings("custom_diffusion", word={"initializer": ["a", "photo", "of"]}, more_subjects=[more])
    pipe, _, _ = attached(make_config(**settings))
    base, _ = load_pipeline(tiny_model)
    ids = base.tokenizer.convert_tokens_to_ids(["a</w>", "photo</w>"])
    known = base.text_encoder.get_input_embeddings().weight.detach()[ids]
    assert torch.equal(pipe.text_encoder.get_input_embeddings().learned.detach(), known)


def test_a_word_alone_is_taught_with_templates_and_not_with_its_class(make_config, photo_folder):
    """Each photo with each template, also side by side; a caption of one's own stays."""
    more = {"photos": str(photo_folder), "identifier": "<ohwx>", "class_noun": "cat"}
    settings = method_settings("textual_inversion", word={"templates": list(NEUTRAL_TEMPLATES)}, more_subjects=[more])
    config = make_config(**settings)
    assert len(config.word.templates) == 27
    dog = config.prompts_of("a photo of <sks> dog")
    assert dog[0] == "a photo of a <sks>"
    assert {p.count("<sks>") for p in dog} == {1}
    assert not any("dog" in p for p in dog)
    assert config.prompts_of("a photo of <ohwx> cat")[0] == "a photo of a <ohwx>"
    both = config.prompts_of("a photo of <ohwx> cat and <sks> dog")
    assert both[0] == "a photo of a <ohwx> and <sks>"
    assert config.prompts_of("my <sks> at home") == ("my <sks> at home",)
    off = make_config(**settings | {"word": {"templates": []}})
    assert off.prompts_of("a photo of <sks> dog") == ("a photo of <sks> dog",)
    for method in ("full", "lora", "custom_diffusion"):
        other = make_config(**method_settings(method))
        caption = other.instance_prompt
        assert other.prompts_of(caption) == (caption,)


def test_prompts_name_each_vector_of_each_word(make_config, photo_folder):
    more = {"photos": str(photo_folder), "identifier": "<ohwx>", "class_noun": "cat"}
    settings = method_settings("textual_inversion", word={"vectors": 3}, more_subjects=[more])
    pipe, family, trainable = attached(make_config(**settings))
    words = pipe.text_encoder.get_input_embeddings()
    first = words.known.num_embeddings
    dog, cat = list(range(first, first + 3)), list(range(first + 3, first + 6))
    (ids,) = family.tokenize(pipe, ["<sks> dog and <ohwx>, <sks>"])
    assert [i for i in ids.tolist() if i >= first] == dog + cat + dog
    assert trainable.parameters[0].shape == (6, 16)


def test_each_word_has_a_file_of_its_own_in_order(make_config, photo_folder, tmp_path):
    more = [{"photos": str(photo_folder), "identifier": f"<w{i}>", "class_noun": "cat"} for i in range(2)]
    trained(make_config(**method_settings("textual_inversion", more_subjects=more)), tmp_path / "words")
    assert [file_name(number) for number in (1, 2, 10)] == [WORD, *(f"learned_embeds-{n}.safetensors" for n in (2, 10))]
    assert list(load_file(tmp_path / "words" / file_name(3))) == ["<w1>"]
    save_file({"<w9>": torch.ones(1, 16)}, tmp_path / "words" / file_name(10))
    assert list(read_words(tmp_path / "words")) == ["<sks>", "<w0>", "<w1>", "<w9>"]


def test_a_word_has_no_weight(make_config, tiny_model, tmp_path):
    trained(make_config(**method_settings("textual_inversion")), tmp_path / "word")
    with pytest.raises(ConfigError, match=r"has no weight \(0.5 was"):
        load_model(tmp_path / "word", tiny_model, scale=0.5)


UNUSABLE = {
    "nothing": ({}, "holds no new word"),
    "two words": ({"<a>": torch.ones(1, 16), "<b>": torch.ones(1, 16)}, "holds no new word"),
    "a word of a language": ({"the": torch.ones(1, 16)}, "holds no new word"),
    "a list of numbers": ({"<sks>": torch.ones(16)}, "holds no new word"),
    "no vectors": ({"<sks>": torch.ones(0, 16)}, "holds no numbers"),
    "whole numbers": ({"<sks>": torch.ones(1, 16, dtype=torch.int64)}, "holds numbers of type int64"),
    "eight bits": ({"<sks>": torch.ones(1, 16).to(torch.float8_e5m2)}, "holds numbers of type float8_e5m2"),
    "half a byte": ({"<sks>": torch.ones(1, 8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "type float4_e2m1fn"),
    "no numbers": ({"<sks>": torch.full((1, 16), torch.inf)}, "not finite"),
    "another width": ({"<sks>": torch.ones(1, 8)}, "embeddings of 8 numbers; this base model's have 16"),
    "more than a prompt": ({"<sks>": torch.ones(16, 16)}, "Prompts can't hold the word <sks> with its 16 embeddings"),
    "more than a word": ({"<sks>": torch.ones(17, 16)}, "holds no new word's embeddings"),
    "another than it says": ({"<evil>": torch.ones(1, 16)}, "adapter.json names <sks>, but its files hold <evil>"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_damaged_or_foreign_file_is_told_of(what, tiny_model, tmp_path):
    state, words = UNUSABLE[what]
    save_file(state, claimed("textual_inversion", tiny_model, tmp_path / "word") / WORD)
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path / "word", tiny_model)


def test_a_file_that_is_none_is_told_of(tmp_path):
    for content in (b"", b"nonsense"):
        (tmp_path / WORD).write_bytes(content)
        with pytest.raises(ModelError, match=f"{WORD} can't be read") as told:
            read_words(tmp_path)
        assert str(tmp_path) not in str(told.value)


def test_one_word_twice_is_told_of(make_config, tiny_model, tmp_path):
    trained(make_config(**method_settings("textual_inversion")), tmp_path / "word")
    with pytest.raises(ModelError, match="word <sks> is in the model's vocabulary already"):
        load_model(tmp_path / "word", tiny_model, adapters=[(tmp_path / "word", 1.0)])
    save_file({"<sks>": torch.ones(1, 16)}, tmp_path / "word" / file_name(2))
    with pytest.raises(ModelError, match="holds no new word"):
        load_model(tmp_path / "word", tiny_model)
    tokenizer = load_pipeline(tiny_model)[0].tokenizer
    add_tokens(tokenizer, [("<sks>", 2)])
    with pytest.raises(ConfigError, match="word <sks> is in the model's vocabulary"):
        add_tokens(tokenizer, [("<sks>", 1)])
