"""The studio: one page with three tabs, upload, train and generate; `build` makes it and `launch` serves it."""

from __future__ import annotations

import gradio as gr

from dreambooth.ui import generate, theme, train, upload
from dreambooth.ui.studio import QUIET, Studio, is_owner, new_owner

HEADER = """
<header class="masthead">
  <h1>DreamBooth <em>Studio</em></h1>
  <p>Teach an image model your subject from three to five photos, then put it anywhere.</p>
</header>
"""
MAX_WAITING = 64
"""Requests that may wait; the next visitor is told to come back instead of waiting without end."""
DAY = 24 * 60 * 60


def build(studio: Studio | None = None) -> gr.Blocks:
    """The page, with a worker of its own; settings come from the environment unless `studio` is given."""
    studio = studio or Studio.from_environment()
    with gr.Blocks(title="DreamBooth Studio", analytics_enabled=False, delete_cache=(DAY // 24, DAY)) as page:
        # The id is the visitor's own secret already, and must outlive a restart, which a random key would not.
        owner = gr.BrowserState("", storage_key="dreambooth-owner", secret="dreambooth-studio")
        gr.HTML(HEADER)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("1 · Photos", id="upload"):
                subject = upload.build(studio)
            with gr.Tab("2 · Train", id="train") as train_tab:
                live, list_runs = train.build(studio, owner, subject)
            with gr.Tab("3 · Generate", id="generate") as generate_tab:
                list_models = generate.build(studio, owner)
        subject.to_training.click(lambda: gr.Tabs(selected="train"), outputs=tabs, **QUIET)
        live.to_pictures.click(lambda: gr.Tabs(selected="generate"), outputs=tabs, **QUIET)
        greeted = page.load(_greet, owner, owner, **QUIET)
        for event in (greeted.then, train_tab.select):
            event(**list_runs)
        for event in (greeted.then, generate_tab.select):
            event(**list_models)
    return page.queue(max_size=MAX_WAITING)


def _greet(owner: str) -> str:
    """The visitor's id, or a new one on the first visit."""
    return owner if is_owner(owner) else new_owner()


def launch() -> None:
    """Serve the page until it is stopped; Gradio's own environment variables set where."""
    page = build()
    _, url, _ = page.launch(
        theme=theme.THEME,
        css=theme.CSS,
        footer_links=["api"],
        run_history=False,  # it would keep people's photos in the browser
        max_file_size="50mb",
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"DreamBooth Studio is on {url}", flush=True)
    page.block_thread()
