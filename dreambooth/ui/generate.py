"""The third tab: pictures from one of the visitor's finished runs, or from a base model to compare with."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.config import TOYBOX, SamplingConfig, load_preset
from dreambooth.generate import MAX_BATCH, open_source, save_picture
from dreambooth.generate import generate as draw
from dreambooth.machine import resolve_device
from dreambooth.toybox.world import CONTEXTS
from dreambooth.ui.studio import QUIET, Studio, in_plain_words, is_owner, title

NOTHING_YET = """<div class="empty"><strong>No pictures yet.</strong> Finish a training to draw your subject, or try the
base model as it is.</div>"""


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


def build(studio: Studio, owner: gr.BrowserState) -> dict[str, Any]:
    """Lay the tab out and wire it; returns the arguments of the event that lists the visitor's models anew."""
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=2, min_width=300):
            form = _form(studio)
            button = gr.Button("Generate", variant="primary", elem_id="generate")
        with gr.Column(scale=3, min_width=320):
            empty = gr.HTML(NOTHING_YET, label="Hint")
            pictures = gr.Gallery(
                label="Pictures", columns=4, height="auto", object_fit="contain", interactive=False, format="png",
                buttons=["download", "download_all", "fullscreen"], visible=False, elem_id="pictures",
            )  # fmt: skip
    newest = gr.State(None)
    actions = Actions(studio, pictures)
    form.model.change(actions.prefill, [owner, form.model], [form.prompt, form.steps, form.guidance_scale], **QUIET)
    button.click(
        actions.generate, [owner, *vars(form).values()], [pictures, empty], api_name="generate",
        api_description="Draw pictures with one of your finished runs, by its id, or a base model, by its name.",
        show_progress_on=button, concurrency_limit=1,  # two pipelines may not fit into the device's memory
    )  # fmt: skip
    return {"fn": actions.list_models, "inputs": [owner, form.model, newest], "outputs": [form.model, newest], **QUIET}


def _form(studio: Studio) -> Form:
    sampling = _sampling_of(studio.model(studio.default_model))
    form = Form(
        # Values of one's own are allowed for API callers, who name a run without its list; `own_run` checks them.
        gr.Dropdown(_base_choices(studio), value=studio.default_model, label="Model", allow_custom_value=True,
elem_id="model"),
        gr.Textbox("a photo of a dog on a beach", label="Prompt", lines=2, max_length=1000, elem_id="prompt"),
        gr.Textbox("", label="Negative prompt", max_length=1000, info="What to keep out of the picture."),
        gr.Slider(1, 100, sampling.steps, step=1, label="Steps", render=False),
        gr.Slider(0, 20, sampling.guidance_scale, step=0.5, label="Guidance", render=False,
                  info="Higher follows the prompt more strictly, and varies less."),
        gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", render=False),
        gr.Slider(1, MAX_BATCH, 4, step=1, label="Pictures", elem_id="count"),
    )  # fmt: skip
    with gr.Accordion("More settings", open=False):
        form.steps.render()
        form.guidance_scale.render()
        form.seed.render()
    return form


def _base_choices(studio: Studio) -> list[tuple[str, str]]:
    return [(f"{name} (base model, untrained)", name) for name in studio.base_models]


def _sampling_of(base_model: str) -> SamplingConfig:
    return SamplingConfig(**(load_preset(TOYBOX)["sampling"] if base_model == TOYBOX else {}))


@dataclass(frozen=True)
class Actions:
    """What the tab does; `generate` is a named endpoint."""

    studio: Studio
    pictures: gr.Gallery

    def list_models(self, owner: str, chosen: str, newest: str | None) -> tuple[dict, str | None]:
        """The visitor's finished runs and the base models; a run that finished since the last look is chosen."""
        runs = [run for run in self.studio.own_runs(owner) if run.status == "finished"] if is_owner(owner) else []
        choices = [(f"{title(run)} · {run.config.train.steps} steps", run.id) for run in runs]
        latest = runs[0].id if runs else None
        known = {run.id for run in runs} | set(self.studio.base_models)
        value = latest if latest and latest != newest else chosen if chosen in known else self.studio.default_model
        return gr.Dropdown([*choices, *_base_choices(self.studio)], value=value), latest

    @in_plain_words
    def prefill(self, owner: str, model: str) -> tuple[str, int, float]:
        """A first prompt, and the model's own steps and guidance."""
        place = next(iter(CONTEXTS.values()))
        if model in self.studio.base_models:
            sampling = _sampling_of(self.studio.model(model))
            return f"a photo of a dog {place}", sampling.steps, sampling.guidance_scale
        config = self.studio.own_run(owner, model).config
        return f"{config.instance_prompt} {place}", config.sampling.steps, config.sampling.guidance_scale

    @in_plain_words
    def generate(
        self, owner: str, model: str, prompt: str, negative_prompt: str, steps: int, guidance_scale: float, seed: int,
        count: int,
    ) -> tuple[dict, dict]:  # fmt: skip
        """Draw pictures as PNG files that carry prompt, seed and settings."""
        is_base = model in self.studio.base_models
        path = self.studio.model(model) if is_base else str(self.studio.own_run(owner, model).path)
        source = open_source(path, device=resolve_device("auto"))
        sampling = source.sampling.model_copy(update={"steps": int(steps), "guidance_scale": guidance_scale})
        folder = Path(tempfile.mkdtemp(dir=self.pictures.GRADIO_CACHE))
        items = []
        for batch in draw(source, [prompt], num_images=int(count), seed=seed, sampling=sampling,
                          negative_prompt=negative_prompt):  # fmt: skip
            for picture in batch:
                file = folder / f"{len(items):02d}-seed-{picture.seed}.png"
                save_picture(
                    file, picture.image, prompt=prompt, negative_prompt=negative_prompt, seed=picture.seed,
                    steps=sampling.steps, guidance_scale=guidance_scale, scheduler=sampling.scheduler,
                    model=source.name,
                )  # fmt: skip
                items.append((self.pictures.move_resource_to_block_cache(file), f"seed {picture.seed}"))
        return gr.Gallery(items, visible=True), gr.HTML(visible=False)
