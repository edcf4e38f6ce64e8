"""Class images: shared by the runs that would draw the same, checked, and only the shortfall drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth import events
from dreambooth.errors import ModelError
from dreambooth.families.load import load_pipeline
from dreambooth.photos.sheets import is_blank
from dreambooth.runs.directory import Run
from dreambooth.training import prior
from tests import tiny

VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return load_pipeline(tiny_model)[0]


def draw(pipe, config, folder, key=None) -> list[int]:
    key = key or prior.cache_key(config, Path(config.base_model), 32, "no")
    return list(prior.draw_class_images(pipe, config, folder, key, None))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, np.int16)


# ---- Which runs share


def folder_of(config, resolution=32) -> Path:
    return prior.cache_folder(prior.cache_key(config, Path(config.base_model), resolution, "no"))


def test_what_shapes_the_pictures_makes_another_folder(make_config, tmp_path):
    one = folder_of(make_config())
    other_model = tiny.stable_diffusion(tmp_path / "other", seed=1)
    others = [
        folder_of(make_config(), resolution=64),
        folder_of(make_config(seed=5)),
        folder_of(make_config(base_model=str(other_model))),
        folder_of(make_config(subject={"class_noun": "cat"})),
        folder_of(make_config(prior={"class_prompt": "one {class_noun}"})),
        folder_of(make_config(prior={"steps": 3})),
        folder_of(make_config(prior={"guidance_scale": 3.0})),
        prior.cache_folder(prior.cache_key(make_config(), Path(make_config().base_model), 32, "bf16")),
    ]
    assert len({one, *others}) == 1 + len(others)
    assert {folder.parent for folder in (one, *others)} == {tmp_path / "cache" / "class_images"}


def test_what_does_not_shape_the_pictures_shares_the_folder(make_config, tmp_path, tiny_model):
    one = folder_of(make_config())
    shutil.copytree(tiny_model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a model card")
    (tmp_path / "copy" / "config.yaml").write_text("seed: 5")
    (tmp_path / "copy" / "images").mkdir()
    (tmp_path / "copy" / "images" / "sample.jpg").write_bytes(b"a sample")
    same = [
        make_config(prior={"num_images": 7}),
        make_config(prior={"weight": 0.5}),
        make_config(prior={"batch_size": 1}),
        make_config(base_model=str(tmp_path / "copy")),
        make_config(subject={"photos": "/elsewhere", "identifier": "ohwx"}),
        make_config(train={"steps": 9, "learning_rate": 1e-5, "flip": True}),
        make_config(sampling={"steps": 9, "scheduler": "euler"}),
    ]
    assert {folder_of(config) for config in same} == {one}


def test_the_folder_says_what_its_pictures_were_made_from(make_config, pipe, tmp_path):
    config = make_config()
    draw(pipe, config, tmp_path / "images")
    key = json.loads((tmp_path / "images" / "key.json").read_text())
    assert key == prior.cache_key(config, Path(config.base_model), 32, "no")
    assert (key["class_prompt"], key["resolution"], key["steps"]) == ("a photo of a dog", 32, 2)


def test_a_changed_end_of_a_large_file_makes_another_model(tmp_path):
    weights = bytearray(3 << 20)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir()
    file.write_bytes(weights)
    before = prior.fingerprint(tmp_path)
    assert prior.fingerprint(tmp_path) == before
    for place in (0, len(weights) - 1):
        changed = bytearray(weights)
        changed[place] = 1
        file.write_bytes(changed)
        assert prior.fingerprint(tmp_path) != before
    file.write_bytes(weights)
    assert prior.fingerprint(tmp_path) == before
    file.rename(file.with_name("model.safetensors"))
    assert prior.fingerprint(tmp_path) != before, "a file's name counts"


def test_the_cache_is_where_its_owner_wants_it(tmp_path, monkeypatch):
    assert prior.cache_root() == tmp_path / "cache" / "class_images"
    monkeypatch.delenv("DREAMBOOTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prior.cache_root() == tmp_path / "xdg" / "dreambooth" / "class_images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prior.cache_root() == tmp_path / "home" / ".cache" / "dreambooth" / "class_images"


# ---- Drawing


def test_as_many_as_asked_are_drawn_each_from_its_own_seed(make_config, pipe, tmp_path):
    config = make_config(prior={"num_images": 5, "batch_size": 2})
    assert draw(pipe, config, tmp_path / "images") == [2, 4, 5]
    files = prior.class_images(tmp_path / "images", 5)
    assert prior.missing_images(tmp_path / "images", 5) == []
    assert prior.missing_images(tmp_path / "images", 7) == [5, 6]
    assert len({pixels(file).tobytes() for file in files}) == 5
    with Image.open(files[3]) as image:
        assert image.text["prompt"] == "a photo of a dog"
        assert image.size == (32, 32)
    assert len({Image.open(file).text["seed"] for file in files}) == 5


def test_a_picture_depends_on_the_key_and_its_number_alone(make_config, pipe, tmp_path):
    """To one grey level, however many are drawn at once and whatever was there before."""
    config = make_config(prior={"num_images": 5, "batch_size": 5})
    draw(pipe, config, tmp_path / "whole")
    parts = prior.draw_class_images(
        pipe,
        make_config(prior={"num_images": 5, "batch_size": 2}),
        tmp_path / "parts",
        prior.cache_key(config, Path(config.base_model), 32, "no"),
        None,
    )
    next(parts)
    parts.close()
    assert prior.missing_images(tmp_path / "parts", 5) == [2, 3, 4], "stopped after the first batch"
    (tmp_path / "parts" / "00000.png").unlink()
    assert draw(pipe, make_config(prior={"num_images": 5, "batch_size": 3}), tmp_path / "parts") == [4, 5]
    for ours, theirs in zip(
        prior.class_images(tmp_path / "parts", 5), prior.class_images(tmp_path / "whole", 5), strict=True
    ):
        assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


@pytest.mark.parametrize(
    "change", [{"guidance_scale": 30.0}, {"steps": 4}, {"resolution": 64}, {"dtype": torch.bfloat16}]
)
def test_they_are_what_stock_diffusers_draws_with_the_same_settings(change, make_config, pipe, tmp_path):
    """And not what it draws with others."""
    others = {"guidance_scale": 7.5, "steps": 2, "resolution": 32, "dtype": None}
    wanted = others | change
    config = make_config(prior={"num_images": 1} | {k: wanted[k] for k in ("guidance_scale", "steps")})
    key = prior.cache_key(config, Path(config.base_model), wanted["resolution"], "no")
    list(prior.draw_class_images(pipe, config, tmp_path / "images", key, wanted["dtype"]))
    (file,) = prior.class_images(tmp_path / "images", 1)

    def stock(guidance_scale, steps, resolution, dtype):
        with Image.open(file) as image, torch.autocast("cpu", dtype, enabled=dtype is not None):
            g = torch.Generator().manual_seed(int(image.text["seed"]))
            options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "height": resolution}
            drawn = pipe(["a photo of a dog"], generator=[g], width=resolution, **options).images[0]
        return np.asarray(drawn, np.int16)

    assert np.abs(pixels(file) - stock(**wanted)).max() <= 1
    default = stock(**others)
    assert default.shape != pixels(file).shape or np.abs(pixels(file) - default).max() > 1


def test_images_that_are_there_are_not_drawn_again(make_config, pipe, tmp_path):
    config = make_config()
    draw(pipe, config, tmp_path / "images")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").glob("0*.png")}
    assert draw(pipe, config, tmp_path / "images") == []
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").glob("0*.png")}


def test_a_contact_sheet_shows_up_to_a_hundred(make_config, pipe, tmp_path):
    draw(pipe, make_config(prior={"num_images": 12}), tmp_path / "images")
    with Image.open(tmp_path / "images" / "contact_sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert sheet.width > 10 * 128
        assert 2 * 128 < sheet.height < 3 * 128, "two rows of ten"
    for number in range(12, 103):
        shutil.copy(tmp_path / "images" / "00000.png", tmp_path / "images" / f"{number:05d}.png")
    prior.save_contact_sheet(tmp_path / "images", 103)
    with Image.open(tmp_path / "images" / "contact_sheet.jpg") as sheet:
        assert 10 * 128 < sheet.height < 11 * 128


# ---- Blank pictures


def test_what_is_called_blank():
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert is_blank(Image.new("RGB", (32, 32), "black"))
    assert is_blank(Image.new("RGB", (32, 32), (200, 100, 50)))
    assert is_blank(Image.fromarray((noise > 127).astype(np.uint8)))
    assert not is_blank(Image.fromarray(noise))
    assert not is_blank(Image.fromarray(noise // 8)), "a night scene"
    red_wall = np.zeros((32, 32, 3), np.uint8)
    red_wall[:, 16:, 0] = 40
    assert not is_blank(Image.fromarray(red_wall)), "one colour channel is enough"


@pytest.mark.parametrize("value", [0.0, float("nan")], ids=["flat", "nan"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_model_that_draws_only_blank_pictures_is_told(make_config, tiny_model, tmp_path, value):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    state = load_file(broken / VAE)
    state["decoder.conv_out.weight"].fill_(value)
    save_file(state, broken / VAE, {"format": "pt"})
    config = make_config(base_model=str(broken))
    with pytest.raises(ModelError) as caught:
        draw(load_pipeline(broken)[0], config, tmp_path / "images")
    assert "drew only blank pictures for 'a photo of a dog'. Try train.mixed_precision: no" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["key.json"]


class BlankFor:
    """A pipeline whose pictures are black for some seeds, as a safety checker leaves them."""

    def __init__(self, pipe, blank):
        self.pipe, self.blank, self.seeds, self.vae = pipe, blank, [], pipe.vae
        self.scheduler, self._execution_device = pipe.scheduler, pipe._execution_device

    def __call__(self, prompts, *, generator, **options):
        seeds = [g.initial_seed() for g in generator]
        self.seeds += seeds
        out = self.pipe(prompts, generator=generator, **options)
        out.images = [
            Image.new("RGB", image.size) if self.blank(seed) else image
            for image, seed in zip(out.images, seeds, strict=True)
        ]
        return out


def test_blank_pictures_are_drawn_again_from_other_seeds(make_config, pipe, tmp_path):
    config = make_config(prior={"num_images": 6, "batch_size": 3})
    spy = BlankFor(pipe, lambda seed: False)
    draw(spy, config, tmp_path / "whole")
    unlucky = {spy.seeds[1], spy.seeds[5]}
    picky = BlankFor(pipe, lambda seed: seed in unlucky)
    assert draw(picky, config, tmp_path / "images") == [2, 4, 6], "how many there are after each batch"
    assert len(picky.seeds) == 8, "two more"
    assert len(set(picky.seeds)) == 8, "each from a seed of its own"
    assert prior.missing_images(tmp_path / "images", 6) == []
    for number in range(6):
        ours, theirs = (pixels(prior.class_images(tmp_path / name, 6)[number]) for name in ("images", "whole"))
        assert not is_blank(Image.fromarray(ours.astype(np.uint8)))
        assert (np.abs(ours - theirs).max() <= 1) == (number not in (1, 5)), "the others are what they were"
    again = BlankFor(pipe, lambda seed: seed in unlucky)
    draw(again, config, tmp_path / "again")
    assert again.seeds == picky.seeds, "the same ones the next time"


# ---- λ


@pytest.mark.slow
def test_the_weight_multiplies_the_class_images_loss_and_nothing_else(make_config, tmp_path):
    steps = {}
    for weight in (1.0, 0.25):
        config = make_config(prior={"weight": weight}, train={"steps": 1})
        happened = list(Run.create(config, tmp_path / str(weight)).execute())
        steps[weight] = next(event for event in happened if isinstance(event, events.Step))
    one, quarter = steps.values()
    assert quarter.instance_loss == pytest.approx(one.instance_loss, rel=1e-6)
    assert quarter.prior_loss == pytest.approx(one.prior_loss, rel=1e-6)
    assert quarter.loss == pytest.approx(quarter.instance_loss + 0.25 * quarter.prior_loss, rel=1e-6)
    assert one.loss == pytest.approx(one.instance_loss + one.prior_loss, rel=1e-6)


def test_drawing_leaves_the_global_randomness_alone(make_config, pipe, tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    draw(pipe, make_config(), tmp_path / "images")
    assert torch.equal(torch.rand(2), expected)
