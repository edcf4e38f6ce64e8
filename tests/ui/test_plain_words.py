"""Errors as sentences."""

import gradio as gr
import pytest

from dreambooth.errors import RunError
from dreambooth.ui import in_plain_words


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RunError("No run <b>.", "Train one."), "No run &lt;b&gt;. Train one."),
        (
            OSError(28, "No space left on device", "/srv/runs/1"),
            "The server can't do this now: No space left on device.",
        ),
    ],
)
def test_an_error_becomes_a_sentence_for_the_page(error: Exception, sentence: str):
    @in_plain_words
    def handler() -> None:
        raise error

    with pytest.raises(gr.Error) as shown:
        handler()
    assert shown.value.message == sentence
    assert not shown.value.print_exception
