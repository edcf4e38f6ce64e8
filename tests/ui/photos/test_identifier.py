"""What is said of a word that is to mean the subject."""

import gradio as gr
import pytest

from dreambooth.ui.photos.identifier import Lookup, as_word
from dreambooth.ui.studio import Studio


def test_a_word_is_looked_up_where_the_model_is_here(studio: Studio):
    lookup = Lookup(studio)
    advice = lookup.identifier_advice("ohwx", "dog", "tiny")
    assert (advice["pieces"], advice["identifier"]) == (["ohwx"], "ohwx")
    assert lookup.identifier_advice("ohwx", "dog", "elsewhere")["verdict"] == "unknown"
    assert "not on this machine" in lookup.show("ohwx", "elsewhere")[0]
    assert "&lt;b&gt;x" in lookup.show("<b>x", "tiny")[0]
    assert "holds spaces" in lookup.show("two words", "tiny")[0]
    assert lookup.show(" ", "tiny")[0] == ""
    with pytest.raises(gr.Error, match="not on offer"):
        lookup.identifier_advice("ohwx", "dog", "../elsewhere")


def test_a_new_word_is_not_looked_up(studio: Studio):
    said, *chips = Lookup(studio).show("<b", "tiny", True)
    assert "A new word" in said
    assert "&lt;b&gt;" in said
    assert all(chip == gr.skip() for chip in chips)
    assert Lookup(studio).show(" ", "tiny", True)[0] == ""
    assert [as_word(word) for word in ("sks", " <sks> ", "my-dog")] == ["<sks>", "<sks>", "<my-dog>"]
