"""What to draw: the paper's 25 prompts for things and 25 for living subjects, and what the toybox knows.

The paper's lists are from its public repository (github.com/google/dreambooth, CC BY 4.0), in their order; evaluation
and the page's suggestions use the same ones.
"""

from __future__ import annotations

from dreambooth.config.names import TOYBOX
from dreambooth.toybox.world import CONTEXTS, STYLES

_PLACES = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
_FOR_OBJECTS = (
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
)
_FOR_LIVE = (
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
)
_KINDS = ("red", "purple", "shiny", "wet", "cube shaped")


def _templates(places: tuple[str, ...]) -> tuple[str, ...]:
    subject = "{identifier} {class_noun}"
    return (*(f"a {subject} {place}" for place in places), *(f"a {kind} {subject}" for kind in _KINDS))


OBJECT_PROMPTS = _templates(_PLACES + _FOR_OBJECTS)
LIVE_PROMPTS = _templates(_PLACES + _FOR_LIVE)

LIVE_CLASSES = frozenset(
    "animal baby bear bird boy cat child chicken cow dog duck elephant face fish fox frog girl goat hamster hedgehog "
    "horse kitten lion lizard man monkey mouse owl panda parrot penguin person pig pony puppy rabbit rat sheep snake "
    "tiger turtle wolf woman".split()
)
"""Class nouns of living subjects; the paper's are cat and dog."""


def is_live(class_noun: str) -> bool:
    """Whether a class noun, by its last word, names a living subject: `dog`, `old man`, but not `stuffed animal`."""
    words = class_noun.lower().split()
    return bool(words) and words[-1] in LIVE_CLASSES and not {"stuffed", "plush", "toy"} & set(words)


def paper_prompts(class_noun: str) -> tuple[str, ...]:
    """The paper's 25 prompts for subjects of this class, with {identifier} and {class_noun} to fill in."""
    return LIVE_PROMPTS if is_live(class_noun) else OBJECT_PROMPTS


def suggestions(base_model: str, class_noun: str, identifier: str = "") -> list[str]:
    """Prompts for a subject, or for its class without `identifier`: what the toybox knows, else the paper's."""
    if base_model == TOYBOX:
        subject = f"{identifier} {class_noun}" if identifier else f"a {class_noun}"
        photo, *styles = STYLES.values()
        places = list(CONTEXTS.values())
        pairs = [*((photo, place) for place in places), *((style, places[4]) for style in styles)]
        return [f"{style} {subject} {place}" for style, place in pairs]
    filled = (p.format(identifier=identifier, class_noun=class_noun) for p in paper_prompts(class_noun))
    return [" ".join(prompt.split()) for prompt in filled]
