"""Several subjects: what is set aside, and its list."""

import re
from pathlib import Path

import gradio as gr
import pytest

from dreambooth.ui.photos.several import Several, subjects_html
from dreambooth.ui.photos.taught import Kept
from dreambooth.ui.studio import Studio


def test_what_no_training_would_take_is_not_set_aside(studio: Studio, photos: list[Path]):
    several, given = Several(studio, gr.Gallery()), [(str(path), None) for path in photos]
    kept = several.set_aside(given[:3], {}, " sks ", "dog", [])[4]
    assert kept == [Kept(tuple(str(path) for path in photos[:3]), {}, "sks", "dog")]
    for asked, says in (
        ((None, {}, "ohwx", "cat", kept), "no photos of this subject"),
        ((given[:1], {}, "", "cat", kept), "identifier is empty"),
        ((given[:1], {}, "sks", "cat", kept), "called sks already"),
        ((given[2:], {}, "ohwx", "cat", kept), "photo3.jpg holds text"),
        ((given[:1] * 48, {}, "ohwx", "cat", kept), "51 photos are too many"),
        ((given[:1], {}, "ohwx", "cat", kept * 3), "takes 4 subjects at most here"),
    ):
        with pytest.raises(gr.Error, match=says):
            several.set_aside(*asked)


def test_a_subject_in_the_list_is_shown_as_text(studio: Studio, photos: list[Path]):
    shown = subjects_html(64, [Kept((str(photos[0]),), {}, "<b>'", "dog")])
    assert "&lt;b&gt;&#x27; dog" in shown
    assert "<b>" not in shown
    assert "1 photo · the first, which is measured<" in shown
    shown = subjects_html(64, [Kept((str(photos[0]),), {}, word, "dog") for word in ("sks", "b")], True)
    assert re.findall("<strong>(.*?)</strong><small>(.*?)<", shown) == [
        ("&lt;sks&gt; dog", "1 photo · the first, which is measured"),
        ("&lt;b&gt; dog", "1 photo"),
    ]
