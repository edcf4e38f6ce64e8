"""Events: each one line of JSON and back, whatever its texts and numbers."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth import events
from dreambooth.errors import RunError
from dreambooth.events import Event, from_json
from dreambooth.runs.directory import Run

KINDS = {
    "run_queued": events.RunQueued,
    "stage": events.Stage,
    "progress": events.Progress,
    "step": events.Step,
    "image": events.Image,
    "checkpoint": events.Checkpoint,
    "metric": events.Metric,
    "warning": events.Warning,
    "finished": events.Finished,
    "failed": events.Failed,
    "cancelled": events.Cancelled,
    "published": events.Published,
}
"""The names on disk, which other readers rely on."""

VALUES = {
    "str": st.text(st.characters(exclude_categories=["Cs"])),
    "int": st.integers(0, 2**53),
    "float": st.floats(),
    "float | None": st.none() | st.floats(),
}


@st.composite
def any_event(draw) -> Event:
    kind = draw(st.sampled_from(list(KINDS.values())))
    return kind(**{field.name: draw(VALUES[field.type]) for field in dataclasses.fields(kind)})


def same(a: Event, b: Event) -> bool:
    """Equal, where a number that is none equals itself."""
    pairs = zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True)
    return type(a) is type(b) and all(
        x == y or (isinstance(x, float) and isinstance(y, float) and math.isnan(x) and math.isnan(y)) for x, y in pairs
    )


def test_every_kind_of_event_is_known_by_its_name():
    found = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)} - {Event}
    assert found == set(KINDS.values())


def test_every_field_of_an_event_has_a_type_that_is_checked():
    kinds = {field.type for kind in events._KINDS.values() for field in dataclasses.fields(kind)}
    assert kinds <= set(events._TYPES), "else each such line would count as damaged"


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_every_kind_survives_the_round_trip(name, data):
    kind = KINDS[name]
    event = kind(**{field.name: data.draw(VALUES[field.type]) for field in dataclasses.fields(kind)})
    line = event.to_json()
    assert "\n" not in line
    assert line.startswith(f'{{"event": "{name}", "time": ')
    assert same(from_json(line), event)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_still_json_and_still_a_number(value):
    line = events.Step(3, value, value, None, 1e-5, 0.1).to_json()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(line, parse_constant=refuse)
    again = from_json(line)
    assert isinstance(again.loss, float)
    assert str(again.loss) == str(value)
    assert again.prior_loss is None


def test_a_prompt_that_reads_like_a_number_stays_text():
    event = events.Image("samples/a.png", "nan", 0, 1)
    assert from_json(event.to_json()).prompt == "nan"


def test_an_event_knows_when_it_happened():
    first, second = events.Stage("a"), events.Stage("b")
    assert 1.6e9 < first.time <= second.time
    assert from_json(first.to_json()).time == first.time


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "{}",
        "[]",
        "3",
        "null",
        '"step"',
        '{"event": "nope"}',
        '{"event": ["step"]}',
        '{"event": "progress"}',
        '{"event": "progress", "done": 1, "more": 2}',
        '{"event": "step", "step": 1, "loss": "high", "instance_loss": 1, "prior_loss": null, "lr": 1, "seconds": 1}',
        '{"event": "progr',
    ],
)
def test_a_line_that_is_no_event_is_refused_in_one_line(line):
    with pytest.raises(RunError) as caught:
        from_json(line)
    assert str(caught.value).startswith("events.jsonl: not an event")
    assert len(str(caught.value).splitlines()) == 1


# ---- In a run's events.jsonl


@given(happened=st.lists(any_event(), max_size=5))
def test_a_run_gives_back_what_was_appended(tmp_path_factory, happened):
    run = Run(tmp_path_factory.mktemp("run"))
    for event in happened:
        run.append(event)
    assert all(same(a, b) for a, b in zip(run.events(), happened, strict=True))


def test_each_event_is_on_disk_at_once(tmp_path):
    run = Run(tmp_path)
    run.append(events.Progress(1))
    assert (tmp_path / "events.jsonl").read_text().endswith("\n")
    run.append(events.Progress(2))
    assert [json.loads(line)["done"] for line in (tmp_path / "events.jsonl").read_text().splitlines()] == [1, 2]


def test_a_line_still_being_written_is_left_for_the_next_look(tmp_path):
    run = Run(tmp_path)
    run.append(events.Progress(1))
    whole = events.Image("a.png", "été", 0, 1).to_json().encode() + b"\n"
    log = tmp_path / "events.jsonl"
    begun = log.read_bytes()
    for written in range(len(whole)):
        log.write_bytes(begun + whole[:written])
        assert [type(e) for e in run.events()] == [events.Progress], f"{written} of {len(whole)} bytes"
    log.write_bytes(begun + whole)
    assert run.events()[-1].prompt == "été"


def test_a_run_without_events_has_none(tmp_path):
    assert Run(tmp_path).events() == []
