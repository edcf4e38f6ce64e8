"""What `pip install .` gives: everything the program needs, and its command, away from the checkout."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import dreambooth
from dreambooth.runs.directory import Run

pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since building leaves its folders where it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(CHECKOUT / name, source)
    shutil.copytree(CHECKOUT / "dreambooth", source / "dreambooth", ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", out)
    return next(out.glob("*.whl"))


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path for path in (CHECKOUT / "dreambooth").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert packed == {path.relative_to(CHECKOUT).as_posix() for path in files}
    assert any(name.endswith("toybox/model/unet/diffusion_pytorch_model.safetensors") for name in packed)


def test_the_installed_command_trains_away_from_the_checkout(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = next((tmp_path / "venv").glob("[Bb]in/python*"))
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    # The libraries are the ones that the tests run with: their folder comes after the environment's own.
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    installed = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (installed / "libraries.pth").write_text("\n".join(libraries))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: object) -> str:
        done = subprocess.run(
            [python.parent / command[0], *map(str, command[1:])],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("dreambooth", "--version") == f"dreambooth, version {dreambooth.__version__}\n"
    package = Path(run(python.name, "-c", "import dreambooth; print(dreambooth.__file__)").strip()).parent
    assert package == installed / "dreambooth"
    settings = f"subject: {{photos: {package}/toybox/subjects/bear, identifier: sks, class_noun: bear}}\n"
    (elsewhere / "bear.yaml").write_text(settings + "prior: {enabled: false}\ntrain: {steps: 1, sample_every: 0}\n")
    run("dreambooth", "train", "bear.yaml", "--run-dir", "bear")
    assert Run.open(elsewhere / "bear").status == "finished"
