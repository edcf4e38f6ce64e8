"""Settings: where each comes from, what is refused and in which words, and YAML out and in again."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.config.names import make_folders_absolute
from dreambooth.config.presets import RENAMED, load_preset, preset_names
from dreambooth.config.settings import Config
from dreambooth.config.yaml_file import MAX_FOREIGN_YAML, read_card_data, read_foreign_yaml, read_yaml, to_yaml
from dreambooth.errors import ConfigError
from dreambooth.runs.directory import Run
from tests import tiny
from tests.test_files import SAVED

SUBJECT = {"photos": "/photos/dog", "class_noun": "dog"}


def config(**changes) -> Config:
    return Config.from_dict({"subject": SUBJECT} | changes)


def refusal(settings: dict) -> str:
    """The one line that says what is wrong with `settings`."""
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(settings)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- Presets


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("base_model", [None, "toybox", "/models/tiny"])
def test_every_preset_validates_with_a_subject_and_with_another_base_model(name, base_model):
    swapped = {} if base_model is None else {"base_model": base_model}
    made = config(preset=name, **swapped)
    assert made.preset == name
    assert made.base_model == (base_model or load_preset(name)["base_model"])
    for section in ("prior", "train", "sampling"):
        for key, value in load_preset(name).get(section, {}).items():
            assert getattr(getattr(made, section), key) == value, f"{section}.{key}"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_names_the_source_of_its_numbers(name):
    import dreambooth

    text = (Path(dreambooth.__file__).parent / "config" / "presets" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert len(text.splitlines()[0]) > 40


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("sd15-watch", {"subject.identifier": "ohwx", "train.steps": 1000, "train.learning_rate": 5e-6, "seed": 1234}),
        ("sd15-ppl-study", {"prior.num_images": 100, "train.steps": 400, "train.optimizer": "adamw8bit"}),
        ("sd15-low-rate", {"subject.identifier": "pkblz", "train.steps": 800, "train.learning_rate": 2e-6}),
        (
            "sd15-small-gpu",
            {"prior.num_images": 200, "train.learning_rate": 5e-6, "train.gradient_checkpointing": True},
        ),
    ],
)
def test_the_seeds_recipes_are_the_published_ones(name, facts):
    made = config(preset=name)
    for path, value in facts.items():
        found = made
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value, path


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_preset_that_was_renamed_is_answered_with_its_name_of_today(old, new, tmp_path):
    assert old not in preset_names()
    assert new in preset_names()
    (tmp_path / "dog.yaml").write_text(f"preset: {old}\nsubject: {{photos: p, class_noun: dog}}\n")
    for ask in (lambda: config(preset=old), lambda: Config.load(tmp_path / "dog.yaml")):
        with pytest.raises(ConfigError, match=rf"{old}.* is called {new} now.* Write {new}\."):
            ask()


def test_a_record_with_a_presets_earlier_name_is_read_and_says_todays(tmp_path):
    made = config(preset="sd15-low-rate")
    record = made.model_dump(mode="json") | {"preset": "seed-003"}
    assert Config.from_record(record, "record") == made
    run = Run.create(made, tmp_path / "run")
    (run.path / "config.yaml").write_text(to_yaml(record))
    assert Run.open(run.path).config == run.config


def test_toybox_brings_its_own_preset_and_another_base_model_does_not():
    assert config().preset == "toybox"
    assert config().train.learning_rate == load_preset("toybox")["train"]["learning_rate"]
    other = config(base_model="/models/tiny")
    assert other.preset is None
    assert other.train.learning_rate == 5e-6


# ---- Where a setting comes from


def test_set_is_above_the_file_above_the_preset_above_the_default(tmp_path):
    path = written(
        tmp_path,
        "preset: sd15-low-rate\nsubject: {photos: p, class_noun: cat}\ntrain: {steps: 123, batch_size: 2}\n",
    )
    loaded = Config.load(path, ["train.steps=7", "sampling.guidance_scale=11"])
    assert loaded.train.steps == 7, "--set"
    assert loaded.sampling.guidance_scale == 11, "--set over the preset"
    assert loaded.train.batch_size == 2, "the file"
    assert loaded.train.learning_rate == 2e-6, "the preset"
    assert loaded.subject.identifier == "pkblz", "the preset, beside the file's own subject"
    assert loaded.train.weight_decay == 1e-2, "the default"


def test_set_reads_values_as_yaml(tmp_path):
    path = written(tmp_path, "subject: {photos: p, class_noun: cat}\n")
    loaded = Config.load(
        path,
        [
            "prior.enabled=false",
            "train.snr_gamma=5",
            "train.betas=[0.8, 0.99]",
            "train.ema_decay=null",
            "sampling.prompts=['{identifier} in a bucket']",
            "subject.instance_prompt=one {identifier} = 1",
        ],
    )
    assert not loaded.prior.active
    assert loaded.train.snr_gamma == 5.0
    assert loaded.train.betas == (0.8, 0.99)
    assert loaded.train.ema_decay is None
    assert loaded.sampling.prompts == ["{identifier} in a bucket"]
    assert loaded.instance_prompt == "one sks = 1"


@pytest.mark.parametrize("written_as", ["5e-6", "5E-6", "5.0e-6", "0.000005", "5e-06"])
def test_a_learning_rate_is_a_number_however_it_is_written(tmp_path, written_as):
    path = written(tmp_path, f"subject: {{photos: p, class_noun: cat}}\ntrain:\n  learning_rate: {written_as}\n")
    assert Config.load(path).train.learning_rate == 5e-6
    assert Config.load(path, [f"train.learning_rate={written_as}"]).train.learning_rate == 5e-6


def test_words_that_look_like_numbers_with_an_exponent_stay_words(tmp_path):
    path = written(tmp_path, "subject: {photos: p, class_noun: cat, identifier: e5}\nbase_model: a1/2e5b\n")
    loaded = Config.load(path)
    assert (loaded.subject.identifier, loaded.base_model) == ("e5", "a1/2e5b")


def test_no_is_a_word_where_a_word_is_wanted_and_off_where_a_switch_is(tmp_path):
    path = written(
        tmp_path,
        "subject: {photos: p, class_noun: on, identifier: yes, captions: yes}\n"
        "prior: {enabled: no}\n"
        "train: {mixed_precision: no, flip: on, text_encoder: false, gradient_checkpointing: off}\n",
    )
    loaded = Config.load(path, ["train.mixed_precision=no"])
    assert loaded.train.mixed_precision == "no"
    assert (loaded.subject.class_noun, loaded.subject.identifier, loaded.subject.captions) == ("on", "yes", True)
    assert (loaded.prior.enabled, loaded.train.flip) == (False, True)
    assert (loaded.train.text_encoder, loaded.train.gradient_checkpointing) == (False, False)
    assert Config.load(written(tmp_path, loaded.to_yaml())) == loaded
    assert yaml.safe_load(loaded.to_yaml())["train"]["mixed_precision"] == "no", "for other readers, too"


def test_photos_are_relative_to_the_file_and_an_override_to_where_you_are(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    path = written(tmp_path / "configs", "subject: {photos: ../pictures/dog, class_noun: dog}\n")
    monkeypatch.chdir(tmp_path)
    assert Config.load(path).subject.photos == tmp_path / "pictures" / "dog"
    assert Config.load(Path("configs/c.yaml")).subject.photos == tmp_path / "pictures" / "dog"
    assert Config.load(path, ["subject.photos=mine"]).subject.photos == tmp_path / "mine"


def test_photos_in_the_home_folder_and_absolute_ones_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = written(tmp_path, "subject: {photos: ~/dog, class_noun: dog}\n")
    assert Config.load(path).subject.photos == tmp_path / "home" / "dog"
    assert Config.load(path, [f"subject.photos={tmp_path / 'a b'}"]).subject.photos == tmp_path / "a b"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Where one is, `here`, with a folder `models/tb`; and beside it `files/c.yaml`, with a folder `own/sd`."""
    for folder in ("here/models/tb", "files/own/sd"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def model_in_file(models: Path, name: str, *overrides: str, key: str = "base_model") -> str:
    file = models / "files" / "c.yaml"
    section, _, last = key.rpartition(".")
    settings = {"subject": {"photos": "p", "class_noun": "dog"}} | (
        {section: {last: name}} if section else {last: name}
    )
    file.write_text(yaml.safe_dump(settings))
    config = Config.load(file, overrides).model_dump()
    return config[section][last] if section else config[last]


@pytest.mark.parametrize("key", ["base_model", "evaluation.dino", "evaluation.clip"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("toybox", "toybox"),
        ("own/sd", "FILES/own/sd"),
        ("./own/sd", "FILES/own/sd"),
        ("./own/none", "FILES/own/none"),
        ("../here/models/tb", "HERE/models/tb"),
        ("./a/b", "FILES/a/b"),
        ("sd", "FILES/sd"),
        ("a/b/c", "FILES/a/b/c"),
        ("~/x/y", "HOME/x/y"),
        ("/x/y", "/x/y"),
        ("anna/dog", "anna/dog"),
        ("hub:anna/dog", "anna/dog"),
        ("hub:models/tb", "models/tb"),
        ("hub:own/sd", "own/sd"),
    ],
)
def test_a_model_is_a_folder_relative_to_the_file_or_a_repo_of_the_hub(models, key, name, meant):
    for word, folder in (("FILES", "files"), ("HERE", "here"), ("HOME", "")):
        meant = meant.replace(word, str(models / folder).rstrip("/"))
    assert model_in_file(models, name, key=key) == meant


@pytest.mark.parametrize(
    ("name", "lies"),
    [
        ("models/tb", "here/models/tb is there"),
        ("models/typo", "here/models is there without it"),
        ("own/typo", "files/own is there without it"),
    ],
)
def test_what_may_be_a_folder_is_never_asked_from_the_hub_unless_it_is_said(models, name, lies):
    with pytest.raises(
        ConfigError, match=f"may be a folder, of which .*{lies}, or a repo.*Write ./{name} .*hub:{name}"
    ):
        model_in_file(models, name)
    assert model_in_file(models, name, f"base_model=hub:{name}") == name


def test_a_model_in_an_override_is_relative_to_where_you_are(models):
    assert model_in_file(models, "x/y", "base_model=models/tb") == str(models / "here" / "models" / "tb")


@pytest.mark.parametrize("name", ["hub:dog", "hub:a/b/c", "hub:/dog", "hub:"])
def test_a_repo_has_an_owner_and_a_name(models, name):
    with pytest.raises(ConfigError, match=r"names no model\. Write hub:OWNER/NAME"):
        model_in_file(models, name)


def test_a_folder_is_not_taken_for_a_pack_of_the_hub(models):
    with pytest.raises(ConfigError, match=r"prior.pack = 'own/sd' is a folder here, and would be asked from the Hub"):
        model_in_file(models, "own/sd", key="prior.pack")


def test_a_saved_config_means_the_same_photos_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = Config.load(written(tmp_path, "subject: {photos: dog, class_noun: dog}\n").relative_to(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(loaded.to_yaml())
    monkeypatch.chdir("/")
    assert Config.load(tmp_path / "run" / "config.yaml") == loaded


# ---- YAML out and in


@pytest.mark.parametrize("name", [None, *preset_names()])
def test_a_config_written_and_read_again_is_equal(tmp_path, name):
    made = config(preset=name, base_model="/models/tiny")
    assert Config.load(written(tmp_path, made.to_yaml())) == made


def test_unusual_texts_survive_the_round_trip(tmp_path):
    made = Config.from_dict(
        {
            "base_model": "/no",
            "revision": "7460e10",
            "subject": {
                "photos": "/tmp/été: 'x' #1",
                "identifier": "ðŁĴŁ",
                "class_noun": "null",
                "instance_prompt": 'a "photo": of {identifier} # {class_noun}, 写真\u2028here',
                "crops": {"a: b.jpg": [0, 0, 64, 64], "integer.png": [1, 2, 70, 71]},
            },
            "sampling": {"prompts": ["{identifier} - yes", "on", "no", "5e-6"]},
        }
    )
    assert Config.load(written(tmp_path, made.to_yaml())) == made


NUMBERS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "prior": st.fixed_dictionaries(
            {},
            optional={
                "weight": st.floats(0, 100),
                "num_images": st.integers(1, 10_000),
                "guidance_scale": st.floats(0, 50),
                "steps": st.integers(1, 1000),
            },
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "steps": st.integers(1, 1_000_000),
                "learning_rate": st.floats(0, 1, exclude_min=True),
                "weight_decay": st.floats(0, 1),
                "betas": st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
                "max_grad_norm": st.floats(0, 1e30, exclude_min=True),
                "snr_gamma": st.none() | st.floats(0, 1e6, exclude_min=True),
                "ema_decay": st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
                "resolution": st.just("auto") | st.integers(4, 512).map(lambda n: 8 * n),
                "crop_scale": st.floats(0.3, 1, exclude_min=True),
                "gradient_checkpointing": st.sampled_from(["auto", True, False]),
                "flip": st.booleans(),
            },
        ),
        "sampling": st.fixed_dictionaries(
            {}, optional={"guidance_scale": st.floats(0, 50), "seed": st.integers(0, 2**32 - 1)}
        ),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configs")


@given(changes=NUMBERS)
def test_every_number_survives_the_round_trip(folder, changes):
    made = config(base_model="/models/tiny", **changes)
    again = Config.load(written(folder, made.to_yaml()))
    assert again == made
    assert again.to_yaml() == made.to_yaml()


def test_the_yaml_is_complete_and_in_reading_order():
    keys = list(yaml.safe_load(config().to_yaml()))
    assert keys[:3] == ["preset", "base_model", "revision"]
    assert keys[-5:] == ["lora", "word", "train", "sampling", "evaluation"]
    assert keys[-9:-5] == ["subject", "more_subjects", "prior", "drift"]
    assert yaml.safe_load(config().to_yaml())["train"].keys() == type(config().train).model_fields.keys()


# ---- Prompts


def test_prompts_are_filled_in():
    made = config(
        base_model="/m",
        subject=SUBJECT | {"identifier": "ohwx", "class_noun": "toy robot"},
        prior={"class_prompt": "one {class_noun}"},
    )
    assert made.instance_prompt == "a photo of ohwx toy robot"
    assert made.class_prompt == "one toy robot"
    assert made.subject.fill("{class_noun}: {identifier}") == "toy robot: ohwx"


def test_each_class_prompt_is_there_once_in_the_subjects_order():
    def asked(*nouns: str, **prior: str) -> list[str]:
        more = [SUBJECT | {"identifier": f"w{i}", "class_noun": noun} for i, noun in enumerate(nouns)]
        return config(more_subjects=more, prior=prior).class_prompts

    assert asked("cat", "dog") == ["a photo of a dog", "a photo of a cat", "a photo of a dog and a cat"]
    assert asked("cat", class_prompt="a picture") == ["a picture"], "one class, whatever the nouns"
    assert asked("cat", class_prompt="a picture", pack="a/b") == ["a picture"]


def test_surrounding_blanks_are_no_part_of_words_and_prompts():
    made = config(
        subject=SUBJECT | {"identifier": " ohwx ", "class_noun": "dog\n".strip("\n") + " "},
        prior={"class_prompt": "  a {class_noun} "},
    )
    assert made.instance_prompt == "a photo of ohwx dog"
    assert made.class_prompt == "a dog"


def test_a_weight_of_zero_asks_for_no_class_images():
    assert config(prior={"weight": 1.0}).prior.active
    assert not config(prior={"weight": 0}).prior.active
    assert not config(prior={"enabled": False, "weight": 1.0}).prior.active


def test_settings_can_not_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        config().train.steps = 3


# ---- What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**32}, "seed = 4294967296"),
        ({"seed": "x"}, "seed = 'x'"),
        ({"base_model": ""}, "base_model = ''"),
        ({"method": "lora2"}, "method = 'lora2': Input should be 'full'"),
        ({"device": "gpu"}, "device = 'gpu': is 'gpu'; give auto, cpu, cuda, cuda:1"),
        ({"preset": "nope"}, "preset 'nope' does not exist. Choose one of paper, sd15-animal"),
        ({"preset": ["toybox"]}, "preset ['toybox'] does not exist"),
        ({"subject": None}, "subject = None"),
        ({"subject": {"class_noun": "dog"}}, "'subject.photos' is missing"),
        ({"subject": {"photos": "p"}}, "'subject.class_noun' is missing"),
        ({"subject": SUBJECT | {"photos": " "}}, "subject.photos = ' ': is empty"),
        ({"subject": SUBJECT | {"class_noun": "  "}}, "subject.class_noun = '  ': is empty"),
        ({"subject": SUBJECT | {"identifier": "a{b}"}}, "subject.identifier = 'a{b}'"),
        ({"subject": SUBJECT | {"identifier": "a\nb"}}, "line break"),
        ({"subject": SUBJECT | {"identifier": "x" * 61}}, "at most 60 characters"),
        ({"subject": SUBJECT | {"identifier": True}}, "subject.identifier = True"),
        ({"subject": SUBJECT | {"instance_prompt": "a dog"}}, "does not hold the identifier 'sks'"),
        (
            {"prior": {"class_prompt": "a photo of a SKS {class_noun}"}},
            "holds the identifier 'sks', but shows the class",
        ),
        (
            {"subject": SUBJECT | {"identifier": "sks"}, "more_subjects": [SUBJECT | {"identifier": "SKS"}]},
            "two subjects have the identifier 'sks', which 'SKS' holds, too",
        ),
        (
            {"subject": SUBJECT | {"identifier": "old sks"}, "more_subjects": [SUBJECT | {"identifier": "sks"}]},
            "two subjects have the identifier 'sks', which 'old sks' holds, too",
        ),
        ({"subject": SUBJECT | {"instance_prompt": "masks, desks"}}, "does not hold the identifier 'sks' as a word of"),
        ({"subject": SUBJECT | {"instance_prompt": "a {idenfitier}"}}, "uses {idenfitier}; only {identifier}"),
        ({"subject": SUBJECT | {"instance_prompt": "a {identifier:>999999999}"}}, "only {identifier}"),
        ({"subject": SUBJECT | {"instance_prompt": "a {identifier.__class__}"}}, "only {identifier}"),
        ({"subject": SUBJECT | {"instance_prompt": "a {identifier"}}, "unmatched brace"),
        ({"subject": SUBJECT | {"instance_prompt": "{identifier}" + "x" * 1000}}, "at most 1000 characters"),
        ({"subject": SUBJECT | {"crops": {"interior.jpg": [1, 2, 3]}}}, "subject.crops.interior.jpg"),
        ({"prior": {"weight": -0.5}}, "prior.weight = -0.5"),
        ({"prior": {"weight": float("nan")}}, "prior.weight = nan"),
        ({"prior": {"num_images": 0}}, "prior.num_images = 0"),
        ({"prior": {"class_prompt": "   "}}, "prior.class_prompt"),
        ({"prior": {"class_prompt": "{identifier} {class_noun}"}}, "uses {identifier}; only {class_noun}"),
        ({"word": {"initializer": "{class_noun} {x}"}}, "uses {x}; only {class_noun}"),
        ({"word": {"initializer": "{class_noun:>999999999}"}}, "uses {class_noun:>999999999}; only {class_noun}"),
        ({"word": {"initializer": []}}, "word.initializer = []"),
        (
            {
                "subject": SUBJECT,
                "more_subjects": [SUBJECT | {"identifier": f"w{i}"} for i in range(2)],
                "word": {"initializer": ["ktn", "pll"]},
            },
            "word.initializer: 2 for 3 subjects; give one",
        ),
        ({"word": {"templates": ["a photo of a {}"]}}, "uses {}; only {identifier}"),
        ({"word": {"templates": ["a photo of a {class_noun}"]}}, "does not hold {identifier}"),
        ({"train": {"steps": 0}}, "train.steps = 0"),
        ({"train": {"steps": "many"}}, "train.steps = 'many'"),
        ({"train": {"learning_rate": 0}}, "train.learning_rate = 0"),
        ({"train": {"learning_rate": float("inf")}}, "finite"),
        ({"train": {"resolution": 100}}, "train.resolution = 100: is 100; give a multiple of 8"),
        ({"train": {"resolution": 8192}}, "multiple of 8 from 32 to 4096"),
        ({"train": {"resolution": "big"}}, "train.resolution = 'big'"),
        ({"train": {"warmup_steps": 300}}, "warmup_steps (300) leaves none of the steps (200) at"),
        ({"train": {"steps": 1, "warmup_steps": 1}}, "warmup_steps (1) leaves none of the steps (1) at"),
        ({"train": {"mixed_precision": "fp8"}}, "train.mixed_precision = 'fp8'"),
        ({"train": {"optimizer": "sgd"}}, "'adamw' or 'adamw8bit'"),
        ({"train": {"betas": [0.9, 1.0]}}, "train.betas.1 = 1.0"),
        ({"train": {"ema_decay": 1}}, "train.ema_decay = 1"),
        ({"train": {"crop_scale": 0.1}}, "train.crop_scale = 0.1"),
        ({"train": {"checkpoint_every": 0}}, "train.checkpoint_every = 0"),
        ({"train": {"keep_checkpoints": 0}}, "train.keep_checkpoints = 0"),
        ({"train": 3}, "train = 3"),
        ({"device": "cpu", "train": {"mixed_precision": "fp16"}}, "mixed_precision is fp16 but device is cpu"),
        ({"sampling": {"scheduler": "heun"}}, "sampling.scheduler = 'heun'"),
        ({"sampling": {"prompts": ["{who}"]}}, "'{who}' uses {who}"),
        ({"sampling": {"prompts": [" "]}}, "sampling.prompts.0"),
    ],
    ids=str,
)
def test_each_wrong_value_is_named_with_its_key(changes, words):
    assert words in refusal({"subject": SUBJECT} | changes)


def test_an_unknown_key_is_answered_with_the_known_ones():
    said = refusal({"subject": SUBJECT, "train": {"learning_rat": 1e-5}})
    assert "unknown key 'train.learning_rat'; known here: steps, learning_rate, " in said
    assert "unknown key 'trian'; known here: preset, base_model, " in refusal({"subject": SUBJECT, "trian": {}})


def test_a_key_that_begins_like_a_type_is_named_in_full():
    assert "unknown key 'train.interval'" in refusal({"subject": SUBJECT, "train": {"interval": 1}})
    assert "unknown key 'train.bools'" in refusal({"subject": SUBJECT, "train": {"bools": 1}})


def test_all_mistakes_are_told_at_once():
    said = refusal({"subject": SUBJECT, "seed": -1, "train": {"steps": 0, "x": 1}, "prior": {"weight": "much"}})
    for key in ("seed = -1", "train.steps = 0", "'train.x'", "prior.weight = 'much'"):
        assert key in said


def test_of_a_file_that_is_no_config_the_first_mistakes_are_enough():
    said = refusal({"subject": SUBJECT} | {f"name{number}": number for number in range(99)})
    assert "'name9'" in said
    assert "'name10'" not in said
    assert said.endswith("; and 89 more")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds NoneType, not settings. Write `key: value` lines."),
        ("- a\n- b\n", "holds list, not settings"),
        ("subject: {photos: p\n", "line 2, column 1: not valid YAML"),
        ("seed: 1\ndevice: cpu\nseed: 2\n", "line 3, column 1: not valid YAML (the key 'seed' stands twice"),
        ("subject: {photos: p, class_noun: dog, photos: q}\n", "the key 'photos' stands twice"),
        ("? [a, b]\n: c\n", "unhashable key"),
        ("seed: 2020-13-45\n", "month must be in 1..12"),
        ("seed: \x07\n", "special characters are not allowed"),
        ("seed: \x00\n", "it holds zero bytes"),
        ("[" * 1500, "not valid YAML"),
        ("base_model: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("seed: 1\n---\nseed: 2\n", "another document"),
        ("subject: {photos: ~nosuchuser/p, class_noun: dog}\n", "subject.photos = '~nosuchuser/p' is not a path"),
        ('subject: {photos: "a\\0b", class_noun: dog}\n', "is not a path"),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_a_file_that_is_no_config_is_refused_with_the_place(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        Config.load(written(tmp_path, text))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_pack_of_class_images_is_a_hub_repo():
    assert config(prior={"pack": "anna/dogs_1.5"}).prior.pack == "anna/dogs_1.5"
    assert config().prior.pack is None
    for wrong in ("dogs", "/etc/dogs", "../dogs", "a/b/c", "https://elsewhere/dogs", "", "a b/c", "~/dogs", "anna/"):
        said = refusal({"subject": SUBJECT, "prior": {"pack": wrong}})
        assert said == f"config: prior.pack = {wrong!r}: is no Hub repo; give OWNER/NAME"


def test_settings_that_somebody_else_wrote_can_not_keep_the_machine_busy(tmp_path):
    path = written(tmp_path, "seed: 1\nsubject: {photos: p}\n")
    assert read_foreign_yaml(path, "anna/dog: config.yaml") == {"seed": 1, "subject": {"photos": "p"}}
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)) + "seed: *a39\n"
    for text, words in (
        (bomb, "anna/dog: config.yaml: uses YAML aliases"),
        ("a: &a {k: 1}\nb: {<<: [*a, *a]}\n", "anna/dog: config.yaml: uses YAML aliases"),
        ("[" * 60_000, "anna/dog: config.yaml: nests more than 32 brackets"),
        ("#" * (MAX_FOREIGN_YAML + 1), "anna/dog: config.yaml: has 65,537 bytes"),
        ("seed: [", "anna/dog: config.yaml, line 1, column 8: not valid YAML"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_foreign_yaml(written(tmp_path, text), "anna/dog: config.yaml")


def test_nothing_is_made_of_aliases_before_they_are_refused(tmp_path):
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match="uses YAML aliases"):
        read_foreign_yaml(written(tmp_path, tiny.yaml_bomb()), "anna/dog: config.yaml")
    with pytest.raises(ConfigError, match="uses YAML aliases"):
        read_card_data(written(tmp_path, f"---\n{tiny.yaml_bomb()}\n---\n# A dog\n"), "README.md")
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    ("card", "data"),
    [
        ("---\ntags: [a, b]\nn: 5e-6\n---\n# A dog\n---\n", {"tags": ["a", "b"], "n": 5e-6}),
        ("\n---\r\ntags: [a]\r\n---", {"tags": ["a"]}),
        ("# A dog\n---\ntags: [a]\n---\n", {}),
        ("", {}),
    ],
)
def test_the_front_matter_of_a_card_is_read(tmp_path, card, data):
    assert read_card_data(written(tmp_path, card), "README.md") == data


@pytest.mark.parametrize("field", ["{identi:fier}", "{identi!r:fier}", "{identifier!r}", "{identifier:>9}"])
def test_a_prompt_has_names_alone_in_its_braces(field):
    said = refusal({"subject": SUBJECT | {"instance_prompt": f"a {field}"}})
    assert f"uses {field}; only" in said


@pytest.mark.parametrize("encode", SAVED.values(), ids=SAVED)
def test_settings_are_read_as_every_editor_saves_them(tmp_path, encode):
    (tmp_path / "c.yaml").write_bytes(encode("# für mich\r\nsubject:\r\n  photos: p\r\n  class_noun: Hündin\r\n"))
    assert Config.load(tmp_path / "c.yaml").subject.class_noun == "Hündin"


def test_files_that_can_not_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="can't be read"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("subject: été".encode("latin-1"))
    with pytest.raises(ConfigError, match="can't be read"):
        read_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("train..steps=3", "is not KEY=VALUE"),
        ("train.steps=[1", "not valid YAML"),
        ("train.steps=2020-13-45", "not valid YAML"),
        ("train.step=3", "unknown key 'train.step'"),
        ("train.steps.x=3", "train.steps"),
        ("train=3", "train = 3"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, words):
    with pytest.raises(ConfigError) as caught:
        Config.load(written(tmp_path, "subject: {photos: p, class_noun: dog}\n"), [override])
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    key=st.sampled_from(["seed", "subject", "prior", "train", "sampling", "preset", "base_model", "steps"]),
)
def test_whatever_stands_in_the_file_the_answer_is_a_config_or_one_line(folder, value, key):
    """Nothing but `ConfigError` comes out, whatever is put in the place of a setting."""
    for settings in ({"subject": dict(SUBJECT), key: value}, {"subject": dict(SUBJECT), "train": {key: value}}):
        made, said = None, ""
        try:
            make_folders_absolute(settings, folder)
            made = Config.from_dict(settings)
        except ConfigError as error:
            said = str(error)
        assert len(said.splitlines()) == (0 if made else 1)
        if made:
            assert Config.load(written(folder, made.to_yaml())) == made


# ---- Who is in a prompt


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a photo of sks dog", True),
        ("sks", True),
        ("a dog, sks, on a beach", True),
        ("a photo of a backpack under two desks", False),
        ("sksville", False),
        ("a photo of a dog", False),
    ],
)
def test_a_prompt_names_a_subject_by_the_whole_word(prompt, named):
    assert config().subject.is_named_in(prompt) is named
    assert config().shows_subject(prompt) is named


def test_an_identifier_in_brackets_is_a_whole_word_too():
    subject = config(method="textual_inversion", subject=SUBJECT | {"identifier": "<sks>"}).subject
    assert subject.is_named_in("a photo of <sks> dog")
    assert not subject.is_named_in("a photo of sks dog")
    assert subject.without_identifier("a photo of <sks>  dog") == "a photo of dog"


def test_the_identifier_is_the_same_word_in_capitals_as_the_tokenizer_reads_it():
    subject = config(subject=SUBJECT | {"instance_prompt": "A photo of SKS, a Dog"}).subject
    assert subject.is_named_in("Sks's dog")
    assert subject.without_identifier("a SKS dog") == "a dog"
    assert not subject.is_named_in("DESKS, sks1, sks_dog")


def test_a_picture_of_several_subjects_or_of_the_class_counts_for_none():
    made = config(more_subjects=[SUBJECT | {"identifier": "ohwx"}])
    assert made.shows_subject("a photo of sks dog")
    assert not made.shows_subject("a photo of ohwx dog")
    assert not made.shows_subject("a photo of sks dog and ohwx dog")
    noun = config(subject=SUBJECT | {"identifier": "dog"})
    assert not noun.shows_subject(noun.class_prompt)


def test_more_examples_than_are_numbered_are_refused():
    subject, train = {"photos": "p", "class_noun": "cat"}, {"steps": 1_000_000, "batch_size": 256}
    Config.from_dict({"subject": subject, "train": train})
    with pytest.raises(ConfigError, match="batch_size is 65,536,000,000; 2,147,483,648 examples are numbered"):
        Config.from_dict({"subject": subject, "train": train | {"gradient_accumulation": 256}})
