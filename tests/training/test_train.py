"""The training loop, run for real on tiny models."""

import errno
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, nullcontext
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, init_empty_weights
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth import events
from dreambooth.config.presets import preset_names
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, ModelError, PhotoError, RunError
from dreambooth.families.load import load_pipeline
from dreambooth.hub import sign_in
from dreambooth.runs.directory import Run
from dreambooth.training import checkpoints, prior
from dreambooth.training.checkpoints import list_checkpoints
from dreambooth.training.dataset import CLASS, INSTANCE, DreamBoothDataset, class_variants, encode, photo_variants
from dreambooth.training.packs import publish_pack
from dreambooth.training.train import _noise_and_timesteps, train
from tests import tiny

pytestmark = pytest.mark.slow


def execute(config, path, **options) -> list:
    return list(Run.create(config, path).execute(**options))


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "model").rglob("*.safetensors"))
    assert files
    return {f"{f.parent.name}.{k.removeprefix('text_model.')}": v for f in files for k, v in load_file(f).items()}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def changed(before: dict, after: dict) -> set[str]:
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def of(kind, happened):
    return [e for e in happened if isinstance(e, kind)]


def done_in(stage: str, happened) -> list[int]:
    """What a stage said of its progress."""
    at = next((i for i, e in enumerate(happened) if isinstance(e, events.Stage) and e.name == stage), len(happened))
    own = takewhile(lambda e: not isinstance(e, events.Stage), happened[at + 1 :])
    return [e.done for e in own if isinstance(e, events.Progress)]


def test_a_run_leaves_all_it_should(make_config, tmp_path, tiny_model):
    happened = execute(make_config(train={"sample_every": 2}), tmp_path / "run")
    run = tmp_path / "run"
    assert isinstance(happened[-1], events.Finished)
    assert [e.step for e in of(events.Step, happened)] == [1, 2, 3, 4]
    assert all(e.loss == pytest.approx(e.instance_loss + e.prior_loss, rel=1e-5) for e in of(events.Step, happened))
    assert [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()][-1] == "finished"
    assert Run.open(run).events() == happened
    assert Run.open(run).status == "finished"
    assert sorted(p.name for p in (run / "photos").iterdir()) == [
        *(f"0{i}{s}" for i in range(3) for s in (".png", ".txt")),
        "sources.json",
    ]
    assert len(list((run / "samples").iterdir())) == 6, "instance and class prompt, at steps 0, 2 and 4"
    assert len(list((run / "class_images").glob("*.png"))) == 4
    with Image.open(next((run / "samples").iterdir())) as image:
        assert {"prompt", "seed", "step", "model"} <= set(image.text)
    assert [(e.path, e.step) for e in of(events.Checkpoint, happened)] == [("checkpoints/step-000002", 2)]
    assert not (run / "checkpoints").exists(), "of no use any more"
    assert changed(load_base(tiny_model), weights(run)) == {"unet", "text_encoder"}


def test_the_model_tells_no_path_of_this_machine(make_config, tmp_path, tiny_model):
    execute(make_config(), tmp_path / "run")
    told = [*(tmp_path / "run" / "model").rglob("*.json")]
    assert len(told) > 4
    for file in told:
        assert str(tiny_model) not in file.read_text(encoding="utf-8"), file


def load_base(folder: Path) -> dict[str, torch.Tensor]:
    pipe, _ = load_pipeline(folder)
    named = {f"{n}.{k}": v for n in ("unet", "vae") for k, v in getattr(pipe, n).state_dict().items()}
    text = pipe.text_encoder.state_dict()
    return named | {f"text_encoder.{k.removeprefix('text_model.')}": v for k, v in text.items()}


def test_the_model_loads_and_draws_in_stock_diffusers_without_us(make_config, tmp_path):
    execute(make_config(), tmp_path / "run")
    code = (
        "import sys, torch\n"
        "from diffusers import StableDiffusionPipeline\n"
        f"pipe = StableDiffusionPipeline.from_pretrained({str(tmp_path / 'run' / 'model')!r})\n"
        "image = pipe('a photo of sks dog', num_inference_steps=2, "
        "generator=torch.Generator().manual_seed(3)).images[0]\n"
        "assert not any(m.startswith('dreambooth') for m in sys.modules)\n"
        f"image.save({str(tmp_path / 'stock.png')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    from dreambooth.generate import generate, open_source

    ours = next(generate(open_source(str(tmp_path / "run")), ["a photo of sks dog"], num_images=1, seed=3))[0].image
    with Image.open(tmp_path / "stock.png") as stock:
        assert stock.tobytes() == ours.tobytes()


def test_class_images_of_a_pack_are_fetched_and_the_shortfall_drawn(hub, make_config, tmp_path, monkeypatch):
    """A pack changes nothing but who draws: the run ends with the weights of one that drew them all."""
    account = sign_in(hub.add_user("anna", scopes=("write",)))
    execute(make_config(), tmp_path / "drawn")
    publish_pack(make_config(prior={"num_images": 3}), "anna/dogs", account, private=False)
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "elsewhere"))
    happened = execute(make_config(prior={"pack": "anna/dogs"}), tmp_path / "fetched")
    stages = [e.name for e in of(events.Stage, happened)]
    assert stages.index("fetch class images") < stages.index("load model") < stages.index("class images")
    assert done_in("class images", happened) == [4], "one is drawn"
    assert_equal(weights(tmp_path / "drawn"), weights(tmp_path / "fetched"))
    hub.requests.clear()
    again = execute(make_config(prior={"pack": "anna/dogs"}, train={"steps": 1}), tmp_path / "again")
    assert "fetch class images" not in [e.name for e in of(events.Stage, again)]
    assert hub.requests == [], "they are here"


def test_a_pack_that_does_not_fit_ends_the_run_before_a_weight_is_loaded(hub, make_config, tmp_path):
    hub.add_repo("mona/pack", {"key.json": "{}"}, kind="dataset")
    for pack, kind, words in (
        ("mona/pack", ConfigError, "other class images"),
        ("mona/none", ModelError, "not on the Hub"),
    ):
        run = Run.create(make_config(prior={"pack": pack}), tmp_path / pack)
        with pytest.raises(kind, match=words):
            list(run.execute())
        assert "load model" not in [e.name for e in of(events.Stage, run.events())]
        assert run.status == "failed"
    list(Run.create(make_config(prior={"pack": "mona/none", "enabled": False}), tmp_path / "without").execute())


def test_the_same_seed_gives_the_same_weights_and_another_does_not(make_config, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        execute(make_config(seed=seed), tmp_path / name)
    assert_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert changed(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_losses_equal_an_independent_computation(make_config, tmp_path, tiny_model):
    """The first step's two losses, from diffusers' own scheduler and pipeline parts, to 1e-5."""
    config = make_config()
    step = of(events.Step, execute(config, tmp_path / "run"))[0]
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model)
    _, family = load_pipeline(tiny_model)
    run = tmp_path / "run"
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)

    def side(files, prompt, variants, stream):
        encoded = tiny.finish(encode(pipe, family, (variants(f) for f in files), [prompt] * len(files), None))
        batch = DreamBoothDataset(encoded, None, config.seed, 99) if stream == INSTANCE else None
        items = [encoded.example(n, config.seed, stream)[0] for n in range(2)]
        assert batch is None or torch.equal(batch[1]["instance_images"], items[1])
        x0 = torch.stack(items)
        noise, t = _noise_and_timesteps(x0, family.objective(pipe), config.seed, stream, 0)
        ids = pipe.tokenizer([prompt] * 2, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            out = pipe.unet(scheduler.add_noise(x0, noise, t), t, pipe.text_encoder(ids)[0]).sample
        return float(torch.nn.functional.mse_loss(out.double(), noise.double()))

    photos = sorted((run / "photos").glob("*.png"))
    numbered = {f: i for i, f in enumerate(photos)}
    instance = side(
        photos, "a photo of sks dog", lambda f: photo_variants(Image.open(f), config, numbered[f]), INSTANCE
    )
    classes = side(
        prior.class_images(run / "class_images", 4), "a photo of a dog", lambda f: class_variants(f, config), CLASS
    )
    assert step.instance_loss == pytest.approx(instance, abs=1e-5)
    assert step.prior_loss == pytest.approx(classes, abs=1e-5)
    assert step.loss == pytest.approx(instance + classes, abs=2e-5)


def test_weight_zero_is_no_prior_at_all(make_config, tmp_path):
    execute(make_config(prior={"weight": 0.0}), tmp_path / "zero")
    execute(make_config(prior={"enabled": False}), tmp_path / "off")
    assert_equal(weights(tmp_path / "zero"), weights(tmp_path / "off"))
    assert not (tmp_path / "zero" / "class_images").exists()


def test_prior_preservation_does_not_change_the_photos_examples(make_config, tmp_path):
    """With and without class images the photos' data order, noise and timesteps are the same: runs can be paired."""
    losses = [
        of(events.Step, execute(make_config(prior={"enabled": on}), tmp_path / str(on)))[0].instance_loss
        for on in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9, "lr_schedule": "cosine", "warmup_steps": 1}])
def test_stopped_and_resumed_equals_uninterrupted(make_config, tmp_path, extra):
    config = make_config(train={"steps": 5} | extra)
    whole = execute(config, tmp_path / "whole")
    happened = []
    run = Run.create(config, tmp_path / "parts")
    for event in run.execute(should_stop=lambda: len(of(events.Step, happened)) >= 3):
        happened.append(event)
    assert isinstance(happened[-1], events.Cancelled)
    assert happened[-1].step == 3
    assert run.status == "cancelled"
    happened += run.execute(resume=True)
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [e.loss for e in of(events.Step, happened)] == [e.loss for e in of(events.Step, whole)]


def test_killed_between_checkpoints_and_resumed_equals_uninterrupted(make_config, tmp_path):
    """SIGKILL the real command after step 3, with the last checkpoint at 2: resumed, it ends with the same weights."""
    config = make_config(train={"steps": 6})
    execute(config, tmp_path / "whole")
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "dreambooth", "train", "c.yaml", "--run-dir", "killed"]
    root = Path(__file__).parent.parent.parent
    env = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"step": 3' in log.read_text()):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = Run.open(tmp_path / "killed")
    if run.status != "finished":  # it may have been faster than the signal
        assert run.status == "interrupted"
    shutil.rmtree(tmp_path / "killed" / "model", ignore_errors=True)
    for late in ("step-000004", "step-000006"):  # however fast it was: go on from step 2
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / late, ignore_errors=True)
    subprocess.run([*command, "--resume"], cwd=tmp_path, env=env, check=True, capture_output=True)
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.parametrize(
    "change",
    [
        {"text_encoder": False},
        {"gradient_checkpointing": True},
        {"gradient_accumulation": 2},
        {"snr_gamma": 5.0},
        {"mixed_precision": "bf16"},
        {"flip": True, "crops_per_photo": 2},
        {"optimizer": "adamw8bit"},
    ],
    ids=str,
)
def test_every_option_trains(make_config, tmp_path, change, tiny_model):
    happened = execute(make_config(train={"steps": 2} | change), tmp_path / "run")
    assert isinstance(happened[-1], events.Finished)
    expected = {"unet"} if change.get("text_encoder") is False else {"unet", "text_encoder"}
    assert changed(load_base(tiny_model), weights(tmp_path / "run")) == expected


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_runs_with_another_base_model(preset, tiny_model, photo_folder, tmp_path):
    settings = {
        "preset": preset,
        "base_model": str(tiny_model),
        "device": "cpu",
        "subject": {"photos": str(photo_folder), "class_noun": "dog"},
        "prior": {"num_images": 2, "steps": 2},
        "train": {"steps": 1, "sample_every": 0},
        "word": {"vectors": 1, "templates": ["a photo of a {identifier}"]},  # it reads 14 tokens
    }
    assert isinstance(execute(Config.from_dict(settings), tmp_path / "run")[-1], events.Finished)


def test_gradient_checkpointing_and_cached_prompts_change_no_number(make_config, tmp_path):
    plain = execute(make_config(train={"text_encoder": False}), tmp_path / "plain")
    saving = execute(make_config(train={"text_encoder": False, "gradient_checkpointing": True}), tmp_path / "saving")
    assert len(of(events.Step, plain)) == 4
    for a, b in zip(of(events.Step, plain), of(events.Step, saving), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)


def test_accumulating_two_batches_equals_one_of_twice_the_size(make_config, tmp_path):
    """The accumulated step reports the mean of the losses that its two batches have on their own."""
    happened = execute(make_config(train={"steps": 1, "batch_size": 1, "gradient_accumulation": 2}), tmp_path / "a")
    singles = execute(
        make_config(train={"steps": 2, "batch_size": 1, "learning_rate": 1e-12, "weight_decay": 0.0}), tmp_path / "b"
    )
    expected = sum(e.loss for e in of(events.Step, singles)) / 2
    assert of(events.Step, happened)[0].loss == pytest.approx(expected, rel=1e-5)


# ---- Encoding, and what is kept of it


def encoding(happened) -> tuple[int, list[int]]:
    """How much there was to encode, and what was said of its progress."""
    (stage,) = [e for e in of(events.Stage, happened) if e.name == "encode"]
    return stage.total, done_in("encode", happened)


def kept_latents(run: Path) -> list[Path]:
    return sorted((run / "class_images").glob("latents-*.safetensors"))


def test_runs_of_a_class_encode_its_images_once(make_config, tmp_path):
    """The second run ends with the weights of one that encoded them itself; another flip is another file."""
    assert encoding(execute(make_config(), tmp_path / "first")) == (7, [1, 2, 3, 4, 5, 6, 7])
    assert encoding(execute(make_config(), tmp_path / "second")) == (3, [1, 2, 3])
    assert_equal(weights(tmp_path / "first"), weights(tmp_path / "second"))
    assert len(kept_latents(tmp_path / "first")) == 1
    assert encoding(execute(make_config(train={"flip": True}), tmp_path / "flipped"))[0] == 7
    assert len(kept_latents(tmp_path / "first")) == 2


@pytest.mark.parametrize("damage", ["cut", "other", "nan"])
def test_damaged_latents_are_made_again_and_that_is_said(make_config, tmp_path, damage):
    execute(make_config(), tmp_path / "first")
    (file,) = kept_latents(tmp_path / "first")
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:300])
    else:
        state = load_file(file)
        state = {k: v[:2] if damage == "other" else v / 0 for k, v in state.items()}
        save_file(state, file)
    happened = execute(make_config(), tmp_path / "second")
    assert [e for e in of(events.Warning, happened) if file.name in e.message and "made again" in e.message]
    assert encoding(happened)[0] == 7
    assert_equal(weights(tmp_path / "first"), weights(tmp_path / "second"))
    assert file.read_bytes() == whole


@pytest.mark.parametrize("after", [2, 5])
def test_encoding_can_be_stopped(make_config, tmp_path, after):
    """Within the photos, and within the class images, of which nothing is kept then."""
    happened = []
    run = Run.create(make_config(), tmp_path / "run")
    for event in run.execute(should_stop=lambda: len(done_in("encode", happened)) == after):
        happened.append(event)
    assert encoding(happened) == (7, list(range(1, after + 1)))
    assert isinstance(happened[-1], events.Cancelled)
    assert not kept_latents(tmp_path / "run")


def test_damaged_class_images_are_drawn_again_and_that_is_said(make_config, tmp_path):
    execute(make_config(), tmp_path / "first")
    folder = (tmp_path / "first" / "class_images").resolve()
    whole = {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}
    (folder / "00000.png").write_bytes(whole["00000.png"][:200])
    Image.open(folder / "00001.png").resize((64, 64)).save(folder / "00001.png")
    Image.new("RGB", (32, 32), "black").save(folder / "00002.png")
    happened = execute(make_config(), tmp_path / "second")
    said = [e.message for e in of(events.Warning, happened) if "Class image" in e.message]
    assert said == [
        "Class image 00000.png is damaged, so it is made again.",
        "Class image 00001.png has 64 × 64 pixels, so it is made again.",
        "Class image 00002.png is blank, so it is made again.",
    ]
    assert {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))} == whole
    assert_equal(weights(tmp_path / "first"), weights(tmp_path / "second"))


def test_photos_of_a_run_that_are_damaged_are_named(make_config, tmp_path):
    config = make_config(prior={"enabled": False})
    run = Run.create(config, tmp_path / "run")
    list(run.execute(should_stop=lambda: True))
    photo = tmp_path / "run" / "photos" / "01.png"
    photo.write_bytes(photo.read_bytes()[:200])
    with pytest.raises(RunError, match=r"01\.png.*is damaged.*Remove .*photos"):
        list(Run.open(tmp_path / "run").execute(resume=True))


def test_v_prediction_trains_its_own_target(make_config, tmp_path):
    model = tiny.stable_diffusion(tmp_path / "v", prediction="v_prediction")
    v = of(events.Step, execute(make_config(base_model=str(model)), tmp_path / "run"))[0]
    epsilon = of(events.Step, execute(make_config(), tmp_path / "eps"))[0]
    assert v.loss != pytest.approx(epsilon.loss, rel=1e-3)


def test_a_model_that_another_thread_loads_meanwhile_changes_nothing(make_config, tmp_path):
    """While one is loaded, PyTorch's own classes are changed for every thread: new parameters hold no numbers."""
    config = make_config(train={"ema_decay": 0.9})
    execute(config, tmp_path / "alone")
    with ExitStack() as loading:
        for event in Run.create(config, tmp_path / "beside").execute():
            if isinstance(event, events.Stage) and event.name == "encode":
                loading.enter_context(init_empty_weights())
            elif isinstance(event, events.Step):
                loading.close()
    assert_equal(weights(tmp_path / "alone"), weights(tmp_path / "beside"))


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(make_config, tmp_path):
    run = Run.create(make_config(train={"learning_rate": 1.0, "steps": 200, "max_grad_norm": 1e30}), tmp_path / "run")
    config_path = tmp_path / "run" / "config.yaml"
    broken = Path(run.config.base_model)
    poisoned = tmp_path / "poisoned"
    shutil.copytree(broken, poisoned)
    state = load_file(poisoned / "unet" / "diffusion_pytorch_model.safetensors")
    state["conv_in.weight"][0] = float("nan")
    save_file(state, poisoned / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config_path.write_text(make_config(base_model=str(poisoned), prior={"enabled": False}).to_yaml())
    with pytest.raises(RunError, match=r"not finite at step 1.*learning_rate"):
        list(run.execute())
    assert run.status == "failed"
    assert not (tmp_path / "run" / "model").exists()


class Broken(Accelerator):
    """Puts a number that is none into one gradient, at the backward passes of these numbers."""

    at: tuple[int, ...] = ()
    passes = 0

    def backward(self, loss, **options):
        super().backward(loss, **options)
        if type(self).passes in self.at:
            last = self._optimizers[0].param_groups[0]["params"][-1]
            last.grad.view(-1)[0] = float("inf")
        type(self).passes += 1


class Scaled(Broken):
    """As in fp16, with a scaler of the loss, but on a CPU and in float32."""

    def __init__(self, **options):
        super().__init__(cpu=True)
        self.scaler, self.native_amp = torch.amp.GradScaler("cpu", init_scale=2.0**16), True

    mixed_precision = "fp16"

    def autocast(self):
        return nullcontext()


def breaking(kind, *at):
    return type(kind.__name__, (kind,), {"at": at})


def test_a_gradient_that_is_not_finite_reaches_neither_weights_nor_checkpoint(make_config, tmp_path, monkeypatch):
    """With a finite loss, at a step after which a checkpoint is due: the one before it is whole, and goes on."""
    config = make_config(train={"steps": 3, "checkpoint_every": 1, "ema_decay": 0.5})
    execute(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("dreambooth.training.train.Accelerator", breaking(Broken, 1))
        with pytest.raises(RunError, match=r"gradient is not finite at step 2.*learning_rate"):
            list(run.execute())
    assert [e.step for e in of(events.Step, run.events())] == [1]
    [kept] = (run.path / "checkpoints").iterdir()
    state = torch.load(kept / "state.pt")
    assert state["step"] == 1
    assert all(value.isfinite().all() for value in [*state["weights"], *state["ema"]])
    list(run.execute(resume=True))
    assert_equal(weights(tmp_path / "whole"), weights(run.path))


def test_a_step_that_overflowed_in_fp16_is_done_again_and_counts_once(make_config, tmp_path, monkeypatch):
    """Weights, average, learning rates and data are those of a training that never overflowed."""
    config = make_config(train={"lr_schedule": "cosine", "warmup_steps": 1, "ema_decay": 0.5})
    plain = execute(config, tmp_path / "plain")
    monkeypatch.setattr("dreambooth.training.train.Accelerator", breaking(Scaled, 0, 1, 4))
    scaled = execute(config, tmp_path / "scaled")
    for a, b in zip(of(events.Step, plain), of(events.Step, scaled), strict=True):
        assert (a.step, a.lr, a.loss) == (b.step, b.lr, b.loss)
    assert_equal(weights(tmp_path / "plain"), weights(tmp_path / "scaled"))


def test_a_step_that_always_overflows_ends_the_training(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth.training.train.Accelerator", breaking(Scaled, *range(2, 99)))
    run = Run.create(make_config(train={"checkpoint_every": 1}), tmp_path / "run")
    with pytest.raises(RunError, match=r"gradient is not finite at step 3"):
        list(run.execute())
    assert [path.name for path in list_checkpoints(run.path / "checkpoints")] == ["step-000001", "step-000002"]


def cut_off(run, after: int) -> None:
    """As a killed process leaves a run whose last step was `after`."""
    for event in run.execute():
        if isinstance(event, events.Step) and event.step > after:
            break
    assert run.status == "interrupted"


def test_the_scale_of_fp16_is_part_of_a_checkpoint(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth.training.train.Accelerator", breaking(Scaled, 0, 1))
    run = Run.create(make_config(), tmp_path / "run")
    cut_off(run, after=2)
    [kept] = list_checkpoints(run.path / "checkpoints")
    assert torch.load(kept / "state.pt")["scaler"]["scale"] == 2.0**14, "halved twice before step 1"


class FullDisk(io.BytesIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_while_it_trains_on_ends_the_training(make_config, tmp_path, monkeypatch):
    run = Run.create(make_config(), tmp_path / "run")
    real = Path.open

    def full(path, *mode, **options):
        return FullDisk() if path.name == "state.pt" else real(path, *mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(RunError, match=r"The disk is full.*--resume"):
            list(run.execute())
    assert run.status == "failed"
    assert not of(events.Checkpoint, run.events())
    assert list((run.path / "checkpoints").iterdir()) == []
    list(run.execute(resume=True))
    assert run.status == "finished"


def test_a_checkpoint_holds_its_own_step_while_the_training_goes_on(make_config, tmp_path, monkeypatch):
    """It is written once the next steps are done: the weights, moments and average are those of its step."""
    config = make_config(train={"steps": 5, "checkpoint_every": 2, "ema_decay": 0.5})
    execute(config, tmp_path / "whole")
    run, later = Run.create(config, tmp_path / "run"), threading.Event()
    save = checkpoints._save
    monkeypatch.setattr(checkpoints, "_save", lambda *arguments: later.wait(60) and save(*arguments))
    for event in run.execute():
        if isinstance(event, events.Step) and event.step == 3:
            assert not of(events.Checkpoint, run.events()), "it is told of once it is whole"
            later.set()
            break
    [kept] = list_checkpoints(run.path / "checkpoints")
    assert kept.name == "step-000002", "the end waits for what is being written"
    list(run.execute(resume=True))
    assert_equal(weights(tmp_path / "whole"), weights(run.path))


def test_where_the_memory_has_no_room_for_a_copy_checkpoints_are_written_at_once(make_config, tmp_path, monkeypatch):
    config = make_config(train={"steps": 5})
    execute(config, tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "available_memory", lambda device: 0)
    monkeypatch.setattr(checkpoints, "_copied", None)
    run = Run.create(config, tmp_path / "run")
    cut_off(run, after=2)
    list(run.execute(resume=True))
    assert_equal(weights(tmp_path / "whole"), weights(run.path))


def test_checkpoints_come_by_the_clock_too(make_config, tmp_path, monkeypatch):
    """Steps of some three minutes each, and a checkpoint in ten."""
    now = itertools.count(0, 60)
    monkeypatch.setattr("dreambooth.training.train.time", SimpleNamespace(monotonic=lambda: next(now)))
    for minutes, count in ((10, 2), (1e6, 0)):
        train = {"steps": 9, "checkpoint_every": 1000, "checkpoint_minutes": minutes}
        happened = execute(make_config(train=train), tmp_path / str(minutes))
        assert len(of(events.Checkpoint, happened)) == count


def test_a_finished_run_is_not_trained_again(make_config, tmp_path):
    """Neither resumed nor asked for more steps: it keeps nothing to go on from."""
    run = Run.create(make_config(), tmp_path / "run")
    list(run.execute())
    before = weights(run.path)
    [_, finished] = run.execute(resume=True)
    assert finished.path == "model"
    assert_equal(before, weights(run.path))
    (run.path / "config.yaml").write_text(make_config(train={"steps": 9}).to_yaml())
    with pytest.raises(RunError, match=r"ended at step 4 .*For 9 steps, train anew"):
        list(run.execute(resume=True))


def test_each_sample_picture_has_its_own_file(make_config, tmp_path):
    """Prompts that begin alike, or differ in other letters than a to z alone."""
    long = "a photo of {identifier} {class_noun} on a beach, on the left side of the picture, by "
    prompts = [long + "day", long + "night", "{identifier} 在海滩", "{identifier} 在雪地", "在海滩", "在雪地"]
    config = make_config(
        train={"steps": 1, "sample_every": 1}, sampling={"prompts": prompts}, evaluation={"while_training": False}
    )
    drawn = of(events.Image, execute(config, tmp_path / "run"))
    assert len(drawn) == 2 * 8
    assert len({e.path for e in drawn}) == len(drawn) == len(list((tmp_path / "run" / "samples").iterdir()))
    for e in drawn:
        with Image.open(tmp_path / "run" / e.path) as image:
            assert (image.text["prompt"], image.text["step"]) == (e.prompt, str(e.step))


def test_class_images_are_shared_and_only_the_shortfall_is_drawn(make_config, tmp_path):
    first = execute(make_config(), tmp_path / "a")
    again = execute(make_config(), tmp_path / "b")
    more = execute(make_config(prior={"num_images": 6}), tmp_path / "c")

    def drawn(happened):
        return done_in("class images", happened)

    assert drawn(first) == [4]
    assert drawn(again) == []
    assert drawn(more) == [6]
    assert (tmp_path / "a" / "class_images").resolve() == (tmp_path / "c" / "class_images").resolve()
    assert (tmp_path / "c" / "class_images" / "contact_sheet.jpg").is_file()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_longest_warm_up_reaches_the_peak(make_config, tmp_path, schedule):
    train = {"steps": 4, "warmup_steps": 3, "lr_schedule": schedule}
    rates = [e.lr for e in of(events.Step, execute(make_config(train=train), tmp_path / "run"))]
    assert rates == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])


def test_each_step_tells_both_learning_rates(make_config, tmp_path):
    train = {"learning_rate": 1e-3, "text_learning_rate": 2e-4, "text_encoder": True, "warmup_steps": 2}
    both = of(events.Step, execute(make_config(train=train), tmp_path / "both"))
    assert [e.lr for e in both] == pytest.approx([0, 5e-4, 1e-3, 1e-3])
    assert [e.text_lr for e in both] == pytest.approx([0, 1e-4, 2e-4, 2e-4])
    alone = of(events.Step, execute(make_config(train={"text_encoder": False}), tmp_path / "alone"))
    assert {(e.lr, e.text_lr) for e in alone} == {(1e-3, None)}


def test_captions_are_used_per_photo(make_config, tmp_path, photo_folder):
    folder = tmp_path / "captioned"
    shutil.copytree(photo_folder, folder)
    (folder / "photo1.txt").write_text("a photo of {identifier} {class_noun} in the snow")
    config = make_config(subject={"photos": str(folder), "class_noun": "dog", "captions": True})
    execute(config, tmp_path / "run")
    captions = [(tmp_path / "run" / "photos" / f"0{i}.txt").read_text() for i in range(3)]
    assert captions == ["a photo of sks dog", "a photo of sks dog in the snow", "a photo of sks dog"]


def captioned(photo_folder: Path, folder: Path, text: str, name: str = "photo1.txt") -> dict:
    """A subject whose photos have a caption."""
    shutil.copytree(photo_folder, folder)
    (folder / name).write_text(text)
    return {"photos": str(folder), "class_noun": "dog", "captions": True}


def test_what_is_not_taken_of_a_folder_is_said(make_config, tmp_path, photo_folder):
    subject = captioned(photo_folder, tmp_path / "mixed", "sks in the snow", "photo1.jpg.txt")
    tiny.photos(tmp_path / "mixed" / "more", 2)
    (tmp_path / "mixed" / "film.mov").write_bytes(b"film")
    happened = execute(make_config(subject=subject), tmp_path / "run")
    said = " ".join(e.message for e in of(events.Warning, happened))
    assert "Passed over: 2 photos in its folder 'more'." in said
    assert "Passed over: film.mov, which is no photo" in said
    assert "photo0.jpg and photo2.jpg have no caption: trained with 'a photo of sks dog'." in said


def test_further_subjects_own_folders_are_not_passed_over(make_config, tmp_path, photo_folder):
    shutil.copytree(photo_folder, tmp_path / "all")
    tiny.photos(tmp_path / "all" / "subject-2", 2)
    more = [{"photos": str(tmp_path / "all" / "subject-2"), "class_noun": "cat", "identifier": "ohwx"}]
    config = make_config(subject={"photos": str(tmp_path / "all"), "class_noun": "dog"}, more_subjects=more)
    happened = execute(config, tmp_path / "run")
    assert not [e for e in of(events.Warning, happened) if "Passed over" in e.message]


LONG = "a photo of the cat in the snow in the snow in the snow of a"
"""15 tokens, one more than the tiny model reads."""


def test_a_caption_whose_subject_would_not_be_read_is_refused_by_its_photo(make_config, tmp_path, photo_folder):
    subject = captioned(photo_folder, tmp_path / "long", f"{LONG} {{identifier}} dog")
    with pytest.raises(PhotoError, match=r"photo1\.jpg: The prompt .* sks is cut off"):
        execute(make_config(subject=subject), tmp_path / "run")
    assert not (tmp_path / "run" / "photos").exists()


def test_a_caption_that_is_cut_off_behind_the_subject_is_said(make_config, tmp_path, photo_folder):
    subject = captioned(photo_folder, tmp_path / "long", f"sks, {LONG}")
    happened = execute(make_config(subject=subject), tmp_path / "run")
    assert [e for e in of(events.Warning, happened) if "is cut off." in e.message]


def test_a_word_that_no_photo_would_teach_is_not_trained(make_config, tmp_path):
    config = make_config(
        method="textual_inversion",
        train={"text_encoder": False},
        prior={"enabled": False},
        subject={"identifier": "<sks>", "instance_prompt": f"{LONG} {{identifier}}"},
    )
    with pytest.raises(ConfigError, match="<sks> is cut off, so that it would not be read"):
        execute(config, tmp_path / "run")


def test_a_run_directory_is_not_overwritten(make_config, tmp_path):
    execute(make_config(train={"steps": 1}), tmp_path / "run")
    with pytest.raises(ConfigError, match="not empty"):
        Run.create(make_config(), tmp_path / "run")


def test_one_run_is_trained_by_one_process_at_a_time(make_config, tmp_path):
    run = Run.create(make_config(), tmp_path / "run")
    first = run.execute()
    next(first)
    assert run.status == "running"
    with pytest.raises(RunError, match="another process"):
        next(run.execute())
    first.close()
    assert run.status == "interrupted"


def test_train_is_a_generator_that_needs_no_run_object(make_config, tmp_path):
    (tmp_path / "bare").mkdir()
    assert isinstance(list(train(make_config(train={"steps": 1}), tmp_path / "bare"))[-1], events.Finished)
