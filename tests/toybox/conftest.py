"""A work directory with very few pictures, and one in which every part has been trained on them."""

import shutil

import pytest
import torch

from dreambooth.toybox.pretrain import base, data, encoders, export, vae
from dreambooth.toybox.pretrain.judge import train_judge

CPU = torch.device("cpu")


def few(monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 6)
    monkeypatch.setattr(vae, "CHUNK", 6)
    monkeypatch.setattr(vae, "TEXTURES", 4)


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    few(monkeypatch)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """Twelve pictures in two chunks; not to be written to."""
    folder = tmp_path_factory.mktemp("rendered")
    with pytest.MonkeyPatch.context() as monkeypatch:
        few(monkeypatch)
        data.render_pictures(folder, 12, processes=1)
    return folder


@pytest.fixture
def work(rendered, tmp_path):
    """A work directory of one's own, with twelve pictures."""
    return shutil.copytree(rendered, tmp_path / "work")


@pytest.fixture(scope="session")
def trained(rendered, tmp_path_factory):
    """A work directory after two steps of every part; not to be written to."""
    folder = shutil.copytree(rendered, tmp_path_factory.mktemp("trained") / "work")
    with pytest.MonkeyPatch.context() as monkeypatch:
        few(monkeypatch)
        vae.train_vae(folder, 4, CPU, batch=2)
        vae.encode_latents(folder, CPU)
        base.train_base(folder, 8, CPU, batch=4)
        base.anneal_base(folder, 8, CPU, batch=4)
        vae.train_decoder(folder, 4, CPU, batch=2)
        encoders.train_clip(folder, 8, CPU, batch=4)
        encoders.train_vit(folder, 4, CPU, batch=2)
    return folder


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """What ships of it: `model` and `encoders`."""
    folder = tmp_path_factory.mktemp("exported")
    export.export(trained, folder)
    return folder


@pytest.fixture(scope="session")
def judged(rendered, tmp_path_factory):
    """A work directory whose judge has learned its twelve pictures by heart; not to be written to."""
    folder = shutil.copytree(rendered, tmp_path_factory.mktemp("judged") / "work")
    with pytest.MonkeyPatch.context() as monkeypatch:
        few(monkeypatch)
        train_judge(folder, 960, CPU, batch=16)
    return folder
