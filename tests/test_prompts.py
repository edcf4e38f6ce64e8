"""The paper's prompt lists, and what the page suggests."""

import pytest

from dreambooth.prompts import LIVE_PROMPTS, OBJECT_PROMPTS, is_live, paper_prompts, suggestions
from dreambooth.toybox.world import CONTEXTS, STYLES


def test_the_papers_lists_have_25_prompts_each_in_its_order():
    for prompts in (OBJECT_PROMPTS, LIVE_PROMPTS):
        assert len(set(prompts)) == 25
        assert prompts[0] == "a {identifier} {class_noun} in the jungle"
        assert prompts[9] == "a {identifier} {class_noun} on top of a purple rug in a forest"
        assert prompts[20] == "a red {identifier} {class_noun}"
        assert prompts[24] == "a cube shaped {identifier} {class_noun}"
    assert OBJECT_PROMPTS[14] == "a {identifier} {class_noun} floating in an ocean of milk"
    assert LIVE_PROMPTS[19] == "a {identifier} {class_noun} in a purple wizard outfit"
    assert OBJECT_PROMPTS[:10] == LIVE_PROMPTS[:10]
    assert not set(OBJECT_PROMPTS[10:20]) & set(LIVE_PROMPTS[10:20])


@pytest.mark.parametrize("noun", ["dog", "Cat", "old man", "person"])
def test_living_subjects_get_the_live_list(noun):
    assert is_live(noun)
    assert paper_prompts(noun) is LIVE_PROMPTS


@pytest.mark.parametrize("noun", ["backpack", "stuffed animal", "toy dog", "cat bowl", ""])
def test_things_get_the_object_list(noun):
    assert not is_live(noun)
    assert paper_prompts(noun) is OBJECT_PROMPTS


def test_suggestions_fill_the_words_in():
    assert suggestions("owner/model", "dog", "sks")[0] == "a sks dog in the jungle"
    assert suggestions("owner/model", "dog")[20] == "a red dog"
    assert suggestions("owner/model", "vase", "ohwx")[-1] == "a cube shaped ohwx vase"


def test_the_toybox_is_asked_only_for_what_it_knows():
    ours = suggestions("toybox", "dog", "sks")
    assert ours[0] == "a photo of sks dog on a beach"
    assert suggestions("toybox", "dog")[0] == "a photo of a dog on a beach"
    assert {prompt.split(" sks dog ")[1] for prompt in ours} == set(CONTEXTS.values())
    assert {prompt.split(" sks dog ")[0] for prompt in ours} == set(STYLES.values())
