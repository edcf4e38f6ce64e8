"""The studio: `python app.py` serves it on http://127.0.0.1:7860, or on $GRADIO_SERVER_NAME:$GRADIO_SERVER_PORT."""

from dreambooth.cli import quiet_third_parties

if __name__ == "__main__":
    quiet_third_parties()
    from dreambooth.ui import launch

    launch()
