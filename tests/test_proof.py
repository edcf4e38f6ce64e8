"""The claim on which the product stands, on the toybox: prior preservation keeps a class what it was.

A study in small, trained and measured for real. `configs/toybox-study.yaml` is the same at full size.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.config.sections import EvaluationConfig
from dreambooth.evaluation.evaluate import BASE
from dreambooth.evaluation.reports import differences
from dreambooth.evaluation.study import StudyConfig, plan, run_study
from dreambooth.metrics.encoders import load_encoders
from dreambooth.metrics.metrics import Estimate, pairs

pytestmark = pytest.mark.slow

SUBJECTS = Path(__file__).parent.parent / "dreambooth" / "toybox" / "subjects"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A backpack trained without and with class images, and the base model, each measured."""
    folder = tmp_path_factory.mktemp("study")
    subject = {"name": "backpack", "photos": str(SUBJECTS / "backpack"), "class_noun": "backpack"}
    settings = {
        "base_model": "toybox",
        "prior": {"num_images": 40},
        "train": {"steps": 100, "sample_every": 0},
        "evaluation": {
            "prompts": ["a photo of {identifier} {class_noun} on a beach", "a photo of {identifier} {class_noun}"],
            "class_images": 16,
        },
    }
    study = StudyConfig(subjects=[subject], config=settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMBOOTH_CACHE", str(folder / "cache"))
        cells = plan(study, folder / "study")
        list(run_study(study, cells, folder / "study"))
    return [cell.evaluation for cell in cells]


def clearly(difference: Estimate) -> float:
    """The end of the interval that is nearer to zero; zero where it holds zero."""
    assert difference.low is not None
    assert difference.high is not None
    return max(difference.low, 0) + min(difference.high, 0)


def test_prior_preservation_keeps_the_class_from_becoming_the_subject(measured):
    """PRES falls by far with class images: without them every backpack becomes this one."""
    assert clearly(differences(measured, "with PPL", "without PPL")["pres"]) < -0.15
    assert clearly(differences(measured, "without PPL", BASE)["pres"]) > 0.2


def test_the_subject_is_learned_both_ways(measured):
    for condition in ("with PPL", "without PPL"):
        assert differences(measured, condition, BASE)["dino"].value > 0.15


def test_the_class_stays_varied(measured):
    """DIV among the pictures of the class prompt: without class images they are all of one backpack."""
    distance = load_encoders(EvaluationConfig(), "toybox", "cpu").perceptual

    def diversity(condition: str) -> float:
        folder = next(e.folder for e in measured if e.condition == condition)
        pictures = [Image.open(path).convert("RGB") for path in sorted((folder / "images").glob("class-*.png"))]
        return float(np.mean(distance.distances([(pictures[i], pictures[j]) for i, j in pairs(len(pictures))])))

    assert diversity("with PPL") > 1.2 * diversity("without PPL")
