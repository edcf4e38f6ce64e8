"""Every method with every family, for real on tiny models: training, resuming, saving and loading, and what is refused."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dreambooth import events
from dreambooth.adapters import fuse, is_adapter, load_model
from dreambooth.config import LEARNS_WORD
from dreambooth.families import FAMILIES, load_pipeline
from dreambooth.generate import draw, generate, open_source
from dreambooth.methods import get_method, methods
from dreambooth.runs import Run
from tests import tiny

NAMES = [method.name for method in methods()]
MODELS = {"Stable Diffusion 1.x/2.x": tiny.stable_diffusion}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family_model(request, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"family-{FAMILIES.index(request.param)}"
    return folder if folder.is_dir() else MODELS[request.param.name](folder)


@pytest.fixture
def configured(make_config, family_model):
    """A function that gives a method's quick config, of the family's tiny model."""

    def make(method: str, **changes):
        word = method in LEARNS_WORD or changes.get("word", {}).get("learned")
        given = {"base_model": str(family_model), "method": method, "train": {}, "subject": {}} | changes
        given["train"] = {"steps": 2, "text_encoder": method not in LEARNS_WORD} | given["train"]
        given["subject"] = {"identifier": "<sks>" if word else "sks"} | given["subject"]
        return make_config(**given)

    return make


def run(config, path, **options) -> list:
    return list(Run.create(config, path).execute(**options))


def weights(path) -> dict[str, torch.Tensor]:
    return {
        f"{f.name}/{k}": v for f in sorted((path / "model").rglob("*.safetensors")) for k, v in load_file(f).items()
    }


def pictures(pipe, config) -> torch.Tensor:
    images = draw(pipe, [config.instance_prompt, config.class_prompt], [3, 4], config.sampling)
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_resumed_saved_and_loaded(name, configured, tmp_path, family_model):
    config = configured(name, train={"steps": 4})
    happened = run(config, tmp_path / "whole")
    assert isinstance(happened[-1], events.Finished)
    part = Run.create(config, tmp_path / "part")
    seen = []
    for event in part.execute(should_stop=lambda: sum(isinstance(e, events.Step) for e in seen) >= 2):
        seen.append(event)
    assert part.status == "cancelled"
    list(part.execute(resume=True))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "part")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)

    model = tmp_path / "whole" / "model"
    assert is_adapter(model) == (get_method(name).load is not None)
    pipe, family = load_pipeline(family_model)
    base = pictures(pipe, config)
    again, _ = load_model(model, family_model)
    trained = pictures(again, config)
    assert trained[0] != base[0], "the subject's picture is another"
    drawn = next(generate(open_source(str(tmp_path / "whole")), [config.instance_prompt], num_images=1, seed=3))
    assert drawn[0].image.tobytes() == trained[0]
    if is_adapter(model):
        fuse(model, tmp_path / "fused", family_model)
        fused, _ = load_pipeline(tmp_path / "fused")
        close = [
            torch.frombuffer(bytearray(x), dtype=torch.uint8).int() for x in (pictures(fused, config)[0], trained[0])
        ]
        assert (close[0] - close[1]).abs().max() <= 1
