"""A studio that trains nothing, what its Train tab does, and photos."""

from pathlib import Path

import gradio as gr
import pytest

from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import Config
from dreambooth.runs.directory import Run
from dreambooth.ui.photos import tab as photos_tab
from dreambooth.ui.studio import Studio
from dreambooth.ui.train import form as forms
from dreambooth.ui.train import tab as train
from dreambooth.ui.train.actions import Actions
from dreambooth.ui.train.estimate import Estimates
from dreambooth.ui.train.form import Choices
from dreambooth.ui.train.runs import Runs
from tests.ui.studios import finished_runs
from tests.ui.studios import studio as make_studio

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
EMPTY = Choices(*[None] * len(Choices._fields))


def config(**changes) -> Config:
    return Config.from_dict({"base_model": TOYBOX, "subject": {"photos": ".", "class_noun": "dog"}} | changes)


@pytest.fixture
def studio(tmp_path: Path, tiny_model: Path) -> Studio:
    return make_studio(tmp_path / "runs", tiny_model)


@pytest.fixture
def stocked(studio: Studio) -> Studio:
    """The same, which offers the toybox and Stable Diffusion 1.5 too."""
    studio.base_models.update({TOYBOX: TOYBOX, SD15: SD15})
    return studio


@pytest.fixture
def actions(studio: Studio) -> Actions:
    with gr.Blocks():
        return Actions(studio, forms.build(studio), Estimates(studio.settings))


@pytest.fixture
def runs(studio: Studio) -> Runs:
    with gr.Blocks():
        _, refresh = train.build(studio, gr.Textbox(), photos_tab.build(studio))
    return refresh["fn"].__self__


@pytest.fixture
def photos(photo_folder: Path) -> list[tuple[str, None]]:
    return [(str(path), None) for path in sorted(photo_folder.iterdir())]


@pytest.fixture
def word_run(actions: Actions, photo_folder: Path) -> Run:
    """A finished run of Anna's that has learned the word <zwx>."""
    [run] = finished_runs(
        actions.studio,
        photo_folder,
        method="textual_inversion",
        train={"text_encoder": False},
        subject={"identifier": "<zwx>", "class_noun": "cat"},
    )
    return run
