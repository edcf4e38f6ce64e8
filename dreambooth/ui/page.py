"""The studio: one page, a tab for each step; `build` makes it and `launch` serves it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from dreambooth.errors import ConfigError, first_line
from dreambooth.files import check_writable
from dreambooth.ui import DAY, HOUR, QUIET, Update, in_plain_words, theme
from dreambooth.ui.compare import tab as compare
from dreambooth.ui.doors import login
from dreambooth.ui.doors.guard import GuardedApp
from dreambooth.ui.doors.lines import Lines
from dreambooth.ui.gallery import tab as gallery
from dreambooth.ui.generate import tab as generate
from dreambooth.ui.housekeeping import keep_house, own_temp_folder
from dreambooth.ui.inputs import Page
from dreambooth.ui.photos import tab as photos
from dreambooth.ui.publish import tab as publish
from dreambooth.ui.studio import Studio
from dreambooth.ui.train import tab as train

HEADER = """
<header class="masthead">
  <h1>DreamBooth <em>Studio</em></h1>
  <p>Teach an image model your subject from three to five photos, then put it anywhere.</p>
</header>
"""
SESSIONS = 1000
"""Pages whose state is kept, each of which takes 0.6 MB with a copy of the whole page's configuration. The guard bounds
how many a client opens."""
GRACE = 8.0
"""Seconds for checkpoints when the studio is stopped. Docker kills ten after SIGTERM (`docker stop`), the Hub 30."""


def build(studio: Studio | None = None) -> Page:
    """The page, with a worker of its own; settings come from the environment unless `studio` is given."""
    studio = studio or Studio.from_environment()
    visitors = login.Visitors(studio.root)
    # Gradio clears its own files alone, and all of them when it is closed; `keep_house` also what others left.
    page = Page(visitors, title="DreamBooth Studio", analytics_enabled=False, delete_cache=(HOUR, DAY))
    with page:
        # Empty for ever: `Page` finds out who is here at each call. API callers alone give an id of their own.
        owner = gr.Textbox("", label="owner", visible=False)
        account = gr.Textbox("", label="account", visible=False)  # its name, for the page's words alone
        with gr.Row(elem_classes="head"):
            gr.HTML(HEADER)
            if login.offered():  # to publish, and to find one's runs on every device
                gr.LoginButton(
                    "Log in with Hugging Face", "Log out ({})", variant="secondary", size="sm", scale=0, min_width=230
                )
        no_cookie = gr.HTML(login.NO_COOKIE, visible=False, elem_id="no-cookie")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("1 · Photos", id="upload"):
                subject = photos.build(studio)
            with gr.Tab("2 · Train", id="train") as train_tab:
                live, list_runs = train.build(studio, owner, subject)
            with gr.Tab("3 · Generate", id="generate") as generate_tab:
                form, list_models = generate.build(studio, owner)
            with gr.Tab("4 · Compare", id="compare") as compare_tab:
                list_comparable = compare.build(studio, owner)
            with gr.Tab("5 · Publish", id="publish") as publish_tab:
                publishing = publish.build(studio, owner, account)
            with gr.Tab("Gallery", id="gallery") as gallery_tab:
                list_published = gallery.build(studio, form, tabs)
        subject.to_training.click(lambda: gr.Tabs(selected="train"), outputs=tabs, **QUIET)
        live.to_pictures.click(lambda: gr.Tabs(selected="generate"), outputs=tabs, **QUIET)

        @in_plain_words
        def greet(request: gr.Request, token: gr.OAuthToken | None) -> tuple[str, Update]:
            """The account's name, where somebody is logged in, and a word where nothing tells the browser again."""
            name = visitors.account(token.token) if token else ""
            return name, gr.HTML(visible=not (name or login.cookie_of(request)))

        greeted = page.load(
            greet,
            None,
            [account, no_cookie],
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )  # queued: Gradio 6.31 shows no errors of other events, and the Hub may not confirm a login
        for tab, listing in (
            (train_tab, list_runs),
            (generate_tab, list_models),
            (compare_tab, list_comparable),
            (publish_tab, publishing.list_runs),
        ):
            greeted.then(**listing)
            selected = tab.select(**listing)
        selected.then(**publishing.sign_in)  # the Hub is asked when a tab that is about it is opened, not before
        gallery_tab.select(**list_published)
    page.queue(api_open=False)  # else whoever posts to a function itself goes past the lines
    page._queue = Lines(page, studio.settings.max_drawings)
    return page


def launch() -> None:
    """Serve the page until Ctrl-C or SIGTERM stops it; Gradio's own environment variables set where.

    Runs that are being trained then keep a checkpoint, as long as that takes no more than `GRACE` seconds.
    Raises `ConfigError` for settings with which it can't start: a folder that can't be written to, a place where it
    can't listen.
    """
    check_writable(Path(get_upload_folder()), "GRADIO_TEMP_DIR")
    studio = Studio.from_environment()
    folder = own_temp_folder(studio.root)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # read by each component as it is made
    page, app = build(studio), GuardedApp(studio.settings)
    try:
        served, url, share = page.launch(
            _app=app,
            theme=theme.THEME,
            css=theme.CSS,
            footer_links=["api"],
            run_history=False,  # it would keep people's photos in the browser
            max_file_size="50mb",
            ssr_mode=False,  # neither a server of Node's in front of the guard,
            num_workers=0,  # nor others beside it
            share=login.shared(),  # else Gradio makes a link by itself in some notebooks, for anybody
            state_session_capacity=SESSIONS,
            enable_monitoring=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ConfigError(
            f"The studio can't listen where it is told to ({first_line(error).partition('. ')[0]}).",
            "Set GRADIO_SERVER_NAME to an address of this machine, GRADIO_SERVER_PORT to a free port.",
        ) from None
    if served is not app:  # `_app` is Gradio's own business, of which the next version may think otherwise
        page.close(verbose=False)
        raise RuntimeError("This version of Gradio does not serve what it is given, so nothing would guard the studio.")
    if share:
        app.hosts.declare(share)
    keep_house(studio, page, folder)
    print(f"DreamBooth Studio is on {url}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Docker's, and a Space's at each restart
    try:
        while page.is_running:
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("Stopping: trainings keep a checkpoint.", flush=True)
    finally:  # Gradio's own `block_thread` would first wait five seconds for pages that are open
        studio.worker.close(GRACE)
        page.close(verbose=False)
