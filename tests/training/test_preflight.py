"""The preflight: exact counts, the same bytes as real tensors, and advice that works."""

import json
import re
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

import dreambooth
from benchmarks.full_size import describe
from dreambooth import machine
from dreambooth import rehearsal as rehearsal_module
from dreambooth.config.names import TOYBOX
from dreambooth.config.sections import EvaluationConfig
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, ModelError
from dreambooth.evaluation import study
from dreambooth.families.load import load_pipeline
from dreambooth.families.stable_diffusion import STABLE_DIFFUSION
from dreambooth.machine import Speed, available_memory, check_optimizer, resolve_device, resolve_precision
from dreambooth.methods import get_method, methods
from dreambooth.metrics.encoders import load_encoders
from dreambooth.rehearsal import Rehearsal, blank_pipeline, fitting_batch
from dreambooth.training import preflight
from dreambooth.training.preflight import check
from tests import tiny

pytestmark = pytest.mark.slow

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
CONFIGS, PRESETS = (
    Path(__file__).parent.parent.parent / "configs",
    Path(dreambooth.__file__).parent / "config" / "presets",
)
SPEED = Speed(flops=1e11, bandwidth=1e10, call=1e-6)
AMPLE = 2**40
STEP_ONLY = {"prior__enabled": False, "train__sample_every": 0}
LARGE_BATCH = {"train__batch_size": 16, "train__resolution": 128, **STEP_ONLY}
MANY_PICTURES = {"train__ema_decay": 0.99, "prior__batch_size": 32, "sampling__num_images": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    """A smaller model still, without weights: quick to rehearse."""
    folder = tiny.stable_diffusion(tmp_path_factory.mktemp("configs"))
    one_block = {"block_out_channels": [32], "down_block_types": ["CrossAttnDownBlock2D"]}
    for name, changes in {
        "unet": one_block | {"up_block_types": ["CrossAttnUpBlock2D"], "mid_block_type": None},
        "vae": {
            "block_out_channels": [8, 8],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        },
        "text_encoder": {"num_hidden_layers": 1},
    }.items():
        path = folder / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


probe = machine.probe
rehearsals: dict[tuple, Rehearsal] = {}


@pytest.fixture(autouse=True)
def _known_speed_and_shared_rehearsals(monkeypatch):
    def shared(model, device, speed):
        if (model, device) not in rehearsals:
            rehearsals[model, device] = Rehearsal(model, device, speed)
        return rehearsals[model, device]

    monkeypatch.setattr(preflight, "timed", lambda model, device, precision: shared(model, device, SPEED))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for models this small more only wait for each other
    yield
    torch.set_num_threads(threads)


def config(**settings) -> Config:
    """A config for the tiny model; `train__batch_size=2` sets train.batch_size."""
    nested = {"base_model": "some/model", "subject": {"photos": "photos", "class_noun": "dog"}}
    nested |= {
        "train": {"resolution": 32, "mixed_precision": "no"},
        "prior": {"num_images": 8},
        "sampling": {},
        "evaluation": {},
        "drift": {},
        "lora": {},
    }
    for key, value in settings.items():
        section, _, name = key.rpartition("__")
        (nested[section] if section else nested)[name] = value
    return Config.from_dict(nested)


def estimate(model: Path, available: int = AMPLE, **settings) -> preflight.Estimate:
    return check(config(**settings), model, CPU, available=available)


# ------------------------------------------------------------------------------------------------- counted exactly


@pytest.mark.parametrize("text_encoder", [True, False])
def test_parameters_are_those_of_the_loaded_model(model, text_encoder):
    settings = config(train__text_encoder=text_encoder)
    pipe, family = load_pipeline(model)
    trainable = get_method("full").attach(pipe, family, settings)
    trained = sum(p.numel() for group in trainable.parameter_groups for p in group["params"])
    everything = sum(p.nbytes for name in ("unet", "vae", "text_encoder") for p in getattr(pipe, name).parameters())
    found = check(settings, model, CPU, available=AMPLE)
    assert found.trainable_parameters == trained
    assert found.parts["weights"] == pytest.approx(everything, abs=1000)  # and the position ids
    assert found.parts["optimizer state"] == 8 * trained
    assert found.model_bytes == pytest.approx(everything, abs=1000)


@pytest.mark.parametrize("method", ["lora", "textual_inversion", "custom_diffusion"])
def test_an_adapters_file_holds_what_it_trains(configs, method):
    word = {"subject__identifier": "<sks>"} if method != "lora" else {}
    found = estimate(configs, method=method, train__text_encoder=False, prior__enabled=False, **word)
    assert found.model_bytes == 4 * found.trainable_parameters


def test_a_rehearsal_may_be_of_another_run(configs):
    rehearsal = Rehearsal(configs, CPU, SPEED)
    settings = config(train__batch_size=2)
    again = [check(settings, configs, CPU, available=AMPLE, rehearsal=rehearsal) for _ in range(2)]
    assert again == [check(settings, configs, CPU, available=AMPLE)] * 2


def on_real_tensors(model: Path, monkeypatch, device: torch.device = CPU) -> Rehearsal:
    """The same stages with real tensors, which lie on the CPU whatever `device` is rehearsed."""
    monkeypatch.setattr(rehearsal_module, "blank_pipeline", lambda model, *_: load_pipeline(model)[0])
    rehearsal = Rehearsal(model, device, SPEED)
    rehearsal.fake = nullcontext()
    return rehearsal


def memory(trace: rehearsal_module.Trace) -> dict[str, int]:
    return {**trace.peak, "small": trace.small, "weights": trace.weights, "trained": sum(trace.trained)}


@pytest.mark.parametrize(
    ("device", "precision", "checkpointing"),
    [(CPU, "no", False), (CPU, "no", True), (CPU, "bf16", False), (CUDA, "bf16", False), (CUDA, "bf16", True)],
)
def test_a_rehearsed_step_allocates_what_a_real_one_does(model, monkeypatch, device, precision, checkpointing):
    settings = config(train__batch_size=3, train__resolution=64, train__mixed_precision=precision)
    rehearsed = preflight.Rehearsal(model, device, SPEED).step(settings, checkpointing)
    real = on_real_tensors(model, monkeypatch, device).step(settings, checkpointing)
    # On a CPU fake norms of bf16 keep their statistics in 16 bits and real ones in 32.
    exact = precision == "no" or device == CUDA
    assert memory(rehearsed) == (memory(real) if exact else pytest.approx(memory(real), rel=0.02))
    assert rehearsed.seconds == pytest.approx(real.seconds, rel=0.05)
    assert rehearsed.peak["activations"] > 2**20


@pytest.mark.parametrize("drawn_by", ["base", "trained", "finished"])
@pytest.mark.parametrize(("device", "precision"), [(CPU, "no"), (CUDA, "bf16")])
def test_rehearsed_pictures_allocate_what_real_ones_do(model, monkeypatch, device, precision, drawn_by):
    settings = config(train__mixed_precision=precision, method="lora", lora__rank=2)
    rehearsal, real = preflight.Rehearsal(model, device, SPEED), on_real_tensors(model, monkeypatch, device)
    assert memory(rehearsal.draw(settings, 2, 3, 7.5, drawn_by)) == memory(real.draw(settings, 2, 3, 7.5, drawn_by))
    assert memory(rehearsal.encode(settings, 4)) == memory(real.encode(settings, 4))


@pytest.mark.parametrize("count", [1, 2, 40])
def test_pictures_are_decoded_one_after_the_other(model, count):
    """As the VAE itself does when it is told to."""
    pipe, _ = load_pipeline(model)
    latents, peaks = torch.zeros(count, 4, 16, 16), []
    pipe.vae.enable_slicing()
    for decode in (
        lambda _: pipe.vae.decode(latents),
        lambda tracker: rehearsal_module._decode_each(pipe, latents, tracker),
    ):
        tracker = rehearsal_module.Tracker(pipe.vae.parameters(), SPEED, 1.0)
        with torch.inference_mode(), tracker:
            decode(tracker)
        peaks.append((tracker.peak.total(), tracker.seconds))
    (memory, seconds), (rehearsed_memory, rehearsed_seconds) = peaks
    assert rehearsed_memory == pytest.approx(memory, rel=0.01)
    assert rehearsed_seconds == pytest.approx(seconds, rel=0.1)


def test_what_is_trained_draws_with_its_weights_as_they_lie(configs):
    """An adapter's frozen matrices are in 16 bits by then; with class images they are not yet."""
    settings = config(**of_method("lora", train__mixed_precision="bf16"))
    rehearsal = preflight.Rehearsal(configs, CUDA, SPEED)
    base, trained, finished = (rehearsal.draw(settings, 2, 3, 7.5, by) for by in ("base", "trained", "finished"))
    assert finished.weights < 0.7 * base.weights
    assert trained.weights < base.weights


def test_as_many_pictures_are_drawn_at_once_as_fit(configs):
    """Exactly so many, whatever is there, and asked again it costs nothing."""
    settings = config(train__resolution=64, train__mixed_precision="bf16")
    rehearsal = Rehearsal(configs, CUDA, SPEED)

    def needed(images: int) -> int:
        return sum(rehearsal.draw(settings, images, 1, 7.5, "finished").needs(CUDA).values())

    def fitting(available: int, **more) -> int:
        return fitting_batch(
            configs, CUDA, "bf16", 16, "evaluation.batch_size", resolution=64, available=available, **more
        )

    assert fitting(AMPLE) == fitting(needed(16)) == 16
    for images in (1, 2, 7, 15):
        assert fitting(needed(images)) == fitting(needed(images + 1) - 1) == images
    weights = rehearsal.draw(settings, 7, 1, 7.5, "finished").weights
    assert fitting(needed(7) - weights, loaded=True) == 7
    assert fitting(needed(7) + 1000, beside=1000) == 7
    with pytest.raises(ConfigError, match=r"evaluation\.batch_size can't even be 1: a picture of 64 px .*device: cpu"):
        fitting(needed(1) - 1)
    assert fitting_batch(configs, CPU, "no", 4, "--batch-size", available=AMPLE) == 4


def test_asking_again_how_many_fit_rehearses_nothing(configs, monkeypatch):
    ask = partial(fitting_batch, configs, CPU, "no", 8, "--batch-size", resolution=32)
    ask(available=AMPLE)
    monkeypatch.setattr(Rehearsal, "_run", None)
    monkeypatch.setattr(rehearsal_module, "blank_pipeline", None)
    assert ask(available=AMPLE // 2) == 8


def test_sixteen_bits_are_advised_where_they_make_a_picture_fit(configs):
    ask = partial(fitting_batch, configs, CUDA, most=4, setting="--batch-size", resolution=64)
    least = next(size for size in range(2**16, 2**30, 2**16) if _fits(ask, size))
    with pytest.raises(ConfigError, match="16 bits"):
        ask(precision="no", available=least)


def _fits(ask, size: int) -> bool:
    try:
        return ask(precision="bf16", available=size) > 0
    except ConfigError:
        return False


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_optimizer_state_is_what_the_optimizer_keeps(name):
    kind = pytest.importorskip("bitsandbytes").optim.AdamW8bit if name == "adamw8bit" else torch.optim.AdamW
    for size in (100, 4096, 10_001):
        weight = torch.nn.Parameter(torch.ones(size))
        weight.grad = torch.ones(size)
        optimizer = kind([weight])
        optimizer.step()
        kept = {k: v for k, v in optimizer.state[weight].items() if torch.is_tensor(v) and v.numel() > 1}
        assert preflight._state_bytes(size, name) == sum(v.nbytes for k, v in kept.items() if "qmap" not in k)


def test_stable_diffusion_15_has_its_parameters(tmp_path):
    folder = describe(tmp_path)  # as for docs/hardware.md
    pipe = blank_pipeline(folder, STABLE_DIFFUSION, FakeTensorMode(allow_non_fake_inputs=True))
    assert sum(p.numel() for p in pipe.unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in pipe.text_encoder.parameters()) == 123_060_480
    assert sum(p.numel() for p in pipe.vae.parameters()) == 83_653_863


def test_nothing_random_is_drawn_and_nothing_is_left_behind(model):
    before = torch.get_rng_state()
    estimate(model)
    assert torch.equal(before, torch.get_rng_state())
    assert type(torch.ones(1)) is torch.Tensor


# ----------------------------------------------------------------------------------------------------- how it grows


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"train__batch_size": 8}, {"train__batch_size": 16}),
        ({"train__resolution": 64}, {"train__resolution": 128}),
        ({"train__gradient_checkpointing": True}, {"train__gradient_checkpointing": False}),
        ({"train__optimizer": "adamw8bit"}, {"train__optimizer": "adamw"}),
        ({"train__text_encoder": False}, {"train__text_encoder": True}),
        ({"train__mixed_precision": "bf16"}, {"train__mixed_precision": "no"}),
        ({}, {"train__ema_decay": 0.999}),
        ({}, {"train__gradient_accumulation": 2}),
        ({"prior__weight": 0.0, "prior__enabled": True}, {"prior__enabled": True}),
    ],
)
def test_training_takes_more(configs, less, more):
    few, many = (estimate(configs, **LARGE_BATCH | settings) for settings in (less, more))
    assert few.stages["training"] < many.stages["training"]


def test_a_large_batch_of_class_images_is_the_peak(configs):
    settings = {"prior__batch_size": 64, "evaluation__while_training": False}
    found = estimate(configs, **settings)
    assert found.stage == "class images"
    assert estimate(configs, **settings, prior__enabled=False).peak_bytes < found.peak_bytes


def test_parts_add_up_to_the_largest_stage(configs):
    found = estimate(configs, train__ema_decay=0.9)
    assert sum(found.parts.values()) == found.peak_bytes == found.stages[found.stage] == max(found.stages.values())
    assert "moving average" in found.parts


def test_twice_the_steps_take_twice_the_time(configs):
    once, twice = (estimate(configs, train__steps=n, **LARGE_BATCH).seconds for n in (1000, 2000))
    assert twice == pytest.approx(2 * once, rel=0.01)


def test_cuda_keeps_norms_in_float32_and_only_what_a_step_uses(model):
    settings = config(train__mixed_precision="bf16", train__text_encoder=False, train__resolution=64)
    cpu, cuda = (preflight.Rehearsal(model, device, SPEED).step(settings, False) for device in (CPU, CUDA))
    assert cuda.peak["activations"] > cpu.peak["activations"]
    pipe, _ = load_pipeline(model)
    assert cuda.weights == sum(p.nbytes for p in pipe.unet.parameters())


# ------------------------------------------------------------------------------------------ every device and setting

METHODS = [method.name for method in methods()]
PRECISIONS = [(CPU, "no"), (CPU, "bf16"), (MPS, "no"), (MPS, "bf16"), (CUDA, "no"), (CUDA, "bf16"), (CUDA, "fp16")]
DRIFTS = [(name, weight) for name in METHODS for weight in (0, 1.0) if name != "textual_inversion" or not weight]


@pytest.fixture
def anywhere(monkeypatch):
    """Whatever is rehearsed, bitsandbytes has its kernels."""
    monkeypatch.setattr(preflight, "check_optimizer", lambda name, device: None)


def of_method(name: str, **settings) -> dict:
    settings |= {"method": name, "train__text_encoder": name in ("full", "lora")}
    return settings | ({} if name in ("full", "lora") else {"subject__identifier": "<sks>"})


@pytest.mark.parametrize(("method", "drift"), DRIFTS)
@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
def test_every_combination_is_rehearsed(configs, anywhere, device, precision, method, drift):
    """Device, precision, method, optimiser, checkpointing, drift and moving average: none is refused, each counts."""
    plain = of_method(method, drift__weight=drift, train__resolution=64, train__mixed_precision=precision, **STEP_ONLY)

    def peaks(device: torch.device = device, **changes) -> dict[str, int]:
        asked = config(**plain | changes)
        found = check(asked, configs, device, available=AMPLE)
        step = preflight.Rehearsal(configs, device, SPEED).step(asked, found.gradient_checkpointing)
        return {"activations": step.peak["activations"], "update": found.stages[preflight.UPDATE]}

    for optimizer, ema in (("adamw", None), ("adamw8bit", 0.99)):
        rest = {"train__optimizer": optimizer, "train__ema_decay": ema}
        off, on = (peaks(train__gradient_checkpointing=way, **rest) for way in (False, True))
        assert on["activations"] < 0.8 * off["activations"]
        assert on["update"] == off["update"]  # recomputing changes nothing there
        for way, found in ((False, off), (True, on)):
            same = {"train__gradient_checkpointing": way, **rest}
            cpu = peaks(CPU, **same | {"train__mixed_precision": "no" if precision == "no" else "bf16"})
            if device == CUDA and precision != "no":  # norms keep their inputs in 32 bits
                assert cpu["activations"] < found["activations"]
                assert found["activations"] < peaks(CPU, **same | {"train__mixed_precision": "no"})["activations"]
            else:
                assert cpu["activations"] == found["activations"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_are_in_float32_when_checkpointing_repeats_them_too(dtype):
    """As on CUDA under autocast, and with the gradients of a run without checkpointing."""
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Conv2d(4, 4, 3))
    pixels, seen = torch.randn(2, 4, 9, 9, requires_grad=True), []
    block[1].register_forward_hook(lambda norm, args, out: seen.append((args[0].dtype, out.dtype)))
    gradients = []
    for run in (block, partial(checkpoint, block, use_reentrant=False)):
        with rehearsal_module._norms_in_float32([block]):
            with torch.autocast("cpu", dtype):
                out = run(pixels)
            gradients.append(torch.autograd.grad(out.float().square().mean(), [pixels, *block.parameters()]))
    assert seen == [(torch.float32, torch.float32)] * 3  # once without checkpointing, twice with
    assert all(map(torch.equal, *gradients))
    with torch.autocast("cpu", dtype):
        block(pixels)
    assert seen[-1] == (dtype, dtype)  # and nothing is left behind


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_can_be_rehearsed_on_a_gpu(configs, anywhere, monkeypatch, path):
    monkeypatch.setattr(preflight, "resolve_precision", lambda setting, device: "bf16")
    subject = {"photos": "photos", "class_noun": "dog"}
    settings = Config.from_dict({"preset": path.stem, "subject": subject})
    found = check(settings, configs, CUDA, available=AMPLE)
    assert found.gradient_checkpointing == (settings.train.gradient_checkpointing is True)
    if not found.gradient_checkpointing:  # as a smaller GPU would have it
        less = check(preflight._with(settings, {"train.gradient_checkpointing": True}), configs, CUDA, available=AMPLE)
        assert less.stages["training"] < found.stages["training"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_can_be_rehearsed_on_a_gpu(configs, anywhere, monkeypatch, tmp_path, path):
    monkeypatch.setattr(preflight, "resolve_precision", lambda setting, device: "bf16")
    if "subjects" not in yaml.safe_load(path.read_text()):
        asked = [Config.load(path)]
    else:
        subjects = {"rex": {"photos": "photos", "class_noun": "dog"}}
        monkeypatch.setattr(study, "subjects_of", lambda study: subjects)
        asked = [
            cell.config for cell in study.cells_of(study.StudyConfig.load(path), tmp_path) if cell.seed is not None
        ]
    assert asked
    for settings in asked:
        assert check(settings, configs, CUDA, available=AMPLE).seconds > 0


def test_description_is_one_line_with_the_figures(configs):
    line = estimate(configs).describe()
    assert re.fullmatch(r"about \d.* GiB of memory at most, .* and roughly \d+ \w+ for .*", line)


# ------------------------------------------------------------------------------------------------ what does not fit


def apply(settings: Config, words: str) -> Config:
    nested = settings.model_dump(mode="json")
    for section, name, value in re.findall(r"(?:(\w+)\.)?(\w+): ([\w.]+)", words):
        (nested[section] if section else nested)[name] = yaml.safe_load(value)
    return Config.from_dict(nested)


@pytest.mark.parametrize("heavy", [LARGE_BATCH | {"train__gradient_checkpointing": False}, MANY_PICTURES])
@pytest.mark.parametrize("share", [0.98, 0.8, 0.5, 0.2, 0.05])
@pytest.mark.parametrize(("device", "precision"), [(CPU, "no"), (CUDA, "bf16")])
def test_what_is_advised_fits(configs, anywhere, monkeypatch, heavy, share, device, precision):
    monkeypatch.setattr(rehearsal_module, "PROGRAM", 0)
    settings = config(**heavy, train__mixed_precision=precision)
    checkpointing = settings.train.gradient_checkpointing is not False
    most = preflight._estimate(preflight.Rehearsal(configs, device, SPEED), settings, checkpointing).peak_bytes
    available = int(share * most)
    with pytest.raises(ConfigError) as refused:
        check(settings, configs, device, available=available)
    assert refused.value.exit_code == 2
    assert "GiB" in refused.value.message
    if "smaller base model" in refused.value.hint:
        assert share < 0.3
        return
    for alternative in refused.value.hint.split(", or "):
        changed = apply(settings, alternative)
        assert changed != settings
        assert check(changed, configs, device, available=available).peak_bytes <= available


def test_the_impossible_is_said_to_be(configs):
    with pytest.raises(ConfigError, match=r"Even train\.optimizer: .* use a smaller base model"):
        estimate(configs, available=2**20)
    settings = {"train__optimizer": "adamw8bit", "train__text_encoder": False, "train__sample_every": 0}
    with pytest.raises(ConfigError, match=r"Even method: lora would .* use a smaller base model"):
        estimate(configs, available=2**20, prior__enabled=False, **settings)
    with pytest.raises(ConfigError, match=r"can be had\. Use a smaller base model"):
        estimate(configs, available=2**20, prior__enabled=False, method="lora", **settings)


@pytest.mark.parametrize("method", ["full", "custom_diffusion"])
def test_a_drift_penalty_holds_the_base_s_weights_beside(configs, method):
    """LoRA's distance needs none."""
    settings = {"method": method, "train__text_encoder": False, **STEP_ONLY}
    if method == "custom_diffusion":
        settings |= {"subject__identifier": "<sks>"}
    plain, held = (estimate(configs, drift__weight=weight, **settings) for weight in (0, 1.0))
    trained = 4 * plain.trainable_parameters
    if method == "custom_diffusion":  # of the word's embedding there is no base
        trained -= 4 * 16
    assert held.stages["the optimizer's update"] - plain.stages["the optimizer's update"] == trained
    settings |= {"train__optimizer": "adamw8bit", "train__gradient_checkpointing": True}
    with pytest.raises(ConfigError, match=r"drift\.weight: 0"):
        estimate(configs, available=2**20, drift__weight=1.0, **settings)


def test_the_encoders_that_measure_count(configs):
    """On a CPU they wait beside everything; on a GPU they are there while they measure."""
    settings = {"prior__enabled": False, "train__sample_every": 10}
    for device, stages in ((CPU, ["training", "encoding", "sample pictures"]), (CUDA, [])):
        on, off = (
            check(config(**settings, evaluation__while_training=way), configs, device, available=AMPLE).stages
            for way in (True, False)
        )
        held = 4 * sum(preflight.ENCODERS.values())
        assert {name: on[name] - off[name] for name in off} == {name: held if stages else 0 for name in off}
        assert set(stages) <= set(off)
        assert on["measuring sample pictures"] > held
        assert "measuring sample pictures" not in off


def test_the_encoders_have_as_many_weights_as_is_counted():
    with torch.device("meta"):
        vit = ViTConfig(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, intermediate_size=1536)
        public = {"dino": ViTModel(vit, add_pooling_layer=False), "clip": CLIPModel(CLIPConfig())}
    own = load_encoders(EvaluationConfig(), TOYBOX, "cpu")
    for counted, models in (
        (preflight.ENCODERS, public),
        (preflight.TOYBOX_ENCODERS, {"dino": own.dino.model, "clip": own.clip.model}),
    ):
        for kind, model in models.items():
            assert counted[kind] == sum(p.numel() for p in model.parameters())
    assert preflight._encoders(config(base_model=TOYBOX)) == preflight.TOYBOX_ENCODERS
    assert preflight._encoders(config()) == preflight.ENCODERS


@pytest.mark.parametrize(("device", "precision"), [(CPU, "no"), (CUDA, "bf16"), (CUDA, "fp16")])
def test_checkpointing_is_turned_on_only_where_it_is_needed(configs, device, precision):
    def found(available: int = AMPLE, **settings) -> preflight.Estimate:
        asked = config(train__mixed_precision=precision, **LARGE_BATCH, **settings)
        return check(asked, configs, device, available=available)

    off, on = (found(train__gradient_checkpointing=way) for way in (False, True))
    assert found() == off
    assert found(off.peak_bytes - 1) == on
    assert on.gradient_checkpointing
    assert not off.gradient_checkpointing


def test_resolution_is_the_models_own_unless_given(model):
    assert estimate(model, train__resolution="auto").resolution == 32
    assert estimate(model, train__resolution=64).resolution == 64


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", None),
        ("unet/config.json", {"block_out_channels": [7, 9]}),
        ("text_encoder/config.json", {"hidden_size": "wide"}),
        ("text_encoder/config.json", {"hidden_size": 32}),  # but the denoiser takes 16
        ("model_index.json", {"unet": ["os", "system"]}),
        ("model_index.json", {"unet": ["diffusers", "NoSuchModel"]}),
        ("model_index.json", {"missing": ["diffusers", "UNet2DConditionModel"]}),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, file, changes):
    path = tiny.stable_diffusion(tmp_path / "broken") / file
    path.write_text("{" if changes is None else json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match="broken"):
        estimate(tmp_path / "broken")


# ---------------------------------------------------------------------------------------------------- the machine


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_absent_device_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(ConfigError, match=f"device is {name}.*auto or cpu"):
        resolve_device(name)


def test_apple_gpus_have_to_be_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == CPU
    assert resolve_device("mps") == torch.device("mps")


def test_float32_is_float32_in_convolutions_and_in_matrix_products(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # PyTorch's default; the other's is this one
    assert torch.get_float32_matmul_precision() == "highest"
    assert resolve_device("auto") == CUDA
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_of_several_gpus_any_can_be_named(monkeypatch, name):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # to have it back
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert config(device=name).device == name
    assert resolve_device(name) == torch.device(name)
    with pytest.raises(ConfigError, match=r"device is cuda:2; there is cuda:0 to cuda:1\..*device: cuda"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="device is cuda:1; there is cuda:0 alone"):
        resolve_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:one", "cpu:1", "cuda:-1", ""])
def test_what_is_no_device_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="give auto, cpu, cuda, cuda:1"):
        config(device=name)
    if name != "cpu:1":  # PyTorch takes it
        with pytest.raises(ConfigError, match="device is"):
            resolve_device(name)


@pytest.fixture
def gpu(monkeypatch) -> dict[str, int]:
    """A GPU's memory in bytes as the driver and PyTorch tell it; 100 in all."""
    told = {"free": 100, "reserved": 0, "allocated": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (told["free"], 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: told["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: told["allocated"])
    return told


def test_what_this_process_holds_on_a_gpu_is_not_available(gpu):
    gpu |= {"free": 40, "reserved": 60, "allocated": 45}
    assert available_memory(CUDA) == 55  # 15 of the 60 are kept for whoever asks next


def test_what_a_training_was_promised_is_not_available(gpu):
    with machine.memory_promised(CUDA, 30):
        assert available_memory(torch.device("cuda:0")) == 70
        gpu |= {"free": 80, "reserved": 20, "allocated": 20}  # part of what was promised
        assert available_memory(CUDA) == 70
        with machine.memory_promised(CUDA, 50):
            assert available_memory(CUDA) == 20
        gpu |= {"free": 60, "reserved": 40, "allocated": 40}  # more than was promised
        assert available_memory(CUDA) == 60
        assert available_memory(CUDA, when_others_ended=True) == 100
        assert available_memory(torch.device("cuda:1")) == 60  # promised there is nothing
    gpu |= {"free": 100, "reserved": 0, "allocated": 0}
    assert available_memory(CUDA) == 100


def test_on_a_cpu_a_promise_counts_as_far_as_the_program_does_not_hold_it_yet():
    before = available_memory(CPU)
    with machine.memory_promised(CPU, 2**50):
        assert available_memory(CPU) == 0
    with machine.memory_promised(CPU, 1):
        assert available_memory(CPU) > before / 2


def test_an_apple_gpu_is_counted_in_main_memory():
    """It shares that; nothing of this was run on one."""
    mps = torch.device("mps")
    assert 0 < available_memory(mps) <= available_memory(CPU) + 2**30
    assert machine.reset_peak_memory(mps) > 0
    assert machine.peak_memory(mps) > 0
    assert resolve_precision("auto", mps) == "no"


@pytest.mark.parametrize(("capability", "chosen"), [("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("avx512_f", "no")])
def test_a_cpu_uses_bf16_only_where_it_is_fast(monkeypatch, capability, chosen):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert resolve_precision("auto", CPU) == chosen
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", torch.device("mps")) == "no"


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_uses_fp16_where_it_has_no_bf16(monkeypatch, native, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_precision("auto", CUDA) == chosen
    assert resolve_precision("fp16", CUDA) == "fp16"


def test_fp16_needs_a_gpu():
    with pytest.raises(ConfigError, match="fp16, which needs a CUDA GPU; the device is cpu"):
        resolve_precision("fp16", CPU)


def test_8_bit_adamw_is_refused_where_it_does_not_work(monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    check_optimizer("adamw8bit", CPU)  # has worked on CPUs since 0.49

    def fail(self):
        raise RuntimeError("no kernel here\nand more")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", fail)
    with pytest.raises(ConfigError, match=r"fails on cpu here \(no kernel here\).*optimizer: adamw"):
        check_optimizer("adamw8bit", CPU)
    check_optimizer("adamw", CPU)


def test_8_bit_adamw_is_refused_and_not_advised_where_it_is_missing(monkeypatch, configs):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        estimate(configs, train__optimizer="adamw8bit")
    with pytest.raises(
        ConfigError, match=r"Even evaluation\.while_training: false, train\.text_encoder: false and method: lora"
    ):
        estimate(configs, available=2**20)


@pytest.mark.parametrize(
    ("groups", "folder", "limit", "usage"),
    [
        ("0::/app/job\n", "app", "memory.max", "memory.current"),
        ("0::/not/seen/from/inside\n", "", "memory.max", "memory.current"),
        ("5:cpu:/\n4:memory:/job\n", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_containers_limit_counts(tmp_path, groups, folder, limit, usage):
    (tmp_path / "own").write_text(groups)
    group = tmp_path / "groups" / folder
    group.mkdir(parents=True)
    (group / limit).write_text("3000\n")
    (group / usage).write_text("1000\n")
    (group / "memory.stat").write_text("anon 500\nactive_file 100\ninactive_file 200\n")
    assert list(machine._cgroup_room(tmp_path / "groups", tmp_path / "own")) == [2300]
    (group / limit).write_text("max\n")
    assert list(machine._cgroup_room(tmp_path / "groups", tmp_path / "own")) == []


def test_available_memory_is_of_this_machine(monkeypatch):
    assert 2**28 < available_memory(CPU) < 2**50
    monkeypatch.setattr(machine, "_cgroup_room", lambda root: [2**20])
    assert available_memory(CPU) <= machine.PROGRAM + 2**20


def test_the_probe_measures_something_plausible():
    speed = probe(CPU, "no")
    assert 1e7 < speed.flops < 1e14
    assert 1e6 < speed.bandwidth < 1e13
    assert 1e-8 < speed.call < 1e-2


def test_a_link_to_nothing_beside_the_parts_is_passed_over(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "README.md").symlink_to(tmp_path / "gone")
    (folder / "unet" / "other.bin").symlink_to(tmp_path / "gone")
    assert rehearsal_module.untimed(folder, CPU).model_bytes == rehearsal_module.untimed(model, CPU).model_bytes
