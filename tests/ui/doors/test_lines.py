"""Who waits for what: bounds for each client, turns, and calls whose answer nobody reads."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import httpx
import pytest
from fastapi import Request
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Queue
from gradio_client import Client
from gradio_client.exceptions import AppError

from dreambooth.runs.owners import new_owner
from dreambooth.ui.doors import lines
from dreambooth.ui.doors.lines import Lines
from dreambooth.ui.doors.login import COOKIE
from tests.ui.conftest import SECONDS, Served, serve
from tests.ui.test_crowd import start, status, until, visitor

DRAW, STOP = 0, 1


@pytest.fixture
def make_lines() -> Callable[..., Lines]:
    """A function that makes the lines of a page with two kinds of calls, none of which is served."""

    def make(drawings: int | None = 2) -> Lines:
        with gr.Blocks() as page:
            button = gr.Button()
            button.click(lambda: None, concurrency_id="draw", concurrency_limit=1)
            button.click(lambda: None, concurrency_id="stop", concurrency_limit=1)
        return Lines(page, drawings)

    return make


def asked(address: str, cookie: str = "") -> Request:
    headers = [(b"cookie", f"{COOKIE}={cookie:a<32}".encode())] if cookie else []
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers, "client": (address, 1)})


def call(queue: Queue, session: str, address: str, kind: int = DRAW, cookie: str = "") -> str:
    """What the call is answered at once; empty where it waits."""
    body, request = PredictBodyInternal(fn_index=kind, data=[], session_hash=session), asked(address, cookie)
    taken, _, state = asyncio.run(queue.push(body, request, None))
    assert (taken, state) == (True, "success")
    last = queue.pending_messages_per_session[session]._queue[-1]
    return last.output["error"] if last.msg == "process_completed" else ""


def waiting(queue: Queue, line: str = "draw") -> list[str]:
    return [event.session_hash for event in queue.event_queue_per_concurrency_id[line].queue]


@pytest.mark.attack
def test_a_visitor_has_so_many_drawings_and_an_address_more(make_lines):
    queue = make_lines(2)
    assert [call(queue, f"tab{n}", "1.1.1.1", cookie="anna") for n in range(2)] == ["", ""]
    assert "2 of your drawings wait or are drawn, the most at once" in call(queue, "tab3", "1.1.1.1", cookie="anna")
    assert call(queue, "tab3", "1.1.1.1", STOP, cookie="anna") == "", "other calls have lines of their own"
    for number in range(2, 2 * lines.BEHIND_ONE_ADDRESS):
        assert call(queue, f"made up {number}", "1.1.1.1") == ""
    assert "16 drawings wait or are drawn that come from your address" in call(queue, "one more", "1.1.1.1")
    assert call(queue, "berts", "2.2.2.2", cookie="bert") == ""
    assert len(waiting(queue)) == 2 * lines.BEHIND_ONE_ADDRESS + 1


def test_without_a_limit_anybody_asks_for_any_number_until_the_line_is_full(make_lines, monkeypatch):
    monkeypatch.setattr(lines, "MOST", 30)
    queue = make_lines(None)
    assert [call(queue, "anna", "1.1.1.1") for _ in range(30)] == [""] * 30
    assert "30 calls wait already. Come back later." in call(queue, "bert", "2.2.2.2")
    assert call(queue, "bert", "2.2.2.2", STOP) == "", "nobody who draws keeps others from anything else"


@pytest.mark.attack
def test_everybodys_first_comes_before_anybodys_second(make_lines):
    queue = make_lines(4)
    for session, address in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b"), ("a4", "a")]:
        assert call(queue, session, address) == ""
    assert waiting(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    queue.active_jobs = [[queue.event_queue_per_concurrency_id["draw"].queue.pop(0)]]  # is drawn now
    assert call(queue, "d1", "d") == call(queue, "a5", "a") == ""
    assert waiting(queue) == ["b1", "c1", "d1", "a2", "b2", "a3", "a4", "a5"]


@pytest.mark.attack
def test_a_call_whose_answer_nobody_reads_is_given_up(make_lines):
    queue = make_lines(3)
    call(queue, "gone", "a")
    call(queue, "reads", "b")

    def look(now: float) -> list[str]:
        queue.pending_messages_per_session["reads"]._queue.clear()  # as a page does all the time
        asyncio.run(queue.give_up(now))
        return waiting(queue)

    assert look(0.0) == look(lines.UNREAD - 1) == ["gone", "reads"]
    served = queue.event_queue_per_concurrency_id["draw"].queue[0]
    queue.active_jobs = [[served]]
    assert look(lines.UNREAD + 1) == ["reads"]
    assert not served.alive, "what is drawn for nobody ends, too"
    assert "gone" not in queue.pending_messages_per_session
    assert "gone" not in queue.pending_event_ids_session
    assert call(queue, "reads", "b") == ""


# ---- A served studio


@pytest.fixture(scope="module")
def public(tiny_model: Path, photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(
        tmp_path_factory.mktemp("public"), tiny_model, photo_folder, public="true", hosts="studio.example"
    ) as studio:
        yield studio


def ask_to_draw(url: str, address: str) -> str:
    """A drawing of many steps, as a client asks for it that reads no answer; the event's id."""
    data = [new_owner(), "tiny-sd", "a dog", "", 100, 3.0, 0, 16, True, "last", 1, "", 1, "", 1, "", 1]
    answer = httpx.post(
        f"{url}gradio_api/call/generate", json={"data": data}, headers={"X-Forwarded-For": address}, timeout=SECONDS
    )
    assert answer.status_code == 200
    return answer.json()["event_id"]


@pytest.mark.slow
@pytest.mark.attack
def test_who_fills_the_line_keeps_nobody_from_the_page(public: Served, tmp_path: Path):
    sent = [ask_to_draw(public.url, "203.0.113.7") for _ in range(70)]
    told = httpx.get(f"{public.url}gradio_api/call/generate/{sent[-1]}", timeout=SECONDS).text
    assert "event: error" in told
    assert "24 drawings wait or are drawn that come from your address" in told
    client = Client(public.url, verbose=False, download_files=tmp_path, headers={"X-Forwarded-For": "203.0.113.8"})
    anna = new_owner()
    run = start(client, anna, public.photos, "first")
    until(lambda: status(client, anna, run) == "finished", "another's drawings keep it from training")
    pictures, said = client.predict(anna, run, "a photo of first dog", "", 1, 3.0, 0, 1, api_name="/generate")
    assert pictures
    assert "1 picture" in said
    client.predict(anna, run, api_name="/delete_run")
    assert client.predict(anna, api_name="/runs") == []


@pytest.mark.attack
def test_nobody_gets_past_the_lines(public: Served, tmp_path: Path):
    functions = (
        "check_photos",
        "start_training",
        "generate",
        "models",
        "runs",
        "run_status",
        "publishing",
        "identifier_advice",
    )
    for way in ("run", "api"):
        for name in functions:
            answer = httpx.post(f"{public.url}gradio_api/{way}/{name}", json={"data": []}, timeout=SECONDS)
            assert (answer.status_code, list(answer.json())) == (404, ["detail"])
            assert "does not accept direct HTTP POST requests" in answer.json()["detail"]
    sent = httpx.post(f"{public.url}gradio_api/call/check_photos", json={"data": [[], None]}, timeout=SECONDS).json()
    told = httpx.get(f"{public.url}gradio_api/call/check_photos/{sent['event_id']}", timeout=SECONDS).text
    assert "event: complete" in told
    assert "No photos yet" in told
    client = visitor(public.url, tmp_path)
    assert client.predict(new_owner(), api_name="/runs") == []
    assert client.predict("robot", api_name="/identifier_advice")["verdict"]


def test_an_api_caller_is_told_in_a_sentence(public: Served, tmp_path: Path):
    client = visitor(public.url, tmp_path)
    slow = ("tiny-sd", "a dog", "", 100, 3.0, 0, 16)
    jobs = [client.submit(new_owner(), *slow, api_name="/generate") for _ in range(3)]
    until(lambda: all(job.status().code.name in ("IN_QUEUE", "PROCESSING", "ITERATING") for job in jobs), "none waits")
    with pytest.raises(AppError, match="3 of your drawings wait or are drawn, the most at once"):
        client.predict(new_owner(), *slow, api_name="/generate")
    for job in jobs:
        job.cancel()
