"""What is told of a training before it starts."""

import pytest

from dreambooth.errors import ModelError
from dreambooth.training.preflight import Estimate
from dreambooth.ui.doors.limits import StudioSettings
from dreambooth.ui.studio import Studio
from dreambooth.ui.train import estimate
from dreambooth.ui.train.estimate import Estimates
from tests.ui.train.conftest import SD15


@pytest.mark.parametrize(
    ("count", "shown"), [(512, "512"), (158_720, "158,720"), (999_999, "999,999"), (5_242_800, "5.2 M")]
)
def test_fewer_than_a_million_weights_are_written_out(count: int, shown: str):
    told = estimate.as_html(Estimate(10**9, "train", {}, {}, count, 648_000, 60.0, 128, False, "no"))
    assert f"<p>{shown} weights trained at 128 px in 32 bits. Roughly" in told
    assert "<dt>File</dt><dd>648 kB</dd>" in told


def test_no_base_model_is_downloaded_for_an_estimate(studio: Studio):
    settings = {"preset": "sd15-object", "base_model": SD15}
    with pytest.raises(ModelError, match="is not on this machine yet"):
        Estimates(StudioSettings()).of(settings)
