"""kill -9 at random moments of training, publishing and uploading: what is left, and what comes out in the end.

    python -m benchmarks.kills [--kills 20] [--seed 0]

Each job is first done once undisturbed, which tells how long it takes. Then a process begins it again and again and is
killed after a random part of that time. After each kill all that bears its own name must be whole. At the end the job
is done to its end: the training must come to the same weights, the model must be on the Hub, and of each upload there
is a whole run or none. What a power cut may leave is tested by tests/test_durability.py. Linux and macOS.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HUB = """
import json, sys, time
from pathlib import Path
from tests.hub import LoopbackHub
with LoopbackHub(Path(sys.argv[1])) as hub:
    token = hub.add_user("anna")
    print(json.dumps([token, hub.environment(token)]), flush=True)
    sys.stdin.read()
"""


def killed(job: Callable[[], object], seconds: float) -> bool:
    """Do the job in a process of its own that is killed after so long; whether it ended before."""
    sys.stdout.flush()
    if not (process := os.fork()):
        code = 1
        try:
            job()
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert status == 0, "it failed"
            return True
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def torment(
    what: str,
    job: Callable[[Path], object],
    look: Callable[[Path], object],
    work: Path,
    kills: int,
    dice: random.Random,
) -> tuple[Path, Path]:
    """Do the job undisturbed in one folder, and with kills in another, and look at that after each; gives both.

    What ends before it is killed is begun anew.
    """
    from tests.test_durability import check_whole

    whole, cut = work / f"{what}-whole", work / f"{what}-cut"
    cut.mkdir()
    for _ in range(2):  # the first one sets things up
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        tick = time.monotonic()
        assert killed(lambda: job(whole), 3600), f"{what} takes more than an hour"
        took = time.monotonic() - tick
    done = 0
    while done < kills:
        ended = killed(lambda: job(cut), took * dice.random())
        check_whole(cut)
        look(cut)
        if ended:
            shutil.rmtree(cut)
            cut.mkdir()
        done += not ended
    while not killed(lambda: job(cut), 3600):
        pass
    check_whole(cut)
    look(cut)
    left = list(cut.rglob(".dreambooth-*"))
    assert not left, left
    print(f"{what}: {kills} kills within {took:.1f} s; whole each time, and nothing is left over")
    return whole, cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-c", HUB, f"{folder}/hub"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as hub,
    ):
        token, environment = json.loads(hub.stdout.readline())
        os.environ.update(environment | {"OMP_NUM_THREADS": "1"})  # before anything reads them
        try:
            _torment_all(Path(folder), token, asked.kills, random.Random(asked.seed))
        finally:
            hub.stdin.close()


def _torment_all(work: Path, token: str, kills: int, dice: random.Random) -> None:
    from dreambooth import events
    from dreambooth.config.settings import Config
    from dreambooth.files import atomic_folder
    from dreambooth.hub import sign_in
    from dreambooth.quiet import quiet_third_parties
    from dreambooth.runs.directory import Run
    from dreambooth.runs.owners import new_owner
    from dreambooth.runs.worker import Worker
    from dreambooth.sharing.publish import Publication, publish, read_state
    from dreambooth.ui.doors.limits import StudioSettings
    from dreambooth.ui.studio import Studio
    from dreambooth.ui.train.start import start
    from tests import tiny
    from tests.test_durability import WEIGHTS

    quiet_third_parties()
    model, photos = tiny.stable_diffusion(work / "model"), tiny.photos(work / "photos", size=(1600, 1200))
    subject = {"photos": str(photos), "class_noun": "dog"}
    config = Config.from_dict(
        {
            "base_model": str(model),
            "device": "cpu",
            "subject": subject,
            "prior": {"num_images": 4, "steps": 2},
            "train": {"steps": 60, "batch_size": 1, "mixed_precision": "no", "checkpoint_every": 5, "sample_every": 20},
            "sampling": {"steps": 2, "num_images": 1},
            "evaluation": {"dino": "toybox", "clip": "toybox", "perceptual": "toybox"},
        }
    )

    def train(folder: Path) -> None:
        os.environ["DREAMBOOTH_CACHE"] = str(folder / "cache")
        run = Run(folder / "run")
        for _ in (run if (run.path / "config.yaml").exists() else Run.create(config, run.path)).execute(resume=True):
            pass

    def trained(folder: Path) -> None:
        assert Run(folder / "run").status in ("queued", "interrupted", "finished")

    whole, cut = torment("training", train, trained, work, kills, dice)
    assert (whole / "run" / WEIGHTS).read_bytes() == (cut / "run" / WEIGHTS).read_bytes()
    print("the same weights")

    def push(folder: Path) -> None:
        run = Run(folder / "run")
        if not run.path.exists():
            with atomic_folder(run.path) as partial:
                shutil.copytree(cut / "run", partial, dirs_exist_ok=True)
        wanted = Publication(repo_id=f"anna/{folder.name}")
        for _ in publish(run, wanted, sign_in(token)):
            pass

    def pushed(folder: Path) -> None:
        if (folder / "run").exists():
            state = read_state(folder / "run")
            assert state is None or state.state in ("interrupted", "published")
            assert Run(folder / "run").status == "finished"

    torment("publishing", push, pushed, work, kills, dice)
    owner, paths = new_owner(), sorted(map(str, photos.iterdir()))

    def studio(folder: Path) -> Studio:
        return Studio(folder, {"tiny": str(model)}, Worker(folder, parallel=0), StudioSettings())

    def upload(folder: Path) -> None:
        start(studio(folder), owner, {"base_model": str(model), "subject": {"class_noun": "dog"}}, paths, ways="two")

    def uploaded(folder: Path) -> None:
        opened = studio(folder)
        assert opened.damaged_runs(owner) == []
        for run in opened.own_runs(owner):
            assert isinstance(run.last_event(), events.RunQueued)
            assert len(list((run.path / "uploads").glob("*.png"))) == len(paths)

    torment("uploading", upload, uploaded, work, kills, dice)


if __name__ == "__main__":
    main()
