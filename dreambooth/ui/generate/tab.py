"""The third tab: pictures from one of the visitor's finished runs, a base model, or any model of the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.generate import (
    MAX_BATCH,
)
from dreambooth.prompts import suggestions
from dreambooth.ui import QUIET, drawing, models
from dreambooth.ui.doors.limits import MAX_LETTERS
from dreambooth.ui.generate.actions import CLASS_NOUN, NO_ADAPTER, Actions, base_choices, which_choices
from dreambooth.ui.generate.made_with import SETTINGS
from dreambooth.ui.studio import Studio

NOTHING_YET = """<div class="empty"><strong>No pictures yet.</strong> Say what you would like to see and press Generate.
Your own subjects are in the list of models once their training is finished.</div>"""
GUIDANCE_HELP = "7 leaves the model freedom, 11 keeps it close to your words; the toybox draws best at 2.5 to 3."
MODEL_HELP = (
    "Your finished trainings, the base models, or any Stable Diffusion model of the Hub: type OWNER/NAME, or "
    "OWNER/NAME@REVISION."
)
WHICH_HELP = "The best step showed the subject best while it kept its class and followed its prompts; see Train."
SCALE_HELP = "How much of what was trained takes part: 1 is all of it, less is nearer to the base model."
ADAPTER_HELP = """<p class='aside'>What others of your trainings learned, on top: write each subject's words into the
prompt. Too much of several at once spoils pictures; try less of each.</p>"""


@dataclass(frozen=True)
class Form:
    """What is asked for, in the order in which `generate` takes it."""

    model: gr.Dropdown
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    steps: gr.Slider
    guidance_scale: gr.Slider
    seed: gr.Number
    count: gr.Slider
    safety_checker: gr.Checkbox
    which: gr.Radio
    scale: gr.Slider
    adapter: gr.Dropdown
    weight: gr.Slider
    adapter_2: gr.Dropdown
    weight_2: gr.Slider
    adapter_3: gr.Dropdown
    weight_3: gr.Slider

    @property
    def adapters(self) -> list[gr.Dropdown]:
        """What is added."""
        return [self.adapter, self.adapter_2, self.adapter_3]

    @property
    def weights(self) -> list[gr.Slider]:
        """How much of each."""
        return [self.weight, self.weight_2, self.weight_3]


def build(studio: Studio, owner: gr.Component) -> tuple[Form, dict[str, Any]]:
    """Lay the tab out and wire it; also returns the arguments of the event that lists the visitor's models anew."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=2, min_width=300):
            form, ideas, new_seed, upload, stack = _form(studio)
            with gr.Row(elem_classes="actions"):
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop-generating")
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(NOTHING_YET, label="Status", elem_id="generate-status")
            pictures = gr.Gallery(
                label="Pictures",
                columns=4,
                height="auto",
                object_fit="contain",
                interactive=False,
                format="png",
                buttons=["download", "download_all", "fullscreen"],
                elem_id="pictures",
                elem_classes="filled-only",
            )
            facts = gr.HTML(visible=False, label="Settings of this picture")
            copy = gr.Button("Use these settings", size="sm", visible=False)
    newest, picked = gr.State(None), gr.State(None)
    actions = Actions(studio, pictures)
    own_settings = [form.prompt, form.steps, form.guidance_scale, form.which]
    chosen = [form.model, *form.adapters]
    offered = [ideas, form.which, form.scale, stack, *form.adapters, *form.weights]

    # Generate
    drawing.stoppable(
        button,
        stop,
        status,
        fn=actions.generate,
        inputs=[owner, *vars(form).values()],
        outputs=[pictures, status],
        api_name="generate",
        api_description=(
            "Draw pictures with one of your finished runs, by its id, a base model, by its name, or a Hub repo, by "
            "OWNER/NAME or OWNER/NAME@REVISION, that the token's account may read; `which` says which, where a run "
            "keeps its best model beside the last. `scale` is how much of an adapter takes part; up to three more runs "
            "of yours that trained adapters of the same base model go on top, `which` of their models, each with a "
            "weight. The pictures come batch by batch as PNG files that carry their settings; cancelling the job stops "
            "it."
        ),
    )

    # What there is to choose, for the models that are chosen
    form.model.input(actions.prefill, [owner, form.model], own_settings, **QUIET)
    gr.on([part.change for part in chosen], actions.offer, [owner, *chosen], offered, **QUIET)
    ideas.click(lambda idea: idea[0], ideas, form.prompt, **QUIET)
    new_seed.click(None, None, form.seed, js="() => Math.floor(Math.random() * 2 ** 32)")

    # The settings of a picture
    pictures.select(actions.pick, pictures, [picked, facts, copy], **QUIET)
    copied = [*(getattr(form, name) for name in SETTINGS[:-1]), *form.adapters, *form.weights]
    copy.click(actions.copy_picked, [owner, picked], copied, **QUIET)
    upload.upload(
        actions.copy_settings,
        [owner, upload],
        copied,
        api_name="copy_settings",
        api_description="What a PNG that was drawn here was made with; the model only where it is yours to draw with.",
    )
    gr.api(
        actions.models,
        api_name="models",
        api_description="What you can draw with, by the name that /generate takes: your finished runs, base models. "
        "`steps` are the best and the last of a run that keeps both models, `adapters` what can be added to it.",
    )
    listed = [form.model, newest, *own_settings, *offered]
    return form, {"fn": actions.list_models, "inputs": [owner, newest, *chosen], "outputs": listed, **QUIET}


def _form(studio: Studio) -> tuple[Form, gr.Dataset, gr.Button, gr.UploadButton, gr.Accordion]:
    """The fields from top to bottom; also the ideas, the button for a new seed, the one that reads a picture, and what
    holds the adapters."""
    wanted = studio.model(studio.default_model)
    sampling, suggested = models.base_sampling(wanted), suggestions(wanted, CLASS_NOUN)

    # What is drawn
    model = models.free_choice(  # a Hub id, or an API caller's run, is a value of one's own; `open_model` checks it
        gr.Dropdown(
            base_choices(studio),
            value=studio.default_model,
            label="Model",
            allow_custom_value=True,
            info=MODEL_HELP,
            elem_id="model",
        )
    )
    prompt = gr.Textbox(suggested[0], label="Prompt", lines=2, max_length=MAX_LETTERS, elem_id="prompt")
    ideas = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[[idea] for idea in suggested],
        samples_per_page=6,
        label="Ideas",
        elem_id="ideas",
    )

    # Which of a run's models, how much of it, and how often
    which = gr.Radio(
        which_choices("Best step", "Last step"),
        value="last",
        label="Which of its models",
        visible=False,
        info=WHICH_HELP,
        elem_id="which",
    )
    scale = _strength("Strength of the adapter", info=SCALE_HELP, elem_id="scale")
    count = gr.Slider(1, MAX_BATCH, 4, step=1, label="Pictures", elem_id="count")

    # On top of it
    with gr.Accordion("Add adapters", open=False, visible=False, elem_id="add-adapters") as stack:
        gr.HTML(ADAPTER_HELP)
        (adapter, weight), (adapter_2, weight_2), (adapter_3, weight_3) = map(_slot, range(models.MAX_ADAPTERS))

    # How it is drawn
    with gr.Accordion("More settings", open=False):
        negative_prompt = gr.Textbox(
            "", label="Negative prompt", max_length=MAX_LETTERS, info="What to keep out of the picture."
        )
        steps = gr.Slider(
            1, 100, sampling.steps, step=1, label="Steps", info="More take longer and are finer, up to about 50."
        )
        guidance_scale = gr.Slider(
            0, 20, sampling.guidance_scale, step=0.5, label="Guidance", info=GUIDANCE_HELP, elem_id="guidance"
        )
        with gr.Group():
            seed = gr.Number(
                0,
                precision=0,
                minimum=0,
                maximum=2**32 - 1,
                label="Seed",
                min_width=120,
                info="The same seed and settings give the same picture.",
                elem_id="seed",
            )
            new_seed = gr.Button("New seed", size="sm")
        safety_checker = gr.Checkbox(
            True,
            label="Safety checker",
            visible=not studio.public,
            info="Holds back what it takes for unsafe, if the model comes with one. It errs now and then.",
        )
        upload = gr.UploadButton("Take the settings from a saved picture", file_types=[".png"], size="sm")

    form = Form(
        model=model,
        prompt=prompt,
        negative_prompt=negative_prompt,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        count=count,
        safety_checker=safety_checker,
        which=which,
        scale=scale,
        adapter=adapter,
        weight=weight,
        adapter_2=adapter_2,
        weight_2=weight_2,
        adapter_3=adapter_3,
        weight_3=weight_3,
    )
    return form, ideas, new_seed, upload, stack


def _slot(place: int) -> tuple[gr.Dropdown, gr.Slider]:
    """One further adapter and how much of it takes part; the first alone is shown until one is chosen."""
    names = f"{place + 1}" if place else ""
    adapter = models.free_choice(
        gr.Dropdown(
            [NO_ADAPTER],
            value="",
            label=f"Adapter {place + 1}",
            visible=not place,
            allow_custom_value=True,
            elem_id=f"adapter{names}",
        )
    )
    return adapter, _strength("Its strength", elem_id=f"weight{names}")


def _strength(label: str, **arguments: Any) -> gr.Slider:
    """How much of an adapter takes part; not seen until there is one."""
    return gr.Slider(0, models.MAX_SCALE, 1, step=0.05, label=label, visible=False, **arguments)
