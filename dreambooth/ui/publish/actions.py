"""What the fifth tab does: it lists what can be published, publishes it, and tells how that goes."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import gradio as gr
from pydantic import ValidationError

from dreambooth.config.names import TOYBOX, name_of
from dreambooth.errors import ConfigError, DreamBoothError, RunError
from dreambooth.files import shown_size
from dreambooth.generate import Which
from dreambooth.hub import check_repo_id, sign_in
from dreambooth.methods import get_method
from dreambooth.models.adapters import is_adapter
from dreambooth.runs.directory import Run
from dreambooth.sharing.publish import Publication, PublishState, read_state
from dreambooth.training.examples import TOGETHER
from dreambooth.ui import in_plain_words, models, served
from dreambooth.ui.doors import login
from dreambooth.ui.drawing import bar_html
from dreambooth.ui.report import Digests
from dreambooth.ui.studio import Studio, title

PICTURES = 4
"""Samples shown beside the list of what is published."""
NO_RUN = """<div class="empty"><strong>Nothing to publish yet.</strong> Train a subject first. Its model then becomes a
repo of yours on the Hugging Face Hub, with a model card, the settings that repeat it, its figures and pictures. Your
photos stay here unless you tick their box.</div>"""
LOG_IN = """<div class="empty"><strong>You are not logged in.</strong> Log in with the button at the top of the page: a
model is published in your own name, with the right to make repos and no other.</div>"""
BUTTONS = {None: "Publish", "published": "Publish again", "failed": "Try again", "interrupted": "Try again"}
"""What the button says, by the state of publishing."""
State = Literal["waiting", "uploading", "interrupted", "failed", "published"]
Visibility = Literal["private", "public"]


class Standing(NamedTuple):
    """How publishing a run stands."""

    run: str
    state: State | None = None
    """None for a run that was never published; `waiting` until a thread has begun."""
    about: PublishState | None = None


@dataclass(frozen=True)
class Actions:
    """What the tab does; `publish` and `publishing` are named endpoints."""

    studio: Studio
    shown: gr.HTML
    """What tells of the repo's contents."""
    digests: Digests = field(default_factory=Digests)

    @in_plain_words
    def publish(
        self,
        owner: str,
        run: str,
        repo: str,
        visibility: Visibility = "private",
        photos: bool = False,
        half: bool = False,
        which: Which = "last",
        consent: bool = False,
        token: gr.OAuthToken | None = None,
    ) -> str:
        """Let a thread publish a run in the name of who asks, and return the repo's id."""
        self.studio.own_run(owner, run)  # before anybody's name is asked of the Hub
        account = sign_in(login.acting_token(token, public=self.studio.public))
        repo_id = check_repo_id(repo or "", account)
        wanted = _publication(repo_id, visibility, photos, half, which)
        self.studio.publish(owner, run, wanted, account, consent=consent)
        return repo_id

    @in_plain_words
    def publishing(self, owner: str, run: str) -> dict[str, Any]:
        """How publishing a run of this visitor stands."""
        standing = self._standing(self.studio.own_run(owner, run))
        return (asdict(standing.about) if standing.about else {}) | {"state": standing.state}

    def _standing(self, run: Run) -> Standing:
        about = _state(run)
        state = about.state if about else None
        return Standing(run.id, "waiting" if run in self.studio.publisher and state != "uploading" else state, about)

    # -- the page

    def list_runs(self, owner: str, chosen: str | None, account: str) -> tuple[Any, ...]:
        """The visitor's finished runs; keeps the chosen one, else takes the newest."""
        runs = models.finished_runs(self.studio, owner)
        choices = [(models.label(run) + (" · published" if run.published else ""), run.id) for run in runs]
        first = models.first_choice(self.studio, runs)
        value = chosen if chosen in [run.id for run in runs] else first.id if first else None
        status = gr.skip() if runs else NO_RUN
        if value == chosen:  # not sent again: the page may have gone on meanwhile
            return gr.Dropdown(choices), gr.Column(visible=bool(runs)), status, *[gr.skip()] * 6
        prefilled = self.prefill(owner, value, account) if value else [gr.skip()] * 6
        return gr.Dropdown(choices, value=value), gr.Column(visible=bool(runs)), status, *prefilled

    def prefill(self, owner: str, run: str | None, account: str) -> tuple[Any, ...]:
        """What was asked for last time, else a name made of the subject's words; private, and the best model."""
        try:
            chosen = self.studio.own_run(owner, run)
        except DreamBoothError:  # still being typed
            return (gr.skip(),) * 6
        about = _state(chosen)
        repo = about.repo_id if about else self._free_name(owner, chosen, account)
        steps = models.best_and_last(chosen)
        choices = [(f"Best step ({steps['best']})", "best"), (f"Last step ({steps['last']})", "last")] if steps else []
        which = about.which if about else "best"
        return (
            repo,
            "public" if about and not about.private else "private",
            bool(about and about.photos),
            bool(about and about.half),
            gr.Radio(choices, value=which, visible=True) if steps else gr.Radio(value="last", visible=False),
            gr.Checkbox(False, visible=self.studio.asks_consent(chosen.config)),
        )

    def _free_name(self, owner: str, run: Run, account: str) -> str:
        """OWNER/NAME by the subject's words that none of the visitor's other runs was published as."""
        name = re.sub(r"[^a-z0-9]+", "-", title(run).lower()).strip("-")[:60] or "subject"
        others = (_state(other) for other in self.studio.own_runs(owner) if other.id != run.id)
        taken = {state.repo_id.rpartition("/")[2] for state in others if state}
        free = next(free for i in range(1, len(taken) + 2) if (free := f"{name}-{i}" if i > 1 else name) not in taken)
        return f"{account}/{free}" if account else free

    def who(self, account: str, repo: str, token: gr.OAuthToken | None = None) -> tuple[str, str, str]:
        """The account that publishes, asked from the Hub where it is not known yet, and the repo in its name."""
        if token is None and login.offered():
            return "", LOG_IN, repo
        try:
            account = account or sign_in(login.acting_token(token, public=self.studio.public)).name
        except DreamBoothError as error:  # said in its place: to look at a tab is no mistake
            return "", f"<div class='empty'>{html.escape(str(error))}</div>", repo
        told = f"<p class='aside'>You publish as <strong>{html.escape(account)}</strong>.</p>"
        return account, told, repo if "/" in (repo or "") or not repo else f"{account}/{repo}"

    def contents(self, owner: str, run: str | None, photos: bool, half: bool, which: Which) -> str:
        """What the repo will hold."""
        try:
            chosen = self.studio.own_run(owner, run)
            model = Path(models.finished_model(chosen, which))
        except DreamBoothError:
            return ""
        pictures = [served(self.shown, path) for path in self._pictures(chosen, which)]
        partner = self.studio.finished_partner(chosen)
        beside = partner.config.condition if partner else ""
        return contents_html(chosen, model, pictures, photos=photos, half=half, beside=beside)

    def _pictures(self, run: Run, which: Which) -> list[Path]:
        """What the chosen one of the run's models drew of the subject while it trained."""
        report = self.digests.report(run)
        of_subject = [picture for picture in report.pictures if picture.prompt in run.config.instance_prompts]
        steps = models.best_and_last(run)
        step = steps[which] if steps else max((picture.step for picture in of_subject), default=0)
        paths = [run.path / picture.path for picture in of_subject if picture.step == step]
        return [path for path in paths if path.is_file()][:PICTURES]

    def watch(self, owner: str, run: str | None, seen: Standing | None) -> tuple[Any, ...]:
        """How publishing the chosen run stands, where that changed since the page was told last."""
        if not run:
            return (gr.skip(),) * 3
        try:
            now = self._standing(self.studio.own_run(owner, run))
        except (DreamBoothError, FileNotFoundError):  # deleted meanwhile, or still being typed
            return (gr.skip(),) * 3
        if now == seen:
            return (gr.skip(),) * 3
        moving = now.state in ("waiting", "uploading")
        button = gr.Button("Publishing …" if moving else BUTTONS[now.state], interactive=not moving)
        return standing_html(now), button, now


def _state(run: Run) -> PublishState | None:
    """How publishing it stands; None also where that is damaged, and publishing again puts it right."""
    try:
        return read_state(run.path) or None
    except RunError:
        return None


def _publication(repo_id: str, visibility: Visibility, photos: bool, half: bool, which: Which) -> Publication:
    """What is asked for; raises `ConfigError` for values that a page never sends."""
    if visibility not in ("private", "public"):
        raise ConfigError(f"visibility is {visibility!r}.", "Say private or public.")
    try:
        return Publication(repo_id=repo_id, private=visibility == "private", photos=photos, half=half, which=which)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}.", "Take another.") from None


def standing_html(standing: Standing) -> str:
    """How publishing stands: a bar, the link, or why it failed."""
    about = standing.about
    if standing.state == "waiting":
        return f"<div class='live'>{bar_html('Getting ready to publish', 0)}</div>"
    if about is None:
        return ""
    repo = html.escape(about.repo_id)
    link = f"<a href='{html.escape(about.url, quote=True)}' target='_blank' rel='noopener'>{repo}</a>"
    if standing.state == "uploading":
        share = about.done / about.total if about.total else 0
        words = f"Uploading: {shown_size(about.done)} of {shown_size(about.total)}" if about.total else "Preparing"
        return f"<div class='live'><h3>{repo}</h3>{bar_html(words, share)}</div>"
    if standing.state == "published":
        chip = f"<span class='chip finished'>{'private' if about.private else 'public'}</span>"
        said = "It is on the Hub. Follow the link to its card, which shows the pictures and how to use it."
        return f"<div class='live'><h3>{link} {chip}</h3><p role='status'>{said}</p></div>"
    reason = html.escape(about.reason or "It was cut off when the program ended.")
    before = f"<p class='aside'>What was published before is still there: {link}</p>" if about.url else ""
    chip = "<span class='chip failed'>not published</span>"
    return f"<div class='live'><h3>{repo} {chip}</h3><p role='alert'>{reason}</p>{before}</div>"


def contents_html(run: Run, model: Path, pictures: Sequence[str], *, photos: bool, half: bool, beside: str = "") -> str:
    """What goes to the Hub and what stays here: some pictures, and a list. `beside` is the partner's condition."""
    config = run.config
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    about = f"about {shown_size(size / 2 if half else size)}"
    count = sum(path.parent.name != TOGETHER for path in (run.path / "photos").rglob("*.png"))
    compared = f"; {config.condition} and {beside} side by side" if beside else ""
    rows = [
        ("good", "A model card", "how to use it, how it was trained, what was measured, and its limits"),
        ("good", "Pictures", f"samples and the loss curve{compared}"),
        ("good", "The settings", "that repeat the training, without any path of a computer"),
        ("warning", f"Your {count} photos", "as cropped for training, for everybody who sees the repo")
        if photos
        else ("tip", f"Your {count} photos", "stay here"),
    ]
    if is_adapter(model):
        base = html.escape(name_of(config.base_model))
        told = f"{about}, to be put on {base}"
        rows.insert(0, ("good", f"The {get_method(config.method).title} weights", told))
        if "/" not in base and base != TOYBOX:
            rows.insert(1, ("warning", f"{base} stays here", "and without it nobody can use what is published"))
    else:
        rows.insert(0, ("good", "The model", f"as diffusers loads it, {about}"))
    items = "".join(f"<li class='{kind}'><strong>{what}</strong> {words}</li>" for kind, what, words in rows)
    prompt = html.escape(config.instance_prompt, quote=True)
    strip = "".join(f"<img src='gradio_api/file={quote(picture)}' alt='{prompt}'>" for picture in pictures)
    return (
        f"<h3 class='heading'>What goes to the Hub</h3>{f'<p class=strip>{strip}</p>' if strip else ''}"
        f"<ul class='findings'>{items}</ul>"
    )
