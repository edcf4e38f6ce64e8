"""Every method with every family, for real on tiny models: training, resuming, saving, loading, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from dreambooth import events, rehearsal
from dreambooth.config.presets import preset_names, usual_preset
from dreambooth.config.sections import LEARNS_WORD
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError, RunError
from dreambooth.families import FAMILIES
from dreambooth.families.load import load_pipeline
from dreambooth.generate import draw, generate, open_source
from dreambooth.methods import get_method, methods
from dreambooth.models.adapters import fuse, is_adapter, load_model, read_adapter
from dreambooth.runs.directory import Run
from tests import tiny

pytestmark = pytest.mark.slow

NAMES = [method.name for method in methods()]
MODELS = {"Stable Diffusion 1.x/2.x": tiny.stable_diffusion}
"""How a tiny model of each family is made; a new family needs one."""


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family_model(request, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"family-{FAMILIES.index(request.param)}"
    return folder if folder.is_dir() else MODELS[request.param.name](folder)


@pytest.fixture
def configured(make_config, family_model):
    """A function that gives a method's quick config, of the family's tiny model."""

    def make(method: str, **changes) -> Config:
        word = method in LEARNS_WORD or changes.get("word", {}).get("learned")
        given = {"base_model": str(family_model), "method": method} | changes
        given["train"] = {"steps": 4, "text_encoder": method not in LEARNS_WORD} | changes.get("train", {})
        given["subject"] = {"identifier": "<sks>" if word else "sks"} | changes.get("subject", {})
        return make_config(**given)

    return make


@pytest.fixture
def two_subjects(photo_folder, tmp_path_factory):
    """Of two classes, each with a word of its own."""
    other = tiny.photos(tmp_path_factory.mktemp("other") / "cat", n=2)
    more = {"photos": str(other), "identifier": "<ohwx>", "class_noun": "cat"}
    return {
        "subject": {"photos": str(photo_folder), "identifier": "<sks>", "class_noun": "dog"},
        "more_subjects": [more],
    }


def run(config, path, **options) -> list:
    return list(Run.create(config, path).execute(**options))


def weights(path) -> dict[str, torch.Tensor]:
    files = sorted((path / "model").rglob("*.safetensors"))
    return {f"{file.relative_to(path)}/{key}": value for file in files for key, value in load_file(file).items()}


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def pixels(pipe, config) -> torch.Tensor:
    (image,) = draw(pipe, [config.instance_prompt], [3], config.sampling)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()


@pytest.mark.parametrize("name", NAMES)
def test_training_stopped_after_two_steps_and_resumed_equals_uninterrupted(name, configured, tmp_path):
    config = configured(name, train={"ema_decay": 0.9, "lr_schedule": "cosine"})
    whole, parts, seen = run(config, tmp_path / "whole"), Run.create(config, tmp_path / "parts"), []
    for event in parts.execute(should_stop=lambda: sum(isinstance(e, events.Step) for e in seen) >= 2):
        seen.append(event)
    assert parts.status == "cancelled"
    seen += parts.execute(resume=True)
    losses = [[e.loss for e in happened if isinstance(e, events.Step)] for happened in (whole, seen)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_draws_what_was_trained(name, configured, tmp_path, family_model):
    """The training's last sample, the run opened for generation, its folder loaded and the fused pipeline agree."""
    config = configured(name, train={"sample_every": 4})
    happened = run(config, tmp_path / "run")
    sample = next(
        e for e in happened if isinstance(e, events.Image) and (e.step, e.prompt) == (4, config.instance_prompt)
    )
    source = open_source(str(tmp_path / "run"))
    (picture,) = next(generate(source, [config.instance_prompt], num_images=1, seed=sample.seed))
    saved = tiny.pixels(tmp_path / "run" / sample.path)
    assert abs(saved - tiny.pixels(picture.image)).max() <= 1, "the training's last sample, but for rounding"

    model = tmp_path / "run" / "model"
    base, _ = load_pipeline(family_model)
    loaded, _ = load_model(model, family_model if is_adapter(model) else None)
    trained = pixels(loaded, config)
    base_words = config.model_copy(update={"subject": config.subject.model_copy(update={"identifier": "sks"})})
    assert not torch.equal(trained, pixels(base, base_words))
    assert is_adapter(model) == (get_method(name).load is not None)
    if is_adapter(model):
        facts = read_adapter(model)
        assert (facts.method, facts.base_model, facts.identifiers) == (
            name,
            family_model.name,
            (config.subject.identifier,),
        )
        fuse(model, tmp_path / "fused", family_model)
        fused, _ = load_pipeline(tmp_path / "fused")
        assert (pixels(fused, config) - trained).abs().max() <= 1, "fusing adds in another order"
    else:
        with pytest.raises(ConfigError, match="whole model already"):
            fuse(model, tmp_path / "fused")


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_trained_is_kept_in_checkpoints(name, configured, tmp_path):
    happened = []
    for event in Run.create(configured(name), tmp_path / "run").execute():
        happened.append(event)
        if isinstance(event, events.Checkpoint):
            state = torch.load(tmp_path / "run" / event.path / "state.pt", weights_only=True)
    trained = next(e.value for e in happened if isinstance(e, events.Metric) and e.name == "trainable_parameters")
    assert sum(tensor.numel() for tensor in state["weights"]) == trained
    sizes = [e.value for e in happened if isinstance(e, events.Metric) and e.name == "model_bytes"]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "run" / "model").rglob("*") if path.is_file())
    assert sizes == [on_disk]


@pytest.mark.parametrize("name", NAMES)
def test_several_subjects_in_one_run(name, configured, tmp_path, two_subjects):
    config = configured(name, **two_subjects)
    happened = run(config, tmp_path / "run")
    assert isinstance(happened[-1], events.Finished)
    photos = tmp_path / "run" / "photos"
    assert [path.name for path in sorted(photos.glob("*.png"))] == ["00.png", "01.png", "02.png"]
    assert (photos / "subject-2" / "01.txt").read_text() == "a photo of <ohwx> cat"
    assert (photos / "together" / "00.txt").read_text() == "a photo of <sks> dog and <ohwx> cat"
    assert len(list(photos.glob("together/*.png"))) == 9, "0.6 of all: 9 beside 3 and as many of the other"
    others = list((tmp_path / "run").glob("class_images-[23]/*.png"))
    assert len(others) == (8 if config.prior.active else 0), "each class has its own, and both together"
    if is_adapter(tmp_path / "run" / "model"):
        assert read_adapter(tmp_path / "run" / "model").identifiers == ("<sks>", "<ohwx>")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "textual_inversion"])
def test_a_drift_penalty_keeps_the_weights_near_the_base(name, configured, tmp_path):
    last = {}
    for weight in (1e-9, 100.0):
        config = configured(name, drift={"weight": weight})
        happened = run(config, tmp_path / str(weight))
        steps = [e for e in happened if isinstance(e, events.Step)]
        assert steps[0].drift == 0, "it starts as the base model"
        assert steps[-1].loss == pytest.approx(
            steps[-1].instance_loss + config.prior.weight * steps[-1].prior_loss + weight * steps[-1].drift, rel=1e-5
        )
        last[weight] = steps[-1].drift
    assert 0 < last[100.0] < 0.7 * last[1e-9]


def test_without_a_penalty_no_distance_is_told(configured, tmp_path):
    steps = [e for e in run(configured("lora"), tmp_path / "run") if isinstance(e, events.Step)]
    assert {e.drift for e in steps} == {None}


def test_pivotal_tuning_goes_on_with_the_learned_word(configured, tmp_path):
    run(configured("textual_inversion", word={"vectors": 2}), tmp_path / "inverted")
    happened = run(configured("lora", word={"learned": str(tmp_path / "inverted")}), tmp_path / "tuned")
    assert isinstance(happened[-1], events.Finished)
    before, after = (
        load_file(tmp_path / name / "model" / "learned_embeds.safetensors") for name in ("inverted", "tuned")
    )
    assert_equal(before, after)
    source = open_source(str(tmp_path / "tuned"))
    assert {"<sks>", "<sks>_1"} <= set(source.pipe.tokenizer.get_vocab())


def test_a_pivotal_run_keeps_its_word_whatever_becomes_of_the_other_run(configured, tmp_path):
    run(configured("textual_inversion"), tmp_path / "inverted")
    config = configured("lora", word={"learned": str(tmp_path / "inverted")})
    run(config, tmp_path / "whole")
    stopped, seen = Run.create(config, tmp_path / "stopped"), []
    for event in stopped.execute(should_stop=lambda: sum(isinstance(e, events.Step) for e in seen) >= 2):
        seen.append(event)
    shutil.rmtree(tmp_path / "inverted")
    list(stopped.execute(resume=True))
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert (tmp_path / "stopped" / "model" / "learned_embeds.safetensors").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_base_model_that_changed_is_noticed_on_resuming(name, configured, tmp_path, family_model):
    base = shutil.copytree(family_model, tmp_path / "base")
    seen = []
    stopped = Run.create(configured(name, base_model=str(base)), tmp_path / "run")
    for event in stopped.execute(should_stop=lambda: sum(isinstance(e, events.Step) for e in seen) >= 2):
        seen.append(event)
    shutil.rmtree(base)
    tiny.stable_diffusion(base, seed=1)
    with pytest.raises(RunError, match="base model has changed"):
        list(stopped.execute(resume=True))


def test_a_word_s_own_learning_rate_counts_for_every_method_that_learns_one(configured, tmp_path):
    for name in LEARNS_WORD:
        for rate in (1e-9, None):
            train = {"text_learning_rate": rate, "weight_decay": 0.0}
            run(configured(name, train=train), tmp_path / f"{name}-{rate}")
        slow, usual = (
            load_file(tmp_path / f"{name}-{rate}" / "model" / "learned_embeds.safetensors")["<sks>"]
            for rate in (1e-9, None)
        )
        assert (slow - usual).abs().max() > 1e-4


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_every_precision_and_checkpointed_activations_train(name, precision, configured, tmp_path):
    options = {"steps": 2, "mixed_precision": precision, "gradient_checkpointing": True, "gradient_accumulation": 2}
    happened = run(configured(name, train=options), tmp_path / "run")
    assert isinstance(happened[-1], events.Finished)
    assert all(
        value.dtype == torch.float32 for value in weights(tmp_path / "run").values() if value.is_floating_point()
    )


CAT = {"photos": "x", "class_noun": "cat"}
BAD = {
    "a word without brackets": ({"method": "textual_inversion", "subject": {"identifier": "sks"}}, "brackets.*<sks>"),
    "a text encoder to be left alone": ({"method": "custom_diffusion", "train": {"text_encoder": True}}, "leaves the"),
    "class images for nothing": ({"method": "textual_inversion", "prior": {"enabled": True}}, "have nothing to keep"),
    "a penalty on nothing": ({"method": "textual_inversion", "drift": {"weight": 1.0}}, "changes no weight"),
    "a penalty on DoRA": ({"method": "lora", "lora": {"dora": True}, "drift": {"weight": 1.0}}, "dora"),
    "a learned word without LoRA": ({"method": "full", "word": {"learned": "x"}}, "for method lora"),
    "a word in capitals": ({"method": "textual_inversion", "subject": {"identifier": "<Rex>"}}, "small letters"),
    "no target at all": ({"method": "lora", "lora": {"targets": []}}, "lora.targets"),
    "a blank word": ({"method": "lora", "word": {"learned": " "}}, "is empty"),
    "an unknown method": ({"method": "hypernetwork"}, "'full', 'lora'"),
    "a pack of two": ({"prior": {"pack": "a/b"}, "more_subjects": [CAT | {"identifier": "ohwx"}]}, "one class"),
    "two subjects of one name": ({"more_subjects": [CAT]}, "two subjects have .*'sks'"),
}


def test_without_weight_class_images_are_none_and_a_word_alone_takes_them(configured):
    config = configured("textual_inversion", prior={"enabled": True, "weight": 0})
    assert (config.prior.active, config.condition) == (False, "word alone")


@pytest.mark.parametrize("what", BAD)
def test_settings_that_can_t_be_are_refused(what, configured):
    settings, words = BAD[what]
    with pytest.raises(ConfigError, match=words):
        configured(**({"method": "full"} | settings))


REFUSED = {
    "layers that are not there": ({"method": "lora", "lora": {"targets": ["to_nowhere"]}}, "lora.targets"),
    "one layer that is not there": (
        {"method": "lora", "lora": {"targets": ["to_q", "nonsense"]}},
        "no layer 'nonsense'",
    ),
    "lengths of a convolution": ({"method": "lora", "lora": {"targets": ["conv1"], "dora": True}}, "no linear layer"),
    "more embeddings than a prompt holds": (
        {"method": "textual_inversion", "word": {"vectors": 16}},
        "<sks> is cut off",
    ),
    "a word of the vocabulary": (
        {"method": "textual_inversion", "subject": {"identifier": "<known>"}},
        "in the model's",
    ),
    "nothing learned": ({"method": "lora", "word": {"learned": "/nowhere"}}, "holds no learned word"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_the_model_is_refused_before_a_weight_is_loaded(what, configured, tmp_path, family_model):
    settings, words = REFUSED[what]
    if "<known>" in str(settings):
        pipe, _ = load_pipeline(family_model)
        pipe.load_textual_inversion({"<known>": torch.zeros(1, 16)})
        pipe.save_pretrained(tmp_path / "knows")
        settings = settings | {"base_model": str(tmp_path / "knows")}
    started = Run.create(configured(**settings), tmp_path / "run")
    with pytest.raises(ConfigError, match=words):
        list(started.execute())
    assert "load model" not in [e.name for e in started.events() if isinstance(e, events.Stage)]


def test_a_family_without_cross_attention_can_t_be_custom(configured, tmp_path, monkeypatch):
    from dataclasses import replace

    without = tuple(replace(family, cross_attention=()) for family in FAMILIES)
    monkeypatch.setattr("dreambooth.families.FAMILIES", without)
    monkeypatch.setattr("dreambooth.rehearsal._timed", rehearsal._timed.__wrapped__)  # none of the family as it is
    started = Run.create(configured("custom_diffusion"), tmp_path / "run")
    with pytest.raises(ConfigError, match="cross-attention"):
        list(started.execute())
    assert "load model" not in [e.name for e in started.events() if isinstance(e, events.Stage)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base_model", ["toybox", "owner/model"])
def test_a_method_alone_brings_its_recipe(name, base_model):
    subject = {"photos": "photos", "class_noun": "dog"}
    config = Config.from_dict({"base_model": base_model, "method": name, "subject": subject})
    preset = usual_preset(base_model, name)
    assert config.preset == preset
    assert preset is None or preset in preset_names()
    assert config.method == name
    assert config.base_model == base_model
    assert (config.subject.identifier == "<sks>") == (name in LEARNS_WORD)


def test_every_method_says_what_it_is():
    for method in methods():
        assert method.description.endswith(".")
        assert len(method.description) < 120
        assert get_method(method.name) is method
