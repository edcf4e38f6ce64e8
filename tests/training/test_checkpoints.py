"""Checkpoints: what is restored, how many are kept, and that nothing half-written or foreign is taken."""

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from dreambooth.errors import RunError
from dreambooth.training.checkpoints import Checkpoint, list_checkpoints


def training(width: int = 4, ema: bool = False) -> Checkpoint:
    """A small training that has run no step yet."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(width, 3)), nn.Parameter(torch.randn(2, 2))]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    average = [torch.randn(width, 3), torch.randn(2, 2)] if ema else None
    return Checkpoint(weights, optimizer, schedule, None, average)


def advance(checkpoint: Checkpoint, steps: int) -> None:
    for _ in range(steps):
        loss = checkpoint.weights[0].square().sum() + checkpoint.weights[1].sum()
        loss.backward()
        checkpoint.optimizer.step()
        checkpoint.scheduler.step()
        checkpoint.optimizer.zero_grad()
        checkpoint.step += 1


def weights(checkpoint: Checkpoint) -> list[torch.Tensor]:
    return [p.detach().clone() for p in checkpoint.weights]


class FullDisk(io.BytesIO):
    """A file on a disk with room for 1,000 bytes."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_restored_training_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole = training()
    advance(whole, 5)
    first = training()
    advance(first, 3)
    path = first.save(tmp_path, keep=2)
    second = training()
    second.load(path)
    assert second.step == 3
    advance(second, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_the_moving_average_is_part_of_it(tmp_path):
    saved = training(ema=True)
    with torch.no_grad():
        saved.ema[0].fill_(7)
    restored = training(ema=True)
    restored.load(saved.save(tmp_path, keep=1))
    assert (restored.ema[0] == 7).all()


def test_only_the_newest_are_kept(tmp_path):
    checkpoint = training()
    for _ in range(5):
        advance(checkpoint, 1)
        checkpoint.save(tmp_path / "checkpoints", keep=2)
    assert names(tmp_path / "checkpoints") == ["step-000004", "step-000005"]
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-000004", "step-000005"]


def test_the_newest_is_the_one_with_most_steps_however_many_digits(tmp_path):
    checkpoint = training()
    for step in (999_999, 1_000_000):
        checkpoint.step = step
        checkpoint.save(tmp_path, keep=1)
    assert names(tmp_path) == ["step-1000000"]
    checkpoint.step = 999_998
    checkpoint.save(tmp_path, keep=5)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-999998", "step-1000000"]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoint = training()
    for _ in range(2):
        checkpoint.save(tmp_path, keep=2)
    assert names(tmp_path) == ["step-000000"]


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    """As a killed process leaves it: under its temporary name, or a folder without its file."""
    checkpoint = training()
    whole = checkpoint.save(tmp_path, keep=9)
    shutil.copytree(whole, tmp_path / ".dreambooth-partial-0123abcd-step-000004")
    (tmp_path / "step-000006").mkdir()
    (tmp_path / "step-000008").write_text("a file")
    assert list_checkpoints(tmp_path) == [whole]


def test_no_folder_means_no_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path / "none") == []


def test_a_full_disk_is_told_as_such_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    checkpoint = training()
    checkpoint.save(tmp_path, keep=1)
    advance(checkpoint, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda _path, _mode: FullDisk())
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoint.save(tmp_path, keep=1)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["step-000000"]
    training().load(tmp_path / "step-000000")


# ---- What can't be resumed


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"not a checkpoint at all",
        lambda data: data.replace(b"state_dict", b"xxxxx_dict").replace(b"OrderedDict", b"XxxxxxxXxxx"),
    ],
    ids=["empty", "half", "text", "foreign"],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    path = training().save(tmp_path, keep=1)
    file = path / "state.pt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunError) as caught:
        training().load(path)
    assert str(caught.value).startswith("step-000000 can't be resumed")
    assert str(caught.value).endswith("Remove that checkpoint, or train anew.")
    assert len(str(caught.value).splitlines()) == 1
    assert "\x1b" not in str(caught.value)


def test_a_checkpoint_of_other_weights_is_refused(tmp_path):
    path = training(width=4).save(tmp_path, keep=1)
    with pytest.raises(RunError, match="the weights have other shapes"):
        training(width=5).load(path)


def test_a_checkpoint_of_another_base_model_is_refused(tmp_path):
    saved, other = training(), training()
    saved.base, other.base = "one", "another"
    path = saved.save(tmp_path, keep=1)
    with pytest.raises(RunError, match="The base model has changed"):
        other.load(path)
    saved.load(path)


def test_a_checkpoint_without_the_average_that_is_asked_for_is_refused(tmp_path):
    path = training(ema=False).save(tmp_path, keep=1)
    with pytest.raises(RunError, match="can't be resumed"):
        training(ema=True).load(path)


def test_a_file_with_other_contents_is_refused(tmp_path):
    for number, contents in enumerate(([1, 2], {"step": 3}, {"weights": 1})):
        path = tmp_path / f"step-{number:06d}"
        path.mkdir()
        torch.save(contents, path / "state.pt")
        with pytest.raises(RunError, match=f"{path.name} can't be resumed"):
            training().load(path)
