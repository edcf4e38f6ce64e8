"""The fifth tab: a finished run becomes a model repo on the Hub, and how that goes, live or over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from dreambooth.ui import QUIET, models
from dreambooth.ui.publish.actions import NO_RUN, Actions
from dreambooth.ui.studio import Studio

POLL = 1.0
"""Seconds between looks at how publishing goes."""
PHOTOS_HELP = "As cropped for training, without place, camera or file name. Nobody can repeat the training without."
HALF_HELP = "Weights of 16 bits: half the size and the upload, and pictures that hardly differ."
VISIBILITY_HELP = "Private: you alone, and whom you let in on the Hub. You can change it there at any time."
CONSENT_HELP = "For children their guardians do. Without it no model of people is published from here."


@dataclass(frozen=True)
class Form:
    """What is asked for, in the order in which `publish` takes it."""

    run: gr.Dropdown
    repo: gr.Textbox
    visibility: gr.Radio
    photos: gr.Checkbox
    half: gr.Checkbox
    which: gr.Radio
    consent: gr.Checkbox


@dataclass(frozen=True)
class Shown:
    """What tells of the run that is chosen."""

    status: gr.HTML
    button: gr.Button
    seen: gr.State
    """The `Standing` that the page shows."""


class Events(NamedTuple):
    """Arguments of events that fill the tab."""

    list_runs: dict[str, Any]
    sign_in: dict[str, Any]
    """Asks the Hub who publishes, where that is not known yet; for when the tab is looked at."""


def build(studio: Studio, owner: gr.Component, account: gr.Component) -> Events:
    """Lay the tab out and wire it; `account` holds the name of who is logged in, empty while it is not known."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=2, min_width=300, visible=False) as asked:
            form = _form()
            who = gr.HTML(elem_id="publisher")
            button = gr.Button("Publish", variant="primary", elem_id="publish")
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(NO_RUN, elem_id="publish-status", apply_default_css=False)
            contents = gr.HTML(elem_id="publish-contents", apply_default_css=False)
    shown = Shown(status, button, gr.State(None))
    actions = Actions(studio, contents)
    repo_id = gr.Textbox(visible=False, label="repo id")
    watch = {"fn": actions.watch, "inputs": [owner, form.run, shown.seen], "outputs": list(vars(shown).values())}
    told: list[gr.Dropdown | gr.Checkbox | gr.Radio] = [form.run, form.photos, form.half, form.which]

    started = button.click(
        actions.publish,
        [owner, *vars(form).values()],
        repo_id,
        api_name="publish",
        concurrency_limit=8,
        show_progress="minimal",
        show_progress_on=button,
        api_description=(
            "Publish a finished run of yours as a model repo on the Hub, in the name of the token's account; returns "
            "OWNER/NAME. It goes on in the server: /publishing tells how. `repo` is NAME or OWNER/NAME; `half` halves "
            "the size; `consent` is asked for on a public studio where people may be on the photos."
        ),
    )
    started.success(**watch, **QUIET)
    gr.on([form.run.change, gr.Timer(POLL).tick], **watch, **QUIET)
    prefilled = [form.repo, form.visibility, form.photos, form.half, form.which, form.consent]
    form.run.input(actions.prefill, [owner, form.run, account], prefilled, **QUIET)
    gr.on([part.change for part in told], actions.contents, [owner, *told], contents, **QUIET)
    gr.api(
        actions.publishing,
        api_name="publishing",
        api_description="How publishing one of your runs stands: `state` is null, waiting, uploading, interrupted, "
        "failed or published; `done` and `total` are bytes; `reason` says what went wrong.",
    )
    listing = {
        "fn": actions.list_runs,
        "inputs": [owner, form.run, account],
        "outputs": [form.run, asked, status, *prefilled],
        **QUIET,
    }
    asking = {"fn": actions.who, "inputs": [account, form.repo], "outputs": [account, who, form.repo], **QUIET}
    return Events(listing, asking)


def _form() -> Form:
    return Form(
        # Values of one's own are allowed for API callers, who name a run without its list; `own_run` checks them.
        models.free_choice(gr.Dropdown([], label="Your subject", allow_custom_value=True, elem_id="published-run")),
        gr.Textbox(
            label="Repo on the Hub",
            max_length=200,
            info="OWNER/NAME; the owner is you, or an organisation of yours.",
            elem_id="repo",
        ),
        gr.Radio(
            [("Private", "private"), ("Public", "public")],
            value="private",
            label="Who can see it",
            info=VISIBILITY_HELP,
            elem_id="visibility",
        ),
        gr.Checkbox(False, label="Include my photos", info=PHOTOS_HELP, elem_id="include-photos"),
        gr.Checkbox(False, label="Half the size", info=HALF_HELP, elem_id="half"),
        gr.Radio(
            [("Best step", "best"), ("Last step", "last")],
            value="last",
            label="Which of its models",
            visible=False,
            elem_id="published-which",
        ),
        gr.Checkbox(
            False,
            label="Everybody on the photos agrees to this",
            visible=False,
            info=CONSENT_HELP,
            elem_id="publish-consent",
        ),
    )


# ------------------------------------------------------------------------------------------------------------- HTML
