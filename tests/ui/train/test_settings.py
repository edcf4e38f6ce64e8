"""The settings as fields, each by its type, and what a field shows as a setting again."""

import gradio as gr
import pytest

from dreambooth.errors import ConfigError
from dreambooth.ui.train import settings
from dreambooth.ui.train.settings import Setting, all_settings, further_settings, value_of
from tests.ui.train.conftest import config


def setting(key: str) -> Setting:
    return next(s for s in all_settings() if s.key == key)


@pytest.mark.parametrize(
    ("key", "shown", "taken"),
    [
        ("train.betas", "0.8, 0.99", (0.8, 0.99)),
        ("train.betas", "0.8 0.99", (0.8, 0.99)),
        ("train.betas", " ", (0.9, 0.999)),
        ("train.resolution", "96", 96),
        ("train.resolution", "", "auto"),
        ("train.gradient_checkpointing", "off", False),
        ("train.gradient_checkpointing", "auto", "auto"),
        ("train.snr_gamma", "", None),
        ("train.snr_gamma", None, None),
        ("train.snr_gamma", "5", 5.0),
        ("train.batch_size", None, 4),
        ("sampling.prompts", "a {class_noun}\n\n two \n", ["a {class_noun}", "two"]),
        ("sampling.prompts", "", []),
        ("lora.targets", " to_k\nto_v ", ["to_k", "to_v"]),
        ("lora.targets", "", None),
        ("lora.alpha", "", None),
        ("sampling.scheduler", "ddim", "ddim"),
        ("train.flip", True, True),
        ("device", "cpu", "cpu"),
    ],
)
def test_what_a_field_shows_becomes_the_setting(key: str, shown: object, taken: object):
    made = config(**settings.nested([(setting(key), shown)]))
    assert value_of(made, key) == taken
    assert value_of(config(**settings.nested([(setting(key), setting(key).shown(taken))])), key) == taken


@pytest.mark.parametrize(
    ("key", "kind", "label", "ends"),
    [
        ("train.flip", gr.Checkbox, "Flip", "have a side."),
        ("train.optimizer", gr.Dropdown, "Optimizer", "on SD 1.5."),
        ("train.batch_size", gr.Number, "Batch size", "(1 to 256)"),
        ("train.ema_decay", gr.Textbox, "EMA decay", "(above 0 to below 1)"),
        ("train.max_grad_norm", gr.Number, "Largest gradient norm", "(above 0)"),
        ("train.betas", gr.Textbox, "Betas", "paper."),
        ("train.lr_schedule", gr.Dropdown, "Learning rate schedule", "Source: paper."),
        ("train.warmup_steps", gr.Number, "Warmup steps", "(0 or more)"),
    ],
)
def test_a_field_suits_its_type_and_says_what_it_is(key: str, kind: type, label: str, ends: str):
    with gr.Blocks():
        field = setting(key).component(value_of(config(), key))
    assert type(field) is kind
    assert field.label == label
    assert field.info.endswith(ends)


def test_out_of_range_is_refused_in_a_sentence_that_names_the_setting():
    with pytest.raises(ConfigError, match=r"train\.batch_size = 0"):
        config(**settings.nested([(setting("train.batch_size"), 0)]))


def test_the_accordion_holds_the_settings_of_the_methods_by_itself():
    assert {s.key.split(".")[0] for s in further_settings() if "." in s.key} == {
        "prior",
        "lora",
        "word",
        "train",
        "sampling",
        "evaluation",
    }
    assert {s.key for s in further_settings()} >= {
        "lora.rank",
        "lora.alpha",
        "lora.dropout",
        "lora.dora",
        "lora.targets",
        "word.vectors",
        "word.initializer",
    }
