"""What several commands take: the types of their arguments, and options alike in all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dreambooth.errors import ConfigError
from dreambooth.files import check_writable, named_path, refuse_taken
from dreambooth.quiet import quiet_third_parties

if TYPE_CHECKING:
    from dreambooth.config.settings import Config


def _given_as(param: click.Parameter | None, ctx: click.Context | None) -> str:
    """What messages call an option or an argument."""
    if isinstance(param, click.Argument) and ctx:
        return param.make_metavar(ctx)
    return param.opts[0] if param else ""


class PathType(click.ParamType[Path]):
    """A path that somebody gave; one that is `written` to, a folder or a file, is refused at once where that can't be,
    not after the work is done."""

    name = "path"

    def __init__(self, written: Literal["folder", "file"] | None = None):
        self.written = written

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Raises `ConfigError`, which names the option."""
        name = _given_as(param, ctx)
        path = named_path(value, name)
        if self.written:
            check_writable(path if self.written == "folder" else path.parent, name)
        return path


class ModelType(click.ParamType[str]):
    """A run, toybox, a folder or a Hub id; what could be a folder and a repo of the Hub is refused."""

    name = "model"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raises `ConfigError`, which names the option."""
        from dreambooth.config.names import which_model

        name = _given_as(param, ctx)
        if not value.strip():
            raise ConfigError(f"{name} is empty.", "Give a run, toybox, a folder or a Hub id.")
        return which_model(value, Path(), name)


MODEL = ModelType()
PATH, NEW_FOLDER, NEW_FILE = PathType(), PathType("folder"), PathType("file")


def not_taken(_context: click.Context, _option: click.Parameter, path: Path) -> Path:
    """Refuse a name that is taken before anything is loaded or downloaded."""
    refuse_taken(path)
    return path


def picture_file(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse, before the work is done, a name by which Pillow can't choose a format."""
    if path is not None and path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise click.BadParameter(f"{str(path)!r} does not end in .png, .jpg or .webp.")
    return path


WHICH = click.option(
    "--which",
    default="last",
    show_default=True,
    type=click.Choice(["last", "best"]),
    help="Of a run: the model of its last step, or of the step that measured best.",
)
SCALE = click.option("--scale", default=1.0, show_default=True, type=float, help="Strength of the adapter.")
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "no", "bf16", "fp16"]),
    help="Arithmetic; no is 32 bits (default: sampling.precision, which is the training's).",
)
BASE = click.option(
    "--base-model",
    metavar="FOLDER",
    type=MODEL,
    help="The adapter's base model, where that is a folder of this machine.",
)


def config_of(source: str, overrides: tuple[str, ...]) -> Config:
    """The settings in a file, or of a published model for hub:USER/NAME[@REVISION]."""
    from dreambooth.config.settings import Config

    if not source.startswith("hub:"):
        return Config.load(named_path(source, "CONFIG.yaml"), overrides)
    repo_id, at, revision = source.removeprefix("hub:").partition("@")
    if repo_id.count("/") != 1 or (at and not revision):
        raise ConfigError(f"{source!r} names no model.", "Write hub:USER/NAME, or hub:USER/NAME@REVISION.")
    quiet_third_parties()
    from dreambooth.sharing.published import published_config
    from dreambooth.training.prior import cache_root

    folder = cache_root().with_name("published") / repo_id.replace("/", "--")
    return published_config(repo_id, revision or None, None, folder, overrides)


def read_lines(path: Path, what: str) -> list[str]:
    """The prompts or captions in a file, a line each; raises `ConfigError` where there are none."""
    from dreambooth.files import read_text

    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.", f"Give a text file with a {what} a line.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read ({error}).", f"Give a text file with a {what} a line.") from None
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise ConfigError(f"{path}: holds no {what}.", f"Write a {what} a line.")
    return found
