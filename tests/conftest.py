"""Shared fixtures: tiny models are built once, and nothing touches the user's own caches or runs."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing by more, and the bits depend on how many

import hypothesis
import pytest

from dreambooth.quiet import quiet_third_parties

quiet_third_parties()
hypothesis.settings.register_profile("no clock", deadline=None)  # its own is 200 ms, which a loaded machine may miss
hypothesis.settings.load_profile("no clock")

from dreambooth.config.settings import Config  # noqa: E402
from tests import tiny  # noqa: E402
from tests.hub import hub  # noqa: E402, F401 (the fixture of the loopback Hub)


def pytest_collection_finish():
    """Whoever collects garbage, as every training does, need not go through what the libraries hold for good."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker begins a long one when the other has nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A tiny ε-predicting Stable Diffusion pipeline's folder."""
    return tiny.stable_diffusion(tmp_path_factory.mktemp("models") / "tiny-sd")


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory):
    """Three small JPEGs."""
    return tiny.photos(tmp_path_factory.mktemp("photos") / "disc")


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DREAMBOOTH_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def make_config(tiny_model, photo_folder):
    """A function that gives a quick run's config, changed by nested keyword arguments."""

    def make(**changes) -> Config:
        settings = {
            "base_model": str(tiny_model),
            "device": "cpu",
            "subject": {"photos": str(photo_folder), "class_noun": "dog"},
            "prior": {"num_images": 4, "steps": 2},
            "train": {
                "steps": 4,
                "learning_rate": 1e-3,
                "batch_size": 2,
                "mixed_precision": "no",
                "checkpoint_every": 2,
                "sample_every": 0,
            },
            "word": {"templates": ["a photo of a {identifier}"]},  # the tiny model spells most words out, and reads 14
            "sampling": {"steps": 2, "num_images": 1, "prompts": []},
            "evaluation": {"dino": "toybox", "clip": "toybox", "perceptual": "toybox"},
        }
        for key, value in changes.items():
            settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
        return Config.from_dict(settings)

    return make
