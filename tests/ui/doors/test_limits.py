"""What a studio's owner may set, and what strangers may not ask of it."""

from pathlib import Path

import pytest

from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.ui.doors.limits import PUBLIC_CAPS, StudioSettings, is_person, refuse_too_much
from dreambooth.ui.studio import RECIPES
from tests.ui.doors.test_login import on_a_space


def subjects(count: int) -> list[dict]:
    return [{"photos": ".", "identifier": f"s{n}", "class_noun": f"thing {n}"} for n in range(count)]


def test_settings_are_read_from_the_environment(tmp_path: Path):
    plain = StudioSettings.from_environment({"HOME": "/", "DREAMBOOTH_CACHE": "x", "DREAMBOOTH_WORKERS": " "})
    assert plain == StudioSettings()
    assert (plain.public, plain.max_runs, plain.disk_gb, plain.max_steps) == (False, None, None, None)
    given = {"DREAMBOOTH_WORKERS": "2", "DREAMBOOTH_DISK_GB": "1.5", "DREAMBOOTH_RUNS": str(tmp_path)}
    asked = StudioSettings.from_environment(given)
    assert (asked.workers, asked.disk_gb, asked.runs, asked.max_queue) == (2, 1.5, tmp_path, None)


def test_a_space_is_public_and_limited_unless_it_is_said_otherwise():
    space = StudioSettings.from_environment({"SPACE_ID": "me/studio"})
    assert space == StudioSettings(public=True)
    assert None not in space.model_dump().values()
    assert not StudioSettings.from_environment({"SPACE_ID": "me/studio", "DREAMBOOTH_PUBLIC": "false"}).public
    lifted = StudioSettings.from_environment({"DREAMBOOTH_PUBLIC": "1", "DREAMBOOTH_MAX_RUNS": "None"})
    assert (lifted.public, lifted.max_runs, lifted.max_queue) == (True, None, space.max_queue)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"DREAMBOOTH_WORKERS": "0"}, r"DREAMBOOTH_WORKERS = '0': Input should be greater than or equal to 1"),
        ({"DREAMBOOTH_WORKERS": "none"}, r"DREAMBOOTH_WORKERS = 'none'"),
        ({"DREAMBOOTH_DISK_GB": "nan"}, r"DREAMBOOTH_DISK_GB = 'nan'"),
        (
            {"DREAMBOOTH_PUBLIC": "maybe", "DREAMBOOTH_MAX_RUNS": "2.5"},
            r"DREAMBOOTH_PUBLIC = 'maybe'.*MAX_RUNS = '2.5'",
        ),
        ({"DREAMBOOTH_MAX_RUN": "3"}, r"DREAMBOOTH_MAX_RUN is not a setting\. There are .*DREAMBOOTH_MAX_RUNS"),
    ],
)
def test_a_wrong_setting_is_named(given: dict, said: str):
    with pytest.raises(ConfigError, match=said) as caught:
        StudioSettings.from_environment(given)
    assert len(str(caught.value).splitlines()) == 1


def test_the_table_has_a_row_for_every_setting():
    table = StudioSettings.table()
    assert len(table) == len(StudioSettings.model_fields)
    assert table[0].startswith("| `DREAMBOOTH_BASE_MODEL` | `toybox` | the base model")
    assert any(row.startswith("| `DREAMBOOTH_MAX_STEPS` | `3000` if public | ") for row in table)
    assert all(row.count("|") == 4 for row in table)


def test_every_recipe_may_be_trained_on_a_public_space():
    settings = StudioSettings(public=True)
    for recipe in RECIPES:
        config = Config.from_dict({"preset": recipe, "subject": {"photos": ".", "class_noun": "dog"}})
        assert config.train.steps <= settings.max_steps
        assert config.prior.num_images <= settings.max_class_images
        wanted = config.model_dump()
        for name, most in PUBLIC_CAPS.items():
            section, key = name.split(".")
            assert wanted[section][key] <= most, name


def test_the_readme_lists_every_setting_of_the_studio():
    readme = (Path(__file__).parent.parent.parent.parent / "README.md").read_text()
    for row in StudioSettings.table():
        assert row in readme


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"train": {"batch_size": 256}}, "train.batch_size is 256, and this studio takes 8 at most"),
        ({"sampling": {"steps": 1000}}, "sampling.steps is 1000"),
        ({"sampling": {"prompts": ["a dog"] * 5}}, "The number of sampling.prompts is 5"),
        ({"lora": {"rank": 1024}}, "lora.rank is 1024, and this studio takes 64 at most"),
        ({"lora": {"targets": ["to_k"] * 17}}, "The number of lora.targets is 17"),
        ({"word": {"vectors": 16}}, "word.vectors is 16"),
        ({"more_subjects": subjects(4), "prior": {"enabled": False}}, "The number of subjects is 5, and .* 4 at most"),
        ({"more_subjects": subjects(3), "prior": {"num_images": 121}}, "for 5 class prompts together is 605"),
        ({"evaluation": {"dino": "facebook/dino-vits8"}}, "evaluation.dino can't be chosen on a public studio"),
        ({"evaluation": {"clip": "/etc"}}, "evaluation.clip can't be chosen on a public studio. Leave it out"),
        ({"prior": {"pack": "somebody/dogs"}}, "prior.pack can't be chosen on a studio of somebody else's"),
    ],
)
def test_no_stranger_keeps_a_public_studio_waiting_or_names_what_it_fetches(more: dict, said: str):
    asked = Config.from_dict({"preset": "toybox", "subject": {"photos": ".", "class_noun": "dog"}} | more)
    with pytest.raises(ConfigError, match=said):
        refuse_too_much(asked, StudioSettings(public=True))
    refuse_too_much(asked, StudioSettings())


def test_class_images_count_only_where_they_are_drawn():
    asked = {"preset": "toybox", "prior": {"enabled": False}, "more_subjects": subjects(3)}
    config = Config.from_dict(asked | {"subject": {"photos": ".", "class_noun": "dog"}})
    refuse_too_much(config, StudioSettings(public=True))


def test_nobody_who_logs_in_names_what_the_hosts_token_fetches(monkeypatch: pytest.MonkeyPatch):
    on_a_space(monkeypatch)
    settings = {"preset": "toybox", "subject": {"photos": ".", "class_noun": "dog"}, "prior": {"pack": "host/secret"}}
    with pytest.raises(ConfigError, match="can't be chosen on a studio of somebody else's"):
        refuse_too_much(Config.from_dict(settings), StudioSettings())


@pytest.mark.parametrize(
    ("noun", "person"),
    [
        ("person", True),
        ("Woman", True),
        ("old man", True),
        ("baby", True),
        ("girl's face", True),
        ("kids", True),
        ("Frau", True),
        ("junge Frau", True),
        ("femme", True),
        ("mujer", True),
        ("donna", True),
        ("mulher", True),
        ("vrouw", True),
        ("kobieta", True),
        ("žena", True),
        ("kvinna", True),
        ("nainen", True),
        ("Женщина", True),
        ("γυναίκα", True),
        ("kadın", True),
        ("nő", True),
        ("femeie", True),
        ("жінка", True),
        ("MÄDCHEN", True),
        ("madchen", True),
        ("garcon", True),
        ("nin\u0303o", True),
        ("no dog", False),
        ("barn", False),
        ("ember", False),
        ("Hund", False),
        ("chat", False),
        ("perro", False),
        ("kindle", False),
        ("dog", False),
        ("mankini", False),
        ("backpack", False),
        ("", False),
        ("2", False),
    ],
)
def test_people_are_known_by_the_class_noun(noun: str, person: bool):
    assert is_person(noun) is person
