"""The training loop: exact after every interruption, and an optimiser that does what its paper says."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dreambooth.toybox.pretrain import fit as fitting
from dreambooth.toybox.pretrain.fit import Ema, Muon, fit, learning_rate, orthogonalise

SETTINGS = dict(batch=4, lr=1e-2, final_lr=1e-4, decay_from=0.5)


class Toy(nn.Module):
    """A matrix and a bias that are trained, a frozen copy that follows them, and a buffer that the loss changes."""

    def __init__(self):
        super().__init__()
        self.trained = nn.Linear(3, 2)
        self.follower = copy.deepcopy(self.trained).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(2))


def fit_toy(work, *, samples=240, fail_at=None, **settings):
    torch.manual_seed(0)
    module = Toy()

    def loss(numpy_rng, torch_rng, progress):
        if fail_at is not None and progress >= fail_at:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, generator=torch_rng)
        with torch.no_grad():
            target = module.follower(x) + x[:, :2] * numpy_rng.random() - module.centre
            module.centre.lerp_(target.mean(0), 0.1)
        return (module.trained(x) - target).square().mean()

    @torch.no_grad()
    def follow(progress):
        for p, q in zip(module.follower.parameters(), module.trained.parameters()):
            p.lerp_(q, 0.1 * (1 - progress))

    averaged = fit("toy", module, loss, work, samples=samples, after_step=follow, **SETTINGS | settings)
    return module, averaged


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)  # after every step
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, whole_average = fit_toy(tmp_path / "whole")
    for fail_at in (0.3, 0.8):
        with pytest.raises(KeyboardInterrupt):
            fit_toy(tmp_path / "parts", fail_at=fail_at)
    parts, parts_average = fit_toy(tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    for ours, theirs in zip(whole_average.parameters(), parts_average.parameters()):
        assert torch.equal(ours, theirs)


def test_a_finished_training_is_not_repeated(tmp_path):
    _, averaged = fit_toy(tmp_path)
    _, again = fit_toy(tmp_path, fail_at=0)
    assert torch.equal(averaged.trained.weight, again.trained.weight)


def test_a_longer_training_goes_on_from_before_the_decay(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    fit_toy(tmp_path)
    seen = []

    def watch(progress, *arguments):
        seen.append(progress)
        return 1e-3

    monkeypatch.setattr(fitting, "learning_rate", watch)
    fit_toy(tmp_path, samples=480)
    assert round(seen[0] * 120) == 30, "half of the first training's 60 steps"


def test_a_branch_begins_where_the_trunk_is_and_leaves_it_alone(tmp_path):
    """Its weights, its average and both optimisers."""
    fit_toy(tmp_path, samples=40, decay_from=1.0)
    kept = torch.load(tmp_path / "toy.pt", weights_only=True)
    trunk = (tmp_path / "toy.pt").rename(tmp_path / "trunk.pt")
    (tmp_path / "toy-constant.pt").unlink()
    before = trunk.read_bytes()
    module, averaged = fit_toy(tmp_path, samples=0, start=trunk, decay_from=0.0)
    for key, value in kept["module"].items():
        assert torch.equal(module.state_dict()[key], value), key
        assert torch.equal(averaged.state_dict()[key], kept["ema"][key]), key
    fit_toy(tmp_path, samples=4, start=trunk, decay_from=0.0)
    branch = torch.load(tmp_path / "toy.pt", weights_only=True)
    assert branch["step"] == 1, "counted from its beginning"
    assert branch["optimizers"][1]["state"][0]["step"] == kept["optimizers"][1]["state"][0]["step"] + 1
    muons = [state["optimizers"][0]["state"][0]["average"] for state in (kept, branch)]
    assert 0.5 < torch.cosine_similarity(muons[0].flatten(), muons[1].flatten(), dim=0) < 1, "goes on from the trunk's"
    assert trunk.read_bytes() == before


def test_a_killed_branch_goes_on_from_its_own_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    fit_toy(tmp_path, samples=40, decay_from=1.0)
    trunk = (tmp_path / "toy.pt").rename(tmp_path / "trunk.pt")
    (tmp_path / "toy-constant.pt").unlink()
    whole = fit_toy(tmp_path, samples=80, start=trunk, decay_from=0.0)[0]
    (tmp_path / "toy.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        fit_toy(tmp_path, samples=80, start=trunk, decay_from=0.0, fail_at=0.5)
    steps = []
    monkeypatch.setattr(fitting, "learning_rate", lambda *given: steps.append(given[0]) or learning_rate(*given))
    parts = fit_toy(tmp_path, samples=80, start=trunk, decay_from=0.0)[0]
    assert steps[0] == 0.5, "not from its beginning"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_a_gradient_that_is_not_finite_stops_it(tmp_path):
    module = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="not finite"):
        fit("toy", module, lambda *_: module(torch.ones(1, 1)).sum() * float("nan"), tmp_path, samples=8, **SETTINGS)


def test_frozen_weights_and_unseen_words_stay_as_they_are(tmp_path):
    torch.manual_seed(0)
    module = nn.ModuleDict({"words": nn.Embedding(5, 4), "out": nn.Linear(4, 1), "frozen": nn.Linear(2, 2)})
    module["frozen"].requires_grad_(False)
    before = copy.deepcopy(module.state_dict())

    def loss(numpy_rng, torch_rng, progress):
        return (module["out"](module["words"](torch.tensor([0, 1, 2]))) - 3).square().mean()

    averaged = fit("toy", module, loss, tmp_path, samples=80, weight_decay=0.5, **SETTINGS)
    for after in (module.state_dict(), averaged.state_dict()):
        assert torch.equal(after["frozen.weight"], before["frozen.weight"])
        assert torch.equal(after["words.weight"][3:], before["words.weight"][3:])
        assert (after["words.weight"][:3] != before["words.weight"][:3]).all()


def test_learning_rate_warms_up_holds_and_decays():
    rates = [learning_rate(p, 1.0, 0.1, 0.5) for p in (0.0, 0.01, 0.49, 0.75, 1.0)]
    assert rates[0] < 0.1
    assert rates[1:3] == [1.0, 1.0]
    assert rates[3] == pytest.approx(0.55)
    assert rates[4] == pytest.approx(0.1)


def test_the_moving_average_forgets_the_random_start():
    module = nn.Linear(1, 1)
    average = Ema(module, 0.999)
    expected = average.module.weight.item()
    for step in range(1, 6):
        with torch.no_grad():
            module.weight.fill_(step)
        average.update(module, step)
        decay = min(0.999, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.module.weight.item() == pytest.approx(expected)
    assert average.module.weight.item() > 3


# -------------------------------------------------------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(3, 24, 60), (2, 60, 24), (1, 40, 40)])
def test_orthogonalising_keeps_the_singular_vectors_and_levels_the_values(shape):
    rng = np.random.default_rng(0)
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    values = rng.uniform(0.1, 1.0, u.shape[:1] + u.shape[2:])
    made = orthogonalise(torch.from_numpy((u * values[:, None]) @ vt).float()).numpy()
    levelled = np.linalg.svd(made, compute_uv=False)
    assert levelled.min() > 0.6
    assert levelled.max() < 1.25
    seen_from_inside = u.mT @ made @ vt.mT  # diagonal where the singular vectors are the same
    diagonal = np.diagonal(seen_from_inside, axis1=1, axis2=2)
    assert diagonal.min() > 0.6
    rest = seen_from_inside - diagonal[:, None] * np.eye(diagonal.shape[1])
    assert np.abs(rest).max() < 0.08
    cosine = (made * (u @ vt)).sum((1, 2)) / np.linalg.norm(made, axis=(1, 2)) / np.linalg.norm(u @ vt, axis=(1, 2))
    assert cosine.min() > 0.97


def newton_schulz(matrix):
    """The textbook's loop for one matrix, in float64."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x


def test_muon_steps_as_a_plain_loop_does():
    rng, lr, momentum, decay = np.random.default_rng(1), 0.02, 0.95, 0.1
    shapes = [(6, 4), (6, 4), (5, 3, 2, 2), (4, 9)]
    values = [rng.normal(size=shape) for shape in shapes]
    parameters = [nn.Parameter(torch.from_numpy(v).float()) for v in values]
    muon = Muon(parameters, lr, momentum, decay)
    averages = [np.zeros(shape) for shape in shapes]
    for _ in range(3):
        gradients = [rng.normal(size=shape) for shape in shapes]
        for p, gradient in zip(parameters, gradients):
            p.grad = torch.from_numpy(gradient).float()
        muon.step()
        for i, gradient in enumerate(gradients):
            averages[i] = momentum * averages[i] + (1 - momentum) * gradient
            ahead = ((1 - momentum) * gradient + momentum * averages[i]).reshape(len(gradient), -1)
            update = newton_schulz(ahead) * 0.2 * max(ahead.shape) ** 0.5
            values[i] = values[i] * (1 - lr * decay) - lr * update.reshape(gradient.shape)
    for p, value in zip(parameters, values):
        np.testing.assert_allclose(p.detach().numpy(), value, atol=3 * lr * 0.02)  # a bf16 step is right to 2 %


def test_muon_decays_weights_and_passes_over_those_without_a_gradient():
    decayed, idle = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    muon = Muon([decayed, idle], lr=0.1, weight_decay=0.5)
    decayed.grad = torch.zeros(3, 4)
    for _ in range(2):
        muon.step()
    torch.testing.assert_close(decayed.data, torch.full((3, 4), 0.95**2))
    assert (idle == 1).all()
