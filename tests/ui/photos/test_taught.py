"""The prompts that the words of the subjects make."""

from dreambooth.ui.photos.taught import MORE_STEPS, Kept, show_prompts


def test_words_of_a_visitor_are_shown_as_text():
    assert "a photo of sks &lt;b&gt;dog" in show_prompts("sks", "<b>dog")
    assert "The class noun is empty." in show_prompts("sks", "  ")
    assert "a photo of &lt;sks&gt; dog" in show_prompts("sks", "dog", True)
    assert "angle brackets" in show_prompts("two words", "dog", True)
    kept = [Kept(("a.jpg",), {}, "ohwx", "cat")]
    alone = show_prompts("sks", "dog", kept=kept)
    assert "a photo of sks dog" not in alone
    assert "The subject in the form counts once it has photos" in alone
    both = show_prompts("sks", "dog", photos=[("b.jpg", None)], kept=kept)
    assert "a photo of ohwx cat and sks dog" in both
    assert "once it has photos" not in both
    assert MORE_STEPS in both
    assert MORE_STEPS not in alone
