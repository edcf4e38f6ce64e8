"""The fourth tab: what training did, as rows of prompts and columns of models that draw from equal seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.ui import QUIET, drawing, models
from dreambooth.ui.compare.actions import MAX_PROMPTS, NO_RUN, Actions
from dreambooth.ui.compare.comparison import Comparison
from dreambooth.ui.doors.limits import MAX_LETTERS
from dreambooth.ui.generate.tab import GUIDANCE_HELP
from dreambooth.ui.studio import Studio

# ----------------------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class Form:
    """What is asked for, in the order in which `compare` takes it."""

    run: gr.Dropdown
    prompts: gr.Textbox
    steps: gr.Slider
    guidance_scale: gr.Slider
    seed: gr.Number
    count: gr.Slider


@dataclass(frozen=True)
class Measured:
    """What is told of the models beside their pictures."""

    other_way: gr.Button
    table: gr.HTML
    figures: gr.JSON
    """The table for API callers."""
    drift: gr.HTML


@dataclass(frozen=True)
class Overlay:
    """Two pictures of a line, one laid over the other."""

    line: gr.Dropdown
    left: gr.Radio
    right: gr.Radio
    slider: gr.ImageSlider


def build(studio: Studio, owner: gr.Component) -> dict[str, Any]:
    """Lay the tab out and wire it; returns the arguments of the event that lists the visitor's runs anew."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=2, min_width=300, visible=False) as asked:
            form = _form()
            with gr.Row(elem_classes="actions"):
                button = gr.Button("Compare", variant="primary", elem_id="compare")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop-comparing")
            other_way = gr.Button("Train it the other way too", visible=False, elem_id="other-way")
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(NO_RUN, label="Status", elem_id="compare-status")
            grid = gr.HTML(label="Comparison", elem_id="comparison")
            sheet = gr.DownloadButton("Save as one PNG", size="md", visible=False, elem_id="save-comparison")
            table = gr.HTML(label="Figures as a table", elem_id="figures", apply_default_css=False)
            drift = gr.HTML(label="Drift", elem_id="drift", apply_default_css=False)
            with gr.Column(visible=False) as laid:
                overlay = _overlay()
    pictures = gr.Gallery(visible=False, label="Pictures", format="png")  # for API callers, who get no table
    measured = Measured(other_way, table, gr.JSON(visible=False, label="figures"), drift)
    shown = gr.State(Comparison())
    actions = Actions(studio, pictures)

    drawn = drawing.stoppable(
        button,
        stop,
        status,
        fn=actions.compare,
        inputs=[owner, *vars(form).values()],
        outputs=[pictures, sheet, grid, status, table, measured.figures, shown],
        api_name="compare",
        api_description=(
            "Draw prompts, one a line, with a run's base model and the run, from equal seeds; with all runs where it "
            "was trained several ways; and measure the pictures. Gives every picture, one PNG of all, the pictures as "
            "an HTML table, how it went, and the figures, as HTML and as values with their 95 % intervals."
        ),
    )
    settings = [form.prompts, form.steps, form.guidance_scale]
    about = [status, other_way, drift]
    form.run.input(actions.prefill, [owner, form.run], [*about, *settings], **QUIET)
    form.run.input(lambda: None, None, drawn, **QUIET)  # the status tells of the run again
    _wire_other_way(actions, owner, form, measured, about)
    chosen = [shown, overlay.line, overlay.left, overlay.right]
    offered = shown.change(actions.offer, chosen, [*chosen[1:], laid, sheet], **QUIET)
    offered.then(actions.lay_over, chosen, overlay.slider, **QUIET)
    gr.on(
        [overlay.line.input, overlay.left.input, overlay.right.input], actions.lay_over, chosen, overlay.slider, **QUIET
    )
    listed = [form.run, asked, *about, *settings]
    return {"fn": actions.list_runs, "inputs": [owner, form.run, drawn], "outputs": listed, **QUIET}


def _wire_other_way(
    actions: Actions, owner: gr.Component, form: Form, measured: Measured, about: list[gr.Component]
) -> None:
    queued = gr.Textbox(visible=False, label="run id")
    asked = measured.other_way.click(
        actions.train_other_way,
        [owner, form.run],
        queued,
        api_name="train_other_way",
        api_description="Queue the run that differs from a finished one of yours in PPL alone, with the same photos, "
        "seed and settings, so that the two are a pair; gives its id.",
        show_progress_on=measured.other_way,
    )
    asked.success(actions.about, [owner, form.run], about, **QUIET)


def _form() -> Form:
    # Values of one's own are allowed for API callers, who name a run without its list; `own_run` checks them.
    run = models.free_choice(gr.Dropdown([], label="Your subject", allow_custom_value=True, elem_id="compared-run"))
    prompts = gr.Textbox(
        label="Prompts",
        lines=5,
        max_lines=MAX_PROMPTS,
        max_length=MAX_PROMPTS * (MAX_LETTERS + 1),
        elem_id="compared-prompts",
        info=f"One a line, at most {MAX_PROMPTS}. Keep the class prompt on top.",
    )
    count = gr.Slider(1, drawing.BATCH, 2, step=1, label="Pictures a prompt", info="Each from a seed of its own.")
    with gr.Accordion("More settings", open=False):
        steps = gr.Slider(1, 100, 50, step=1, label="Steps")
        guidance = gr.Slider(0, 20, 7.5, step=0.5, label="Guidance", info=GUIDANCE_HELP)
        seed = gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", info="The same in a whole row.")
    return Form(run, prompts, steps, guidance, seed, count)


def _overlay() -> Overlay:
    gr.HTML("<h3 class='section'>One over the other</h3>")
    line = gr.Dropdown([], label="Picture", elem_id="overlay-line")
    with gr.Row():
        left, right = (gr.Radio([], label=f"On the {side}", min_width=140) for side in ("left", "right"))
    slider = gr.ImageSlider(
        label="Drag the line",
        type="filepath",
        format="png",
        interactive=False,
        buttons=["fullscreen"],
        elem_id="overlay",
        max_height=520,
    )
    return Overlay(line, left, right, slider)


# ---------------------------------------------------------------------------------------------------------- actions
