"""Full fine-tuning: the distance that a drift penalty holds small."""

import numpy as np
import pytest

from tests.methods import attached, method_settings


@pytest.mark.parametrize("text_encoder", [True, False])
def test_drift_is_the_squared_distance_of_all_that_is_trained(text_encoder, make_config):
    settings = method_settings("full", drift={"weight": 1.0}, train={"text_encoder": text_encoder})
    pipe, _, trainable = attached(make_config(**settings))
    assert trainable.drift().item() == 0
    parts = [pipe.unet, *([pipe.text_encoder] if text_encoder else [])]
    before = [p.detach().double().numpy().copy() for part in parts for p in part.parameters()]
    for number, parameter in enumerate(trainable.parameters):
        parameter.data += 0.01 * (number + 1)
    after = [p.detach().double().numpy() for part in parts for p in part.parameters()]
    wanted = sum(np.square(a - b).sum() for a, b in zip(after, before, strict=True))
    assert trainable.drift().item() == pytest.approx(wanted, rel=1e-5)
    trainable.drift().backward()
    for parameter, a, b in zip(trainable.parameters, after, before, strict=True):
        np.testing.assert_allclose(parameter.grad, 2 * (a - b), rtol=1e-4, atol=1e-6)


def test_no_distance_is_computed_where_none_is_asked_for(make_config):
    assert attached(make_config(**method_settings("full")))[2].drift is None
