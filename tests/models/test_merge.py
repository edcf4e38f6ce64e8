"""Merging subjects that Custom Diffusion learned apart: the formula, the adapter that comes of it, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from dreambooth.config.sections import MOST_SUBJECTS
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.families.words import read_words, write_words
from dreambooth.generate import draw, find_model
from dreambooth.methods.custom_diffusion import FILE, projections, read_weights, save_weights
from dreambooth.models.adapters import load_model, read_adapter, write_adapter
from dreambooth.models.merge import (
    RIDGE,
    Part,
    check_told_apart,
    constrained,
    directions,
    merge,
    ordinary_captions,
    part_of,
)
from dreambooth.runs.directory import Run
from dreambooth.toybox.world import vocabulary
from tests import tiny
from tests.methods import claimed

WIDTH, OUT, NAMED = 12, 7, 5
PROMPT = "a photo of <a> dog and <b> cat"
CAPTIONS = [
    f"a {word} of the {other} in a {third}"
    for word in tiny.WORDS
    for other in tiny.WORDS[:3]
    for third in ("dog", "hat", "snow")
]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def problem():
    """Base projection, the words' features, what they should give, and ordinary captions' features."""
    shapes = (OUT, WIDTH), (NAMED, WIDTH), (OUT, NAMED), (90, WIDTH)
    return [random(*shape, seed=seed) for seed, shape in enumerate(shapes, 1)]


def solved(problem, ridge: float = RIDGE) -> torch.Tensor:
    base, words, values, captions = problem
    return constrained(base, words, values, directions(words, second_moment(captions), ridge))


def second_moment(captions: torch.Tensor) -> torch.Tensor:
    return captions.T @ captions / len(captions)


@pytest.fixture(scope="module")
def trained(tiny_model, photo_folder, tmp_path_factory):
    """Two runs of custom_diffusion, <a> dog and <b> cat, and their base model's folder."""
    folder, runs = tmp_path_factory.mktemp("apart"), []
    for word, noun, seed in (("<a>", "dog", 1), ("<b>", "cat", 2)):
        config = Config.from_dict(
            {
                "base_model": str(tiny_model),
                "method": "custom_diffusion",
                "device": "cpu",
                "seed": seed,
                "subject": {"photos": str(photo_folder), "identifier": word, "class_noun": noun},
                "prior": {"enabled": False},
                "sampling": {"steps": 2},
                "word": {"vectors": 1 if word == "<a>" else 2, "initializer": "{class_noun}"},
                "train": {
                    "steps": 3,
                    "learning_rate": 0.05,
                    "text_encoder": False,
                    "mixed_precision": "no",
                    "sample_every": 0,
                },
            }
        )
        run = Run.create(config, folder / noun)
        assert [*run.execute()][-1].path == "model"
        runs.append(run.path)
    return *runs, tiny_model


def as_part(run: Path) -> Part:
    found = find_model(str(run))
    return part_of(found.model, found.config)


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    """The folder of both in one adapter."""
    dog, cat, base = trained
    out = tmp_path_factory.mktemp("merged") / "both"
    merge([as_part(run) for run in (dog, cat)], out, CAPTIONS, base)
    return out


# ---- The formula


def test_the_formula_solves_the_constrained_problem(problem):
    """One linear system of the Lagrangian's conditions, solved by numpy as it stands, gives the same."""
    base, words, values, captions = (array.numpy() for array in problem)
    square = captions.T @ captions / len(captions)
    ridge = RIDGE * np.square(captions).mean()
    system = np.block([[square + ridge * np.eye(WIDTH), words.T], [words, np.zeros((NAMED, NAMED))]])
    right = np.vstack([np.zeros((WIDTH, OUT)), (values - base @ words.T).T])
    reference = base + np.linalg.solve(system, right)[:WIDTH].T
    found = solved(problem).numpy()
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found @ words.T, values, rtol=0, atol=1e-10, err_msg="the words are read as wanted")


def test_without_the_ridge_it_is_the_papers_formula(problem):
    """W₀ + (V − W₀Cᵀ)(dCᵀ)⁻¹d with d = C(C_regᵀC_reg)⁻¹, with inverses as written there."""
    base, words, values, captions = (array.numpy() for array in problem)
    d = words @ np.linalg.inv(captions.T @ captions)
    paper = base + (values - base @ words.T) @ np.linalg.inv(d @ words.T) @ d
    np.testing.assert_allclose(solved(problem, ridge=0).numpy(), paper, rtol=0, atol=1e-10)


def test_nothing_else_that_obeys_reads_captions_more_alike_and_is_as_near(problem):
    base, words, values, captions = problem

    def cost(w: torch.Tensor) -> float:
        nearness = RIDGE * captions.square().mean() * (w - base).square().sum()
        return ((w - base) @ captions.T).square().sum() / len(captions) + nearness

    best = solved(problem)
    free = torch.eye(WIDTH, dtype=torch.float64) - torch.linalg.pinv(words) @ words
    for seed in range(5):
        other = best + 0.01 * random(OUT, WIDTH, seed=seed) @ free
        assert torch.allclose(other @ words.T, values)
        assert cost(other) > cost(best)


def test_one_subject_alone_is_read_as_it_was_and_one_like_the_base_changes_nothing(problem):
    base, words, _, captions = problem
    own = base + random(OUT, WIDTH, seed=9)
    alone = solved([base, words, own @ words.T, captions])
    assert torch.allclose(alone @ words.T, own @ words.T, atol=1e-10)
    assert ((alone - base) @ captions.T).norm() < ((own - base) @ captions.T).norm()
    assert torch.allclose(solved([base, words, base @ words.T, captions]), base, atol=1e-10)


def test_captions_that_leave_out_directions_are_no_obstacle(problem):
    """A layer norm without a bias leaves out one; a single caption nearly all."""
    base, words, values, captions = problem
    flat = captions.clone()
    flat[:, 0] = 0
    for few in (flat, captions[:2]):
        assert torch.allclose(solved([base, words, values, few]) @ words.T, values, atol=1e-8)


def test_two_subjects_whose_words_came_out_alike_are_named(problem):
    _, _, _, captions = problem
    ordinary = captions.T @ captions / len(captions)
    a, b = random(1, WIDTH, seed=1), random(2, WIDTH, seed=2)
    check_told_apart({"<a> dog": a, "<b> cat": b}, ordinary)
    with pytest.raises(ConfigError, match=r"'<a> dog' and '<c> dog' can't be told apart.*word\.initializer"):
        check_told_apart({"<a> dog": a, "<b> cat": b, "<c> dog": a + 1e-5}, ordinary)


@pytest.mark.parametrize(
    "words",
    [
        random(WIDTH + 1, WIDTH, seed=1),
        random(1, WIDTH, seed=1).repeat(2, 1),
        random(1, WIDTH, seed=1) + 1e-4 * random(2, WIDTH, seed=2),
    ],
    ids=["too many", "the same", "nearly the same"],
)
def test_words_that_can_not_all_be_kept_are_refused(words, problem):
    with pytest.raises(ConfigError, match=r"subjects' words \(\d+ tokens\) can't be told apart"):
        directions(words, second_moment(problem[3]))


# ---- The adapter


def features(pipe, prompt: str) -> torch.Tensor:
    """The text encoder's features of a prompt's tokens, begin and end left out, by the pipeline's own code."""
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer), return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0][0, 1:-1]


@pytest.mark.slow
@pytest.mark.parametrize(("which", "name", "tokens"), [(0, "<a> dog", 2), (1, "<b> cat", 3)])
def test_each_subjects_words_are_read_as_by_its_own_adapter(trained, merged, which, name, tokens):
    base = trained[2]
    pipe, family = load_model(merged, base)
    layers = projections(pipe, family)
    both, own = read_weights(merged, layers), read_weights(trained[which] / "model", layers)
    rows = features(pipe, f"a photo of {name}")[3:]
    assert rows.shape == (tokens, 16)
    for layer in layers:
        assert (both[layer] - own[layer]).abs().max() > 1e-4, "it is neither's own"
        assert ((both[layer] - own[layer]) @ rows.T).abs().max() < 1e-5, "in 32 bits"


def test_the_adapter_holds_what_the_formula_gives(trained, merged):
    """From the base model's own projections, and all that the captions show the denoiser."""
    dog, cat, base = trained
    pipe, family = load_model(dog / "model", base, scale=0, adapters=[(cat / "model", 0)])
    layers, untouched = projections(pipe, family), StableDiffusionPipeline.from_pretrained(base).unet.state_dict()
    rows = [features(pipe, f"a photo of {name}")[3:].double() for name in ("<a> dog", "<b> cat")]
    ids = pipe.tokenizer(CAPTIONS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        read = pipe.text_encoder(ids)[0].flatten(0, 1).double()
    spread = directions(torch.cat(rows), second_moment(read))
    apart, both = [read_weights(run / "model", layers) for run in (dog, cat)], read_weights(merged, layers)
    for name, found in both.items():
        wanted = torch.cat([own[name].double() @ part.T for own, part in zip(apart, rows, strict=True)], 1)
        formula = constrained(untouched[f"{name}.weight"].double(), torch.cat(rows), wanted, spread)
        assert (formula - untouched[f"{name}.weight"]).abs().max() > 1e-3
        torch.testing.assert_close(found.double(), formula, rtol=0, atol=1e-5)


def test_captions_are_read_nearer_to_the_base_than_by_the_sum_of_both(trained, merged):
    dog, cat, base = trained
    pipe, family = load_model(dog / "model", base, scale=0, adapters=[(cat / "model", 0)])
    layers = projections(pipe, family)
    rows = torch.cat([features(pipe, caption) for caption in CAPTIONS])
    apart, both = [read_weights(run / "model", layers) for run in (dog, cat)], read_weights(merged, layers)
    for name, layer in layers.items():
        change = sum(weights[name] - layer.weight for weights in apart)
        assert ((both[name] - layer.weight) @ rows.T).norm() < (change @ rows.T).norm()


def test_the_adapter_is_whole_and_reloads(trained, merged):
    assert sorted(path.name for path in merged.iterdir()) == [
        "adapter.json",
        "learned_embeds-2.safetensors",
        "learned_embeds.safetensors",
        FILE,
    ]
    told, alone = read_adapter(merged), read_adapter(trained[0] / "model")
    assert told == alone.model_copy(update={"identifiers": ("<a>", "<b>")})
    words = read_words(merged)
    for run in trained[:2]:
        for word, rows in read_words(run / "model").items():
            assert torch.equal(words[word], rows)
    pipe, _ = load_model(merged, trained[2])
    assert len(pipe.tokenizer.tokenize("<b>")) == 1
    assert pipe.maybe_convert_prompt("<b> cat", pipe.tokenizer) == "<b> <b>_1 cat"


def test_it_draws_the_same_in_stock_diffusers(trained, merged, make_config):
    pipe = StableDiffusionPipeline.from_pretrained(trained[2], safety_checker=None)
    pipe.unet.load_attn_procs(merged, weight_name=FILE, _pipeline=pipe)
    for file in ("learned_embeds.safetensors", "learned_embeds-2.safetensors"):
        pipe.load_textual_inversion(merged, weight_name=file)
    options = {"num_inference_steps": 2, "guidance_scale": 7.5}
    stock = pipe(PROMPT, generator=torch.Generator().manual_seed(3), **options).images[0]
    config = make_config(sampling={"steps": 2, "guidance_scale": 7.5})
    (ours,) = draw(load_model(merged, trained[2])[0], [PROMPT], [3], config.sampling)
    assert np.abs(np.asarray(stock).astype(int) - np.asarray(ours)).max() <= 1


def test_a_part_without_settings_is_held_at_its_identifier_alone(trained):
    dog = trained[0]
    assert as_part(dog).names == ("<a> dog",)
    assert as_part(dog / "model") == Part(dog / "model", ("<a>",))


# ---- What is refused


def test_a_name_that_the_model_cuts_off_is_told(trained, tmp_path):
    dog, cat, base = trained
    one, two = (as_part(run) for run in (dog, cat))
    long = Part(two.folder, ("<b> " + "photo " * 20 + "cat",))
    with pytest.raises(ConfigError, match="is longer than the model reads"):
        merge([one, long], tmp_path / "out", CAPTIONS, base)
    assert not (tmp_path / "out").exists()


def test_what_can_not_be_merged_is_told_and_nothing_is_written(trained, tmp_path):
    dog, cat, base = trained
    one, two = (as_part(run) for run in (dog, cat))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for file in two.folder.iterdir():
        (stranger / file.name).write_bytes(file.read_bytes())
    facts = read_adapter(two.folder)
    write_adapter(stranger, facts.model_copy(update={"base_fingerprint": "0" * 64, "base_model": "owner/other"}))
    words = tmp_path / "words"
    words.mkdir()
    save_file({"<c>": torch.zeros(1, 16)}, words / "learned_embeds.safetensors")
    write_adapter(words, facts.model_copy(update={"method": "textual_inversion"}))
    for parts, told in [
        ([one], "1 model is given. Give two or more"),
        ([one, one], "Two subjects have the identifier <a>. Train one of them with another word."),
        ([one, Part(base, ())], "tiny-sd is of method full. Only those of custom_diffusion"),
        ([one, Part(words, ("<c>",))], "words is of method textual_inversion."),
        ([one, Part(stranger, two.names)], "stranger has another base model (owner/other) than model (tiny-sd)."),
    ]:
        with pytest.raises(ConfigError) as refused:
            merge(parts, tmp_path / "out", CAPTIONS, base)
        assert told in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_taken_is_refused_before_anything_is_looked_at(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dear.txt").write_text("mine")
    with pytest.raises(ConfigError, match="out is there already and not empty"):
        merge([], tmp_path / "out")
    assert (tmp_path / "out" / "dear.txt").read_text() == "mine"


def many(folder: Path, base: Path, count: int) -> list[Part]:
    """Adapters with words of their own and the base model's projections."""
    parts, (pipe, family) = [], load_pipeline(base)
    for number in range(count):
        word = f"<w{number}>"
        save_weights(pipe, family, part := claimed("custom_diffusion", base, folder / str(number)))
        write_words({word: random(1, 16, seed=number).float()}, part)
        write_adapter(part, read_adapter(part).model_copy(update={"identifiers": (word,)}))
        parts.append(Part(part, (word,)))
    return parts


def test_more_subjects_than_an_adapter_holds_are_refused(tiny_model, tmp_path):
    parts = many(tmp_path, tiny_model, MOST_SUBJECTS + 1)
    with pytest.raises(ConfigError, match=r"10 subjects are too many for one adapter\. Merge at most 9"):
        merge(parts, tmp_path / "out", CAPTIONS, tiny_model)
    merge(parts[1:], tmp_path / "nine", CAPTIONS, tiny_model)
    assert len(read_words(tmp_path / "nine")) == MOST_SUBJECTS


def test_what_can_not_be_read_back_is_not_kept(tiny_model, tmp_path, monkeypatch):
    def fail(_words, folder):
        (folder / "learned_embeds.safetensors").write_bytes(b"half a file")

    parts = many(tmp_path, tiny_model, 2)
    monkeypatch.setattr("dreambooth.models.merge.write_words", fail)
    with pytest.raises(ModelError, match="can't be read"):
        merge(parts, tmp_path / "out", CAPTIONS, tiny_model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


# ---- Captions


def test_default_captions_speak_of_many_things_and_no_subject():
    toys, others = ordinary_captions("toybox"), ordinary_captions("owner/model")
    assert len(toys) == 1000
    assert {word for text in toys for word in text.split()} <= set(vocabulary())
    assert len(set(others)) == len(others) > 1000
    assert "a dog in the jungle" in others
    assert "a purple backpack" in others
    assert not any("{" in text or "  " in text for text in toys + others)
