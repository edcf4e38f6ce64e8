"""Commands about the Hub: models, class images, and who an account is in the studio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dreambooth import events
from dreambooth.cli.console import Console
from dreambooth.cli.options import PATH, WHICH, config_of
from dreambooth.files import runs_root
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs import owners

if TYPE_CHECKING:
    from dreambooth.generate import Which


@click.command()
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option("--repo-id", required=True, metavar="[OWNER/]NAME", help="The model repo on the Hub to make or renew.")
@click.option("--public", is_flag=True, help="Let everybody see it (default: its owner alone).")
@click.option("--photos", is_flag=True, help="With the subject's photos, as cropped for training.")
@click.option("--half", is_flag=True, help="Weights in 16 bits: half the size.")
@WHICH
@click.option(
    "--partner",
    metavar="RUN",
    type=PATH,
    help="The run that differs in what keeps its class alone (PPL, drift penalty): the card shows both.",
)
def push(
    run_dir: Path,
    repo_id: str,
    public: bool,
    photos: bool,
    half: bool,
    which: Which,
    partner: Path | None,
) -> None:
    """Publish a finished run as a model repo on the Hub, with a card.

    Log in first with `hf auth login`, or set HF_TOKEN. After a failure the same command goes on where it stopped.
    """
    quiet_third_parties()
    from dreambooth.hub import local_token, sign_in
    from dreambooth.runs.directory import Run
    from dreambooth.sharing.publish import Publication, publish

    run, other = Run.open(run_dir), Run.open(partner) if partner else None
    wanted = Publication(repo_id=repo_id, private=not public, photos=photos, half=half, which=which)
    console = Console()
    for event in publish(run, wanted, sign_in(local_token()), partner=other):
        console.show(event)
        if isinstance(event, events.Published):
            click.echo(f"Published: {event.url} ({'public' if public else 'private'})")


@click.group("class-images")
def class_images() -> None:
    """Share class images, so that nobody draws the same ones twice."""


_PACK_OPTIONS = (
    click.argument("config_file", metavar="CONFIG.yaml", type=PATH),
    click.option("--repo-id", required=True, metavar="USER/NAME", help="The dataset repo on the Hub."),
    click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting."),
)


def _of_a_pack(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with what both of the group take."""
    for option in reversed(_PACK_OPTIONS):
        command = option(command)
    return command


@class_images.command("push")
@_of_a_pack
@click.option("--public", is_flag=True, help="Let everybody read it (default: its owner alone).")
def push_class_images(config_file: Path, repo_id: str, overrides: tuple[str, ...], public: bool) -> None:
    """Publish the class images that a training with CONFIG.yaml drew, as a small dataset."""
    config = config_of(str(config_file), overrides)
    quiet_third_parties()
    from dreambooth.hub import check_repo_id, local_token, sign_in
    from dreambooth.training.packs import publish_pack

    account = sign_in(local_token())
    click.echo(publish_pack(config, check_repo_id(repo_id, account), account, private=not public))


@class_images.command("fetch")
@_of_a_pack
def fetch_class_images(config_file: Path, repo_id: str, overrides: tuple[str, ...]) -> None:
    """Fetch the class images that a training with CONFIG.yaml would draw."""
    config = config_of(str(config_file), overrides)
    quiet_third_parties()
    from dreambooth.training import prior
    from dreambooth.training.packs import fetch_pack, pack_key

    key, wanted = pack_key(config), config.prior.num_images
    for said in prior.drop_damaged(prior.cache_folder(key), wanted, int(key["resolution"])):
        click.echo(said, err=True)
    fetched = fetch_pack(repo_id, key, wanted)
    lacking = len(prior.missing_images(prior.cache_folder(key), wanted))
    click.echo(f"{fetched} class images fetched" + (f"; training draws the other {lacking}." if lacking else "."))


@click.command()
@click.argument("account")
def rotate(account: str) -> None:
    """Give the runs of a Hugging Face account in this studio another owner id.

    The account goes on seeing them; an id that somebody may have got hold of opens nothing any more.
    """
    quiet_third_parties()

    owners.rotate(account, runs_root())
    click.echo(f"The runs of {account} have another owner id now.")
