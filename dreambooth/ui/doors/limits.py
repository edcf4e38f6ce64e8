"""What whoever runs a studio may set, and what strangers may not ask of it."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from dreambooth.config.names import TOYBOX
from dreambooth.config.settings import Config
from dreambooth.errors import ConfigError
from dreambooth.files import shown_size
from dreambooth.ui.doors import login

PUBLIC_CAPS = {
    "train.keep_checkpoints": 2,
    "train.batch_size": 8,
    "train.gradient_accumulation": 8,
    "prior.steps": 100,
    "prior.batch_size": 32,
    "sampling.steps": 100,
    "sampling.num_images": 4,
    "lora.rank": 64,
    "word.vectors": 8,
}
"""The most of each setting on a public Space, where one step or one batch must not keep everybody waiting: no less than
any recipe takes. Of checkpoints only the newest is ever resumed."""
FOR_ONESELF = ("prior.pack",)
"""Settings that name a download, which is made with the machine's token: nothing that a visitor chooses."""
MAX_SAMPLED_PROMPTS = 4
"""The most further prompts that are sampled while a run trains on a public Space."""
MAX_SUBJECTS = 4
"""The most subjects of a run on a public Space."""
MAX_TARGETS = 16
"""The most names in lora.targets on a public Space; a family's own are four."""
PUBLIC_ENCODERS = ("auto", TOYBOX)
"""What may measure a run on a public Space: nothing that a stranger names."""

MAX_LETTERS = 1000
"""Of one text that has no bound of its own: as many as a config's prompt may have."""

PERSON_WORDS = frozenset(
    """person persons people human humans man men woman women boy boys girl girls child children kid kids baby babies
    toddler infant teen teenager adult lady ladies gentleman guy guys dude face faces head portrait selfie self me
    friend girlfriend boyfriend couple family wife husband bride groom mother father mom mum mama dad papa parent
    brother sister son daughter grandmother grandfather grandma grandpa aunt uncle actor actress singer celebrity
    mensch menschen mann männer frau frauen junge jungen mädchen kind kinder säugling gesicht porträt freund freundin
    mutter vater bruder schwester sohn tochter oma opa dame herr ich
    personne personnes homme hommes femme femmes garçon garçons fille filles enfant enfants bébé visage tête ami amie
    mère père frère sœur soeur fils
    persona personas hombre hombres mujer mujeres chico chica niño niña niños niñas bebé cara rostro amigo amiga madre
    padre hermano hermana hijo hija abuela abuelo señora señor
    pessoa pessoas homem homens mulher mulheres menino menina rapaz criança crianças mãe pai irmão irmã filho filha
    persone uomo uomini donna donne ragazzo ragazza bambino bambina bambini neonato viso volto fratello sorella figlio
    figlia nonna nonno signora signore
    mens mensen vrouw vrouwen jongen jongens meisje meisjes kinderen gezicht vriend vriendin moeder vader broer zus zoon
    dochter
    osoba człowiek ludzie kobieta kobiety mężczyzna mężczyźni chłopak chłopiec dziewczyna dziewczynka dziecko dzieci
    twarz
    žena muž dítě chlapec dívka holka člověk lidé obličej
    kvinna kvinnor kvinde kvinne flicka pojke pige dreng jente gutt människa menneske ansikte ansigt ansikt
    nainen mies lapsi tyttö poika ihminen kasvot henkilö
    femeie bărbat copil fată băiat față nő férfi gyerek lány fiú
    kadın erkek çocuk kız oğlan insan kişi bebek
    γυναίκα άνδρας άντρας παιδί κορίτσι αγόρι άνθρωπος πρόσωπο
    человек люди женщина мужчина девушка девочка мальчик парень ребёнок ребенок дети лицо портрет
    людина жінка чоловік дівчина дівчинка хлопець хлопчик дитина діти обличчя
    """.split()
)
"""In a class noun these mean that people are on the photos: in English; and the commonest in German, French, Spanish,
Portuguese, Italian, Dutch, Polish, Czech, the Scandinavian languages, Finnish, Romanian, Hungarian, Turkish, Greek,
Russian and Ukrainian. Left out are those that name a thing in English, as barn and ember do. Other languages are not
covered."""

_PREFIX = "DREAMBOOTH_"
_HostName = Annotated[str, StringConstraints(to_lower=True, pattern=r"^[A-Za-z0-9_.-]+(:[0-9]{1,5})?$")]


def _names(given: object) -> object:
    """The names of a list with commas."""
    return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given


def _on_a_public_space(limit: int, description: str) -> int | None:
    """A limit that only strangers need."""
    return Field(default_factory=lambda given: limit if given["public"] else None, gt=0, description=description)


class StudioSettings(BaseModel):
    """What whoever runs a studio may choose, each by the environment variable DREAMBOOTH_<NAME>."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    base_model: str = Field(TOYBOX, description="the base model that the page offers first: a Hub id or a folder")
    runs: Path = Field(Path("runs"), description="where runs are kept")
    workers: int = Field(1, ge=1, le=64, description="trainings at a time; one is as fast as a GPU gets")
    public: bool = Field(
        False,
        description="whether strangers use the studio: sets the limits below, asks for consent "
        "to photos of people and keeps the safety checker on",
    )
    hosts: Annotated[tuple[_HostName, ...], BeforeValidator(_names)] = Field(
        (),
        description="host names, with commas between them, by which browsers reach the studio: a reverse proxy's, or "
        "one in a network; by any other but this machine's own and a Space's nobody gets an answer",
    )
    max_runs: int | None = _on_a_public_space(
        20, "runs kept of each visitor; a new one removes the oldest, unless it waits, trains or is published"
    )
    visitor_gb: float | None = _on_a_public_space(
        5,
        "gigabytes of each visitor's runs, with what those that wait or train may come to take; a new one removes "
        "the oldest likewise (three of the toybox's take 1; of Stable Diffusion 1.5 two LoRAs 4, one in full 52)",
    )
    disk_gb: float | None = _on_a_public_space(
        20,
        "gigabytes of all runs; above it the oldest of whoever holds most make room, none younger than a day for "
        "another visitor (a Space has 50 in all)",
    )
    max_waiting: int | None = _on_a_public_space(
        3, "runs of each visitor that wait or train: three, since training all ways takes three"
    )
    max_drawings: int | None = _on_a_public_space(
        3,
        "drawings of each visitor that wait or are drawn, pictures and comparisons; eight times as many of one "
        "address, and four times as many of other calls",
    )
    max_queue: int | None = _on_a_public_space(50, "runs of all visitors that wait: more would wait for days")
    max_minutes: int | None = _on_a_public_space(
        60, "minutes that a run trains at a time; it is stopped then, and can be resumed behind the others"
    )
    max_steps: int | None = _on_a_public_space(
        3000, "training steps of a run: as many as Textual Inversion's recipe takes"
    )
    max_class_images: int | None = _on_a_public_space(
        600, "class images of a run, for all its class prompts: the paper's 200 for each of two classes and for both"
    )

    class_images_gb: float | None = _on_a_public_space(
        4,
        "gigabytes of class images, which runs share; above it those go that were used longest ago, but none of a "
        "run that waits or trains (a run's 600 of 512 pixels take 0.3)",
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> StudioSettings:
        """Read the variables; an empty one counts as unset, `none` lifts a limit, and a Space is public by default.

        Raises `ConfigError` that names the variable that can't be used, or is none.
        """
        known = {_variable(name) for name in cls.model_fields} | {"DREAMBOOTH_CACHE"}
        if strangers := sorted(name for name in environment if name.startswith(_PREFIX) and name not in known):
            raise ConfigError(f"{strangers[0]} is not a setting.", f"There are {', '.join(sorted(known))}.")
        given = {
            name: None if value.strip().lower() == "none" else value.strip()
            for name in cls.model_fields
            if (value := environment.get(_variable(name), "")).strip()
        }
        try:
            return cls.model_validate({"public": bool(environment.get("SPACE_ID"))} | given)
        except ValidationError as error:
            wrong = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
            named = [(_variable(str(e["loc"][0])), e["msg"]) for e in wrong]
            shown = [f"{name} = {environment[name]!r}: {reason}" for name, reason in named]
            raise ConfigError(f"{'; '.join(shown)}.", "The README's table says what each takes.") from None

    @classmethod
    def table(cls) -> list[str]:
        """The rows of a Markdown table: variable, default, meaning."""
        alone, public = cls(), cls(public=True)
        rows = []
        for name, about in cls.model_fields.items():
            here, there = (_shown(getattr(settings, name)) for settings in (alone, public))
            default = "`true` on a Space" if name == "public" else here if here == there else f"{there} if public"
            rows.append(f"| `{_variable(name)}` | {default} | {about.description} |")
        return rows


def _variable(name: str) -> str:
    return _PREFIX + name.upper()


def _shown(value: object) -> str:
    return "none" if value in (None, ()) else f"`{value}`"


def refuse_too_much(config: Config, settings: StudioSettings) -> None:
    """Raise `ConfigError` for a run that asks for more than this studio gives."""
    classes = len(config.class_prompts) if config.prior.active else 1
    of_all = "prior.num_images" if classes == 1 else f"prior.num_images for {classes} class prompts together"
    caps = [
        ("train.steps", config.train.steps, settings.max_steps),
        (of_all, classes * config.prior.num_images, settings.max_class_images),
    ]
    if settings.public:
        wanted = config.model_dump()
        caps += [(name, wanted[name.split(".")[0]][name.split(".")[1]], most) for name, most in PUBLIC_CAPS.items()]
        caps.append(("The number of sampling.prompts", len(config.sampling.prompts), MAX_SAMPLED_PROMPTS))
        caps.append(("The number of subjects", len(config.subjects), MAX_SUBJECTS))
        caps.append(("The number of lora.targets", len(config.lora.targets or ()), MAX_TARGETS))
    for name, value, most in caps:
        if most is not None and value > most:
            raise ConfigError(
                f"{name} is {value}, and this studio takes {most} at most.",
                "Lower it, or run the studio on a computer of your own.",
            )
    for name in () if login.for_oneself(public=settings.public) else FOR_ONESELF:
        section, key = name.split(".")
        if getattr(getattr(config, section), key) is not None:
            raise ConfigError(f"{name} can't be chosen on a studio of somebody else's.", "Leave it out.")
    for name in ("dino", "clip"):
        value = getattr(config.evaluation, name)
        if settings.public and value not in PUBLIC_ENCODERS:  # a folder of the server, or a download
            raise ConfigError(
                f"evaluation.{name} can't be chosen on a public studio.",
                f"Leave it out, or say {' or '.join(PUBLIC_ENCODERS)}.",
            )


def refuse_too_large(size: int, settings: StudioSettings) -> None:
    """Raise `ConfigError` for runs that may come to take more bytes than this studio gives one visitor, or has."""
    given = [most for most in (settings.visitor_gb, settings.disk_gb) if most is not None]
    if given and size > min(given) * 1e9:
        raise ConfigError(
            f"This may take {shown_size(size)} of the disk, and a visitor is given {min(given):g} GB here.",
            "Train an adapter (method lora), keep one checkpoint (train.keep_checkpoints: 1), train fewer ways, or "
            "give fewer photos.",
        )


def is_person(class_noun: str) -> bool:
    """Whether a class noun means people, as far as its words tell, with their accents or without."""
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", class_noun).casefold())
    return not _PERSON_WORDS.isdisjoint(words)


def _without_accents(word: str) -> str:
    return "".join(one for one in unicodedata.normalize("NFD", word) if not unicodedata.combining(one))


_PERSON_WORDS = PERSON_WORDS | {bare for word in PERSON_WORDS if len(bare := _without_accents(word)) > 3}
"""In short words an accent tells more: nő is a woman in Hungarian, and no is not."""
