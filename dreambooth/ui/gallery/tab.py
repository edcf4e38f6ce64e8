"""The gallery: models that were published from a studio, the visitor's own first, each a click away from drawing."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio as gr
from huggingface_hub import constants

from dreambooth.errors import DreamBoothError, HubError
from dreambooth.hub import Token, local_token, sign_in
from dreambooth.sharing.published import PublishedModel, list_published, published_sampling, thumbnail
from dreambooth.ui import QUIET, in_plain_words
from dreambooth.ui.doors import login
from dreambooth.ui.generate.tab import Form
from dreambooth.ui.inputs import said
from dreambooth.ui.models import shown_sampling
from dreambooth.ui.studio import Studio

SHOWN = 24
"""Models of each kind: the newest."""
FETCHING = 8
"""Thumbnails fetched at a time: as many connections as a browser opens to one host."""
FRESH = 600.0
"""Seconds for which the thumbnail of a public model serves everybody: it takes five requests, of which a server has a
thousand in five minutes."""
SHOWN_PROMPT = 140
"""Letters of a prompt on a card."""
LOOKING = "<div class='empty' role='status'>Looking at the Hub …</div>"
NOTHING = """<div class="empty"><strong>No models yet.</strong> What is published in the Publish tab, here or in another
studio, is shown in this place, for everybody once it is public.</div>"""
LOG_IN = """<p class="aside">Log in with the button at the top of the page to see your own, private ones too.</p>"""
CHOOSE = """element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-model]");
  if (button) trigger("click", {model: button.dataset.model, prompt: button.dataset.prompt});
});"""
"""Tells which model's button was clicked."""

Pictures = dict[str, str]
"""The data URI of each repo's thumbnail; empty where it has none."""


class Found(NamedTuple):
    """What the Hub lists."""

    own: list[PublishedModel]
    others: list[PublishedModel]
    notes: list[str]
    """What could not be listed, and why."""
    known: bool
    """Whether the Hub knows who looks."""


def build(studio: Studio, form: Form, tabs: gr.Tabs) -> dict[str, Any]:
    """Lay the tab out and wire it; `form` draws with what is chosen. Returns the arguments of the event that lists the
    models anew."""
    with gr.Row(elem_classes="gallery-head"):
        gr.HTML(
            "<p class='aside'>Models that were published from a studio like this one. A model is fetched when you "
            "first draw with it.</p>"
        )
        again = gr.Button("Look again", size="sm", scale=0, min_width=120)
    models = gr.HTML(LOOKING, elem_id="gallery", js_on_load=CHOOSE, apply_default_css=False)
    own = gr.State({})  # of this page alone, so that nobody sees what another's token fetched
    actions = Actions(studio)
    listing: dict[str, Any] = {
        "fn": actions.show,
        "inputs": own,
        "outputs": [models, own],
        "show_progress": "hidden",
        "api_visibility": "private",
        "concurrency_id": "gallery",
        "concurrency_limit": 4,
    }
    taken = models.click(chosen, None, [form.model, form.prompt, tabs], **QUIET)
    taken.then(actions.suit, form.model, [form.steps, form.guidance_scale], **QUIET)
    again.click(lambda: (LOOKING, {}), None, [models, own], **QUIET).then(**listing)
    gr.api(
        actions.gallery,
        api_name="gallery",
        concurrency_id="gallery",
        concurrency_limit=4,
        api_description="The models on the Hub that were published from a studio, newest first; with a token its "
        "account's own come first, `own` says which, private ones included. /generate takes their `repo_id`.",
    )
    return listing


def chosen(event: gr.EventData) -> tuple[str, Any, gr.Tabs]:
    """The model and the prompt of the card whose button was clicked, and the tab that draws with it."""
    return said(event, "model"), said(event, "prompt") or gr.skip(), gr.Tabs(selected="generate")


@dataclass(frozen=True)
class Actions:
    """What the tab does; `gallery` is a named endpoint."""

    studio: Studio
    public: dict[str, tuple[float, str]] = field(default_factory=dict)
    """The thumbnails of public models, fetched with nobody's token, and until when they are fresh."""

    @in_plain_words
    def gallery(self, token: gr.OAuthToken | None = None) -> list[dict[str, Any]]:
        """The models on the Hub, the caller's own first."""
        found = self._find(self._eyes(token))
        if found.notes and not (found.own or found.others):
            raise HubError(found.notes[0])
        named = [(True, model) for model in found.own] + [(False, model) for model in found.others]
        return [asdict(model) | {"url": url_of(model.repo_id), "own": own} for own, model in named]

    def show(self, own: Pictures, token: gr.OAuthToken | None = None) -> Iterator[tuple[str, Pictures]]:
        """The models as cards, and the pictures of the visitor's own: at once with the thumbnails that were fetched
        before, then with the others."""
        eyes = self._eyes(token)
        found = self._find(eyes)
        public = self._fresh(found)
        yield as_html(found, public | own, asks_login=login.offered()), own
        new_own = [model.repo_id for model in found.own if model.repo_id not in own]
        new_public = [model.repo_id for model in found.others if model.repo_id not in public]
        if new_own or new_public:
            own = own | _fetched(new_own, eyes)
            fetched = _fetched(new_public, False)
            self.public.update({repo_id: (time.monotonic() + FRESH, uri) for repo_id, uri in fetched.items()})
            yield as_html(found, public | fetched | own, asks_login=login.offered()), own

    def suit(self, model: str, token: gr.OAuthToken | None = None) -> tuple[Any, Any]:
        """The steps and guidance that a published model is best drawn with; nothing new where it does not tell."""
        eyes = login.reading_token(token, public=self.studio.public)
        try:
            return shown_sampling(published_sampling(model, eyes))
        except DreamBoothError:
            return gr.skip(), gr.skip()

    def _fresh(self, found: Found) -> Pictures:
        """What is known of the public models that the Hub lists at this moment, and of no other."""
        for repo_id, (until, _) in list(self.public.items()):
            if until < time.monotonic():
                self.public.pop(repo_id, None)
        listed = {model.repo_id for model in found.others}
        return {repo_id: uri for repo_id, (_, uri) in list(self.public.items()) if repo_id in listed}

    def _find(self, eyes: Token) -> Found:
        own: list[PublishedModel] = []
        others: list[PublishedModel] = []
        notes: dict[str, None] = {}
        try:
            if eyes:
                own = list_published(eyes, author=sign_in(eyes).name, limit=SHOWN)
        except DreamBoothError as error:
            notes[str(error)] = None
        try:
            others = list_published(False, limit=SHOWN)
        except DreamBoothError as error:
            notes[str(error)] = None
        mine = {model.repo_id for model in own}
        return Found(own, [model for model in others if model.repo_id not in mine], list(notes), bool(eyes))

    def _eyes(self, token: gr.OAuthToken | None) -> Token:
        """The token of who looks; False for nobody, also on a machine of one's own without one."""
        eyes = login.reading_token(token, public=self.studio.public)
        try:
            return local_token() if eyes is None else eyes
        except HubError:
            return False


def _fetched(repo_ids: Sequence[str], token: Token) -> Pictures:
    with ThreadPoolExecutor(FETCHING) as pool:
        return dict(zip(repo_ids, pool.map(lambda repo_id: _data_uri(repo_id, token), repo_ids), strict=True))


def _data_uri(repo_id: str, token: Token) -> str:
    """A model's thumbnail for the page, which asks no other host for it; empty where there is none."""
    try:
        picture = thumbnail(repo_id, token)
    except DreamBoothError:
        picture = None
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" if picture else ""


def url_of(repo_id: str) -> str:
    """A repo's page on the Hub."""
    return f"{constants.ENDPOINT}/{quote(repo_id)}"


# ------------------------------------------------------------------------------------------------------------- HTML


def as_html(found: Found, pictures: Pictures, *, asks_login: bool) -> str:
    """The cards, the visitor's own first, and what could not be listed."""
    parts = [f"<div class='empty' role='alert'>{html.escape(note)}</div>" for note in found.notes]
    if asks_login and not found.known:
        parts.append(LOG_IN)
    if found.own:
        parts.append(f"<h3 class='heading'>Yours</h3>{_cards(found.own, pictures)}")
    if found.others:
        parts.append(f"<h3 class='heading'>Everybody's</h3>{_cards(found.others, pictures)}")
    if not (found.own or found.others or found.notes):
        parts.append(NOTHING)
    return "".join(parts)


def _cards(models: Sequence[PublishedModel], pictures: Pictures) -> str:
    return f"<ul class='cards'>{''.join(_card(model, pictures.get(model.repo_id, '')) for model in models)}</ul>"


def _card(model: PublishedModel, picture: str) -> str:
    prompt = model.instance_prompt or ""
    told, url = html.escape(_cut(prompt)), html.escape(url_of(model.repo_id), quote=True)
    owner, _, name = model.repo_id.partition("/")
    seen = f"<img src='{picture}' alt='{html.escape(_cut(prompt), quote=True)}'>" if picture else "<span></span>"
    private = " <span class='chip'>private</span>" if model.private else ""
    data = f"data-model='{html.escape(model.repo_id, quote=True)}' data-prompt='{html.escape(prompt, quote=True)}'"
    facts = " ·</span> <span>".join(html.escape(fact) for fact in _facts(model))
    link = f"href='{url}' target='_blank' rel='noopener'"
    return (
        f"<li><a class='picture' {link} tabindex='-1' aria-hidden='true'>{seen}</a>"
        f"<h4><a {link}>{html.escape(name)}</a>{private}</h4>"
        f"<small>by {html.escape(owner)}</small>{f'<q>{told}</q>' if told else ''}<small><span>{facts}</span></small>"
        f"<button type='button' {data}>Generate</button></li>"
    )


def _facts(model: PublishedModel) -> Iterable[str]:
    if model.method:
        yield model.method
    if model.base_model:
        yield f"from {model.base_model.rpartition('/')[2]}"
    if model.downloads:
        yield _counted(model.downloads, "download")
    if model.likes:
        yield _counted(model.likes, "like")
    if model.updated:
        yield model.updated


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_PROMPT else f"{text[: SHOWN_PROMPT - 1]}…"
