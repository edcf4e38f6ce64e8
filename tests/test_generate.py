"""Pictures: reproducible one by one, marked with what they were made from, refused before anything is drawn."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

from dreambooth import generate as module
from dreambooth.config.sections import SamplingConfig
from dreambooth.errors import ConfigError, ModelError, RunError
from dreambooth.generate import (
    SCHEDULERS,
    Source,
    draw,
    generate,
    open_source,
    read_adapters,
    save_picture,
    shown_adapters,
    with_scheduler,
)
from dreambooth.hub import TAG
from dreambooth.machine import DTYPES, resolve_precision
from dreambooth.runs.directory import Run
from tests import tiny

QUICK = SamplingConfig(steps=2)


@pytest.fixture(scope="module")
def source(tiny_model) -> Source:
    return open_source(str(tiny_model))


def pictures(source, prompts, **options):
    options = {"sampling": QUICK} | options
    return [picture for batch in generate(source, prompts, **options) for picture in batch]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


def difference(a: Image.Image, b: Image.Image) -> int:
    """The largest, of 255."""
    return int(np.abs(pixels(a) - pixels(b)).max())


# ---- Seeds and batches


def test_pictures_come_prompt_by_prompt_with_counting_seeds(source):
    drawn = pictures(source, ["a dog", "a cat"], num_images=2, seed=7)
    assert [(p.prompt, p.seed) for p in drawn] == [("a dog", 7), ("a dog", 8), ("a cat", 7), ("a cat", 8)]
    assert all(p.image.size == (32, 32) and p.image.mode == "RGB" for p in drawn)
    assert difference(drawn[0].image, drawn[1].image) > 0, "another seed, another picture"
    assert difference(drawn[0].image, drawn[2].image) > 0, "another prompt, another picture"


def test_a_seed_gives_the_same_picture_twice(source):
    first, second = (pictures(source, ["a dog"], num_images=2, seed=5) for _ in range(2))
    assert [difference(a.image, b.image) for a, b in zip(first, second, strict=True)] == [0, 0]


def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(source):
    """To one grey level: a CPU adds the same numbers up in another order in a larger batch."""
    alone = pictures(source, ["a dog"], num_images=1, seed=5)[0]
    among = pictures(source, ["a cat", "a dog", "a photo of snow"], num_images=3, seed=3)[5]
    assert (among.prompt, among.seed) == ("a dog", 5)
    assert difference(alone.image, among.image) <= 1
    batches = list(generate(source, ["a dog"], num_images=5, seed=3, sampling=QUICK, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert difference(batches[1][0].image, alone.image) <= 1


def test_drawing_does_not_touch_the_global_randomness(source):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    pictures(source, ["a dog"], num_images=1)
    assert torch.equal(torch.rand(3), expected)


def test_seeds_wrap_at_the_largest(source):
    drawn = pictures(source, ["a dog"], num_images=2, seed=2**32 - 1)
    assert [p.seed for p in drawn] == [2**32 - 1, 0]


def test_many_pictures_are_drawn_a_bounded_number_at_a_time(source):
    sizes = [len(batch) for batch in generate(source, ["a dog"], num_images=module.MAX_BATCH + 1, sampling=QUICK)]
    assert sizes == [module.MAX_BATCH, 1]


def test_a_batch_can_be_made_smaller_and_tells_its_steps(source):
    told = []
    batches = list(
        generate(source, ["a dog"], num_images=3, sampling=QUICK, batch_size=2, on_step=lambda *step: told.append(step))
    )
    assert [len(batch) for batch in batches] == [2, 1]
    assert told == [(1, 2), (2, 2)] * 2


def test_what_a_step_raises_ends_the_drawing(source):
    own = source.pipe.scheduler

    def stop(done: int, total: int) -> None:
        raise InterruptedError(f"{done} of {total}")

    with pytest.raises(InterruptedError, match="1 of 4"):
        pictures(source, ["a dog"], num_images=1, on_step=stop, sampling=SamplingConfig(steps=4, scheduler="euler"))
    assert source.pipe.scheduler is own


# ---- Prompts, guidance, schedulers


def test_a_negative_prompt_changes_the_picture(source):
    plain, avoiding = (
        pictures(source, ["a dog"], num_images=1, negative_prompt=negative)[0] for negative in ("", "a cat in the snow")
    )
    assert difference(plain.image, avoiding.image) > 0


def test_guidance_and_steps_change_the_picture(source):
    plain, strict, slow = (
        pictures(source, ["a dog"], num_images=1, sampling=sampling)[0]
        for sampling in (QUICK, SamplingConfig(steps=2, guidance_scale=12), SamplingConfig(steps=4))
    )
    assert difference(plain.image, strict.image) > 0
    assert difference(plain.image, slow.image) > 0


def test_another_resolution_can_be_asked_for(source):
    image = draw(source.pipe, ["a dog"], [0], QUICK, resolution=64, dtype=DTYPES[source.precision])[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_every_scheduler_draws_and_leaves_the_models_own_in_place(tmp_path, prediction):
    pipe = open_source(str(tiny.stable_diffusion(tmp_path / "m", prediction=prediction)), precision="no").pipe
    own = pipe.scheduler
    for name in ("default", *SCHEDULERS):
        image = draw(pipe, ["a dog"], [0], SamplingConfig(steps=4, scheduler=name))[0]
        assert pixels(image).std() > 1, f"{name} drew a blank picture"
        assert with_scheduler(pipe, name).config.prediction_type == prediction
        assert pipe.scheduler is own


def zero_snr(source: Source) -> Source:
    pipe = deepcopy(source.pipe)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    return replace(source, pipe=pipe)


def test_a_sampler_that_can_not_follow_the_models_schedule_is_refused(source):
    rescaled = zero_snr(source)
    own = rescaled.pipe.scheduler
    with pytest.raises(ConfigError, match=r"scheduler pndm can't follow .* Use default, ddim"):
        pictures(rescaled, ["a dog"], sampling=SamplingConfig(steps=2, scheduler="pndm"))
    assert rescaled.pipe.scheduler is own
    for name in ("default", "ddim", "dpm++", "euler", "unipc"):
        sampling = SamplingConfig(steps=3, scheduler=name)
        assert pixels(pictures(rescaled, ["a dog"], num_images=1, sampling=sampling)[0].image).std() > 1, name


def test_a_failure_while_drawing_leaves_the_models_own_scheduler(source):
    own = source.pipe.scheduler
    with pytest.raises(ValueError, match="divisible by 8"):
        draw(source.pipe, ["a dog"], [0], SamplingConfig(steps=2, scheduler="euler"), resolution=33)
    assert source.pipe.scheduler is own


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "The prompt is empty. Say what to draw"),
        ([""], {}, "The prompt is empty"),
        (["a dog", " \t"], {}, "The prompt is empty"),
        (["a dog"], {"num_images": 0}, "num_images is 0. Give 1 or more."),
        (["a dog"], {"seed": -1}, "seed is -1"),
        (["a dog"], {"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_what_can_not_be_drawn_is_refused_before_anything_is(source, prompts, options, words, monkeypatch):
    monkeypatch.setattr(type(source.pipe), "__call__", lambda *_, **__: pytest.fail("something was drawn"))
    with pytest.raises(ConfigError) as caught:
        pictures(source, prompts, **options)
    assert words in str(caught.value)


def test_running_out_of_memory_is_told_with_what_to_do(source, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(type(source.pipe.unet), "forward", fail)
    with pytest.raises(RunError, match=r"memory ran out while drawing 2 pictures .* fewer at once \(--batch-size\)"):
        pictures(source, ["a dog"], num_images=2, batch_setting="--batch-size")
    with pytest.raises(RunError, match=r"while drawing 1 picture at once. Close what else uses it"):
        pictures(source, ["a dog"], num_images=1)


def test_how_many_fit_is_asked_of_the_pipeline_where_it_lies(make_config, tmp_path, tiny_model, monkeypatch):
    """Of an adapter its base model; what is loaded need not fit once more."""
    asked = []
    monkeypatch.setattr(module, "fitting_batch", lambda *given, **more: asked.append((given, more)) or 2)
    opened = open_source(str(tiny_model), precision="bf16")
    assert opened.batch_that_fits(9, "--batch-size", SamplingConfig(guidance_scale=3.0)) == 2
    assert asked == [
        (
            (tiny_model.resolve(), torch.device("cpu"), "bf16", 9, "--batch-size"),
            {"guidance_scale": 3.0, "loaded": True},
        )
    ]
    monkeypatch.undo()
    assert opened.batch_that_fits(9, "--batch-size") == 9


# ---- The arithmetic


def test_a_model_stored_in_bf16_draws_what_autocast_draws_with_its_weights_in_32_bits(tiny_model):
    """So a finished model's pictures are those that its training showed, and take half the memory for weights."""
    half, whole = (open_source(str(tiny_model), precision=name) for name in ("bf16", "no"))
    assert half.pipe.unet.conv_in.weight.dtype == half.pipe.vae.decoder.conv_in.weight.dtype == torch.bfloat16
    assert {p.dtype for part in (whole.pipe.unet, whole.pipe.vae) for p in part.parameters()} == {torch.float32}
    (picture,) = pictures(half, ["a dog"], num_images=1, seed=5)
    (cast,) = draw(whole.pipe, ["a dog"], [5], QUICK, dtype=torch.bfloat16)
    (exact,) = pictures(whole, ["a dog"], num_images=1, seed=5)
    assert difference(picture.image, cast) == 0
    assert difference(picture.image, exact.image) > 0, "bf16 is not float32"
    assert (picture.precision, exact.precision) == ("bf16", "no")


@pytest.mark.parametrize(
    ("trained", "asked", "given", "expected"),
    [
        ("no", "auto", None, "no"),
        ("bf16", "auto", None, "bf16"),
        ("no", "bf16", None, "bf16"),
        ("bf16", "no", None, "no"),
        ("bf16", "bf16", "no", "no"),
        ("auto", "auto", None, "AUTO"),
        ("no", "auto", "auto", "AUTO"),
    ],
)
def test_a_run_draws_as_it_was_trained_unless_something_else_is_asked(
    make_config, tmp_path, tiny_model, monkeypatch, trained, asked, given, expected
):
    config = make_config(train={"mixed_precision": trained}, sampling={"precision": asked})
    path = finished_run(config, tmp_path / "run", tiny_model).path
    opened = open_source(str(path), precision=given)
    assert opened.precision == resolve_precision(expected.lower(), torch.device("cpu"))


def test_a_run_of_a_gpu_in_fp16_draws_on_a_cpu_too_and_fp16_alone_is_refused_there(make_config, tmp_path, tiny_model):
    config = make_config(device="auto", train={"mixed_precision": "fp16"})
    path = str(finished_run(config, tmp_path / "run", tiny_model).path)
    assert open_source(path).precision == resolve_precision("auto", torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"sampling\.precision is fp16, which needs a CUDA GPU"):
        open_source(path, precision="fp16")


def test_latents_are_decoded_one_by_one_and_the_vae_is_left_as_it_was(source):
    sizes = []
    hook = source.pipe.vae.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    pictures(source, ["a dog"], num_images=3)
    hook.remove()
    assert sizes == [1, 1, 1]
    assert not source.pipe.vae.use_slicing


# ---- Pictures with nothing to see


@pytest.fixture(scope="module")
def checked_model(tiny_model, tmp_path_factory):
    """A model whose safety checker takes everything for unsafe."""
    pipe = open_source(str(tiny_model)).pipe
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sight = CLIPVisionConfig(image_size=32, patch_size=16, **side)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=CLIPTextConfig(**side).to_dict(), vision_config=sight.to_dict(), projection_dim=8)
    )
    checker.concept_embeds_weights.data.fill_(-2)  # thresholds of a cosine
    eye = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pipe.register_modules(safety_checker=checker, feature_extractor=eye)
    pipe.register_to_config(requires_safety_checker=True)
    folder = tmp_path_factory.mktemp("models") / "checked"
    pipe.save_pretrained(folder)
    return folder


def test_the_safety_checker_is_on_unless_it_is_turned_off(checked_model, source):
    plain = pictures(source, ["a dog"], num_images=1)[0]
    held_back = pictures(open_source(str(checked_model)), ["a dog"], num_images=2)
    assert [p.problem for p in held_back] == ["held back by the model's safety checker"] * 2
    assert pixels(held_back[0].image).max() == 0
    unchecked = pictures(open_source(str(checked_model), safety_checker=False), ["a dog"], num_images=1)[0]
    assert (plain.problem, unchecked.problem) == ("", "")
    assert difference(plain.image, unchecked.image) == 0


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_failed_arithmetic_is_told_with_the_picture(source):
    broken = replace(source, pipe=deepcopy(source.pipe))
    broken.pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    assert "arithmetic failed" in pictures(broken, ["a dog"], num_images=1)[0].problem


# ---- Where a model comes from


def finished_run(config, path, model) -> Run:
    """A run directory as training leaves it."""
    run = Run.create(config, path)
    shutil.copytree(model, path / "model")
    return run


def test_a_run_draws_with_its_model_and_its_settings(make_config, tmp_path, tiny_model, source):
    config = make_config(sampling={"steps": 3, "guidance_scale": 4.0})
    opened = open_source(str(finished_run(config, tmp_path / "my-run", tiny_model).path))
    assert (opened.name, opened.config, opened.sampling) == ("my-run", config, config.drawing)
    ours = next(generate(opened, ["a dog"], num_images=1))[0].image
    base, sampling = open_source(str(tiny_model), precision="no"), SamplingConfig(steps=3, guidance_scale=4.0)
    assert difference(ours, pictures(base, ["a dog"], num_images=1, sampling=sampling)[0].image) == 0


def test_a_folder_has_the_usual_settings_and_its_own_name(tiny_model, source, monkeypatch):
    assert (source.name, source.config, source.sampling) == (tiny_model.name, None, SamplingConfig())
    monkeypatch.chdir(tiny_model)
    assert open_source(".").name == tiny_model.name


def test_a_run_without_a_finished_model_says_so(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    with pytest.raises(RunError, match=r"has no finished model. Train it to the end first: .*--resume"):
        open_source(str(run.path))
    (run.path / "model").mkdir()
    with pytest.raises(RunError, match="has no finished model"):
        open_source(str(run.path))


def test_what_is_neither_run_nor_model_is_named(tmp_path):
    for missing in (str(tmp_path / "none"), "~nosuchuser/x"):
        with pytest.raises(ModelError, match="no such folder"):
            open_source(missing)
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        open_source(str(tmp_path))


def published(config, model, tags=("text-to-image", TAG)) -> dict[str, bytes | str]:
    """The files of a repo that holds a model, its card and its settings."""
    files = {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    return files | {"README.md": f"---\n{yaml.safe_dump({'tags': list(tags)})}---\n# A dog\n", "config.yaml": config}


def downloaded(files: dict[str, bytes | str], folder: Path) -> str:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data.encode() if isinstance(data, str) else data)
    return str(folder)


def test_a_published_model_draws_with_the_settings_of_its_run(hub, make_config, tiny_model, source):
    config = make_config(sampling={"steps": 3, "guidance_scale": 4.0}, subject={"photos": "/home/anna/photos"})
    hub.add_repo("anna/dog", published(config.to_yaml(), tiny_model))
    opened = open_source("anna/dog")
    assert (opened.name, opened.config, opened.sampling) == ("anna/dog", config, config.drawing)
    ours = next(generate(opened, ["a dog"], num_images=1))[0].image
    base, sampling = open_source(str(tiny_model), precision="no"), SamplingConfig(steps=3, guidance_scale=4.0)
    assert difference(ours, pictures(base, ["a dog"], num_images=1, sampling=sampling)[0].image) == 0
    assert open_source("anna/dog", hub.repos["model", "anna/dog"].commits[-1].oid).sampling == config.drawing


def test_a_published_model_draws_from_where_it_was_downloaded_to(make_config, tiny_model, tmp_path):
    """It has a `config.yaml`, as a run's directory has, and is no run."""
    config = make_config(sampling={"steps": 3})
    opened = open_source(downloaded(published(config.to_yaml(), tiny_model), tmp_path / "dog"))
    assert (opened.name, opened.sampling.steps) == ("dog", 3)


@pytest.mark.parametrize(
    "card",
    [
        "# no front matter",
        "---\ntags: [other]\n---\n",
        "---\ntags: 5\n---\n",
        "---\ntags: [\n---\n",
        "---\n- a list\n---\n",
        b"\xff\xfe",
        f"---\ntags: [{TAG}]\n---\n" + "x" * 300_000,
        f"---\ntags: [{TAG}]\n{tiny.yaml_bomb()}\n---\n",
    ],
)
def test_settings_of_another_products_repo_are_not_ours(tiny_model, tmp_path, card):
    """Any repo may hold some `config.yaml`, even a damaged one."""
    files = published("{{ template }}", tiny_model) | {"README.md": card}
    opened = open_source(downloaded(files, tmp_path / "stock"))
    assert (opened.sampling, opened.config) == (SamplingConfig(), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: [1", "not valid YAML"),
        ("5", "holds int, not settings"),
        (b"\xff\xfe\x00", "can't be read"),
        ("nonsense: 1\nsubject: {photos: p, class_noun: dog}", "unknown key 'nonsense'"),
        ("a: &a [1]\nseed: *a\n", "uses YAML aliases"),
    ],
)
def test_damaged_settings_of_a_published_model_are_told(hub, tiny_model, text, words):
    hub.add_repo("mona/dog", published(text, tiny_model))
    with pytest.raises(ConfigError) as caught:
        open_source("mona/dog")
    assert str(caught.value).startswith("mona/dog: config.yaml")
    assert words in str(caught.value)
    assert "another revision of the model" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_too_large_for_settings_is_not_even_fetched(hub, tiny_model):
    hub.add_repo("mona/dog", published("#" * 300_000, tiny_model))
    assert open_source("mona/dog").config is None
    assert not any("config.yaml" in request.path for request in hub.requests)


def test_a_private_model_draws_for_its_owner_alone(hub, make_config, tiny_model):
    anna, bert = hub.add_user("anna", scopes=("read",)), hub.add_user("bert", scopes=("read",))
    hub.add_repo("anna/dog", published(make_config().to_yaml(), tiny_model), private=True)
    assert open_source("anna/dog", token=anna).config
    for other in (bert, False, None):
        with pytest.raises(ModelError, match="anna/dog is not on the Hub, or is private"):
            open_source("anna/dog", token=other)


# ---- On disk


def test_a_saved_picture_carries_what_it_was_made_from(tmp_path):
    image = Image.new("RGB", (8, 8), "red")
    save_picture(tmp_path / "new" / "a.png", image, prompt="été, 写真\nand more", seed=3, steps=25, model="my-run")
    with Image.open(tmp_path / "new" / "a.png") as saved:
        assert saved.text == {"prompt": "été, 写真\nand more", "seed": "3", "steps": "25", "model": "my-run"}
        assert difference(saved, image) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_picture_that_can_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_picture(tmp_path / "a.png", Image.new("RGB", (8, 8)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("adapters", [[("my run, the best", 0.5), ("b:1", 1.0)], [("owner/name", -0.25)], []])
def test_what_is_put_on_top_is_kept_with_a_picture_whatever_it_is_called(adapters, tmp_path):
    save_picture(tmp_path / "a.png", Image.new("RGB", (8, 8)), adapters=shown_adapters(adapters))
    with Image.open(tmp_path / "a.png") as image:
        assert read_adapters(image.text["adapters"]) == adapters


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:0.5 b:1",
        "a:0.5, b:1",
        "{}",
        "[1]",
        '[["a"]]',
        '[["a", "x"]]',
        '[["a", NaN]]',
        '[["a", 1e999]]',
        "[" * 9999,
    ],
)
def test_of_what_is_no_list_of_adapters_none_is_read(text):
    assert read_adapters(text) == []
