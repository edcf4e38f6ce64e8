"""Publishing in threads: so many at a time, so many that wait, and each run once."""

from pathlib import Path

import pytest

from dreambooth.errors import RunError
from dreambooth.hub import sign_in
from dreambooth.sharing.publish import Publication, read_state
from dreambooth.ui import publishing
from dreambooth.ui.publishing import Publisher
from dreambooth.ui.studio import Studio
from tests.hub import LoopbackHub
from tests.ui import studios
from tests.ui.test_crowd import until


def test_so_many_are_published_at_a_time_and_the_others_wait(
    studio: Studio, photo_folder: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(publishing, "PARALLEL", 1)
    monkeypatch.setattr(publishing, "MOST", 2)
    publisher, account = Publisher(), sign_in(hub.add_user("anna"))
    first, second, third = (studios.finished_runs(studio, photo_folder)[0] for _ in range(3))
    slow = hub.fail("POST .*/commit/", "slow")
    publisher.submit(first, Publication(repo_id="first"), account)
    assert slow.arrived.wait(60)
    publisher.submit(second, Publication(repo_id="second"), account)
    with pytest.raises(RunError, match="2 runs are being published here"):
        publisher.submit(third, Publication(repo_id="third"), account)
    with pytest.raises(RunError, match="being published already"):
        publisher.submit(second, Publication(repo_id="second"), account)
    assert first in publisher
    assert second in publisher
    assert third not in publisher
    assert read_state(second.path) is None, "it waits"
    slow.released.set()
    until(lambda: first not in publisher and second not in publisher, "they are still being published")
    assert [read_state(run.path).state for run in (first, second)] == ["published"] * 2


def test_a_failure_of_any_kind_frees_the_thread_and_tells_no_token(
    studio: Studio, photo_folder: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, caplog
):
    monkeypatch.setattr(publishing, "PARALLEL", 1)
    publisher, token = Publisher(), hub.add_user("anna")
    account = sign_in(token)
    broken, damaged, whole = (studios.finished_runs(studio, photo_folder)[0] for _ in range(3))
    hub.fail("POST .*/repos/create", 500, times=9)
    publisher.submit(broken, Publication(repo_id="one"), account)
    until(lambda: broken not in publisher, "it is still being published")
    assert read_state(broken.path).state == "failed"
    hub.faults.clear()
    (damaged.path / "model" / "model_index.json").write_text(f'["{token}"]')  # which no training leaves
    publisher.submit(damaged, Publication(repo_id="two"), account)
    publisher.submit(whole, Publication(repo_id="three"), account)
    until(lambda: damaged not in publisher and whole not in publisher, "they are still being published")
    assert read_state(whole.path).state == "published"
    assert read_state(damaged.path).state == "failed"
    assert token not in caplog.text
