"""The studio: `python app.py` serves it on http://127.0.0.1:7860, or on $GRADIO_SERVER_NAME:$GRADIO_SERVER_PORT."""

from dreambooth.cli.program import end_in_a_line, prepare_for_the_studio
from dreambooth.quiet import quiet_third_parties


def serve() -> None:
    """Serve it until it is stopped. Raises `ConfigError` for settings with which it can't start."""
    prepare_for_the_studio()
    quiet_third_parties()
    from dreambooth.ui.page import launch

    launch()


if __name__ == "__main__":
    end_in_a_line(serve)
