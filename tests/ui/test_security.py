"""What one visitor may not get from another, or from the server."""

import json
import math
import re
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, expect

from dreambooth.runs.owners import new_owner
from tests.hub import LoopbackHub
from tests.ui.conftest import ROOT, SECONDS, Served, serve
from tests.ui.test_page import open_tab
from tests.ui.test_sharing import log_in

ANNA, BERT = new_owner(), new_owner()
DRAWING = ("a photo of a dog", "", 2, 3.0, 7, 1)


def photos_of(paths: list[Path]) -> list[dict]:
    return [{"image": handle_file(path), "caption": None} for path in paths]


@pytest.fixture(scope="module")
def client(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(served.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def annas(served: Served, client: Client) -> str:
    """A run of Anna's."""
    [run] = client.predict(
        owner=ANNA,
        photos=photos_of(served.photos),
        identifier="sks",
        class_noun="dog",
        recipe="toybox",
        base_model="tiny-sd",
        steps=2,
        prior=False,
        api_name="/start_training",
    )
    return run


def filled(served: Served, name: str, **given: object) -> list:
    """All values of an endpoint in their order, those that are not given as a caller's who leaves them out."""
    endpoints = httpx.get(f"{served.url}gradio_api/info", timeout=SECONDS).json()["named_endpoints"]
    values = {one["parameter_name"]: one["parameter_default"] for one in endpoints[f"/{name}"]["parameters"]}
    assert given.keys() <= values.keys()
    return [*(values | given).values()]


def called(served: Served, name: str, data: list) -> str:
    """What the server answers to a raw call, as anybody could send it."""
    sent = {"content": json.dumps({"data": data}), "headers": {"content-type": "application/json"}}
    call = httpx.post(f"{served.url}gradio_api/call/{name}", **sent, timeout=SECONDS)
    if call.status_code != 200:
        return f"event: error {call.status_code} {call.text}"
    return httpx.get(f"{served.url}gradio_api/call/{name}/{call.json()['event_id']}", timeout=SECONDS).text


def uploaded(served: Served, path: Path, file_name: str = "") -> str:
    """Where the server keeps what was uploaded to it."""
    files = {"files": (file_name or path.name, path.read_bytes(), "image/png")}
    [kept] = httpx.post(f"{served.url}gradio_api/upload", files=files, timeout=SECONDS).raise_for_status().json()
    return kept


def gallery(*paths: str | Path) -> list[dict]:
    """What a page sends of its photos."""
    return [{"image": {"path": str(p), "meta": {"_type": "gradio.FileData"}}, "caption": None} for p in paths]


@pytest.mark.attack
def test_what_is_sent_by_hand_is_refused_in_a_sentence_and_comes_into_no_log(served: Served):
    """Through the server, whose queue prints what goes wrong; `test_inputs` tries more, and hidden events."""
    info = httpx.get(f"{served.url}gradio_api/info", timeout=SECONDS).json()["named_endpoints"]
    mark, refused = "m4rk3d", 0
    for endpoint in info:
        name = endpoint.removeprefix("/")
        for place in range(len(info[endpoint]["parameters"])):
            values = filled(served, name)
            values[place] = {mark: [mark, math.nan]}
            told = called(served, name, values)
            if told.startswith("event: error"):
                refused += 1
                assert re.search(r'"error": ?"[^"]{10,}\."', told.replace('\\"', "'")), (name, place, told)
        if info[endpoint]["parameters"]:
            assert "values, and 0 were sent" in called(served, name, [])
    assert refused > 60
    logged = served.errors.read_text()
    for secret in (mark, "Traceback", "An event failed"):
        assert secret not in logged, logged[:3000]


@pytest.mark.parametrize(
    "name", ["run_status", "stop_training", "resume_training", "delete_run", "train_other_way", "publishing"]
)
def test_another_visitors_run_does_not_exist(client: Client, annas: str, name: str):
    with pytest.raises(AppError, match="You have no such run"):
        client.predict(BERT, annas, api_name=f"/{name}")


def test_another_visitors_model_draws_nothing(client: Client, annas: str):
    with pytest.raises(AppError, match="You have no such run"):
        client.predict(BERT, annas, *DRAWING, api_name="/generate")
    with pytest.raises(AppError, match="You have no such run"):
        client.predict(BERT, annas, "a photo of a dog", 2, 3.0, 7, 1, api_name="/compare")


@pytest.mark.parametrize("slot", ["adapter", "adapter_2", "adapter_3"])
def test_another_visitors_adapter_goes_on_no_model(client: Client, served: Served, annas: str, slot: str):
    for name in (annas, str(served.runs / annas), f"../runs/{annas}", "owner/lora", "/etc"):
        with pytest.raises(AppError, match="You have no such run"):
            client.predict(BERT, "tiny-sd", *DRAWING, **{slot: name}, api_name="/generate")


@pytest.mark.parametrize("weight", [-1, 1.6, "1", [1]])
def test_a_strength_is_a_number_of_the_slider(served: Served, annas: str, weight: object):
    for name in ("scale", "weight"):
        asked = {"owner": BERT, "model": "tiny-sd", "prompt": "a dog", "steps": 1, "count": 1, name: weight}
        assert "event: complete" in called(served, "generate", filled(served, "generate", **asked | {name: 1}))
        said = called(served, "generate", filled(served, "generate", **asked))
        assert said.startswith("event: error")
        assert re.search(r"takes a number|no strength of an adapter|is (less|greater) than", said), said


def test_another_visitors_run_is_not_published(client: Client, annas: str):
    with pytest.raises(AppError, match="You have no such run"):
        client.predict(BERT, annas, "stolen", api_name="/publish")


@pytest.mark.parametrize("name", ["", ".", "..", "../runs", "/etc", "a/../b", "owner", "%2e%2e", "\x00"])
def test_a_run_id_is_no_path(client: Client, annas: str, name: str):
    with pytest.raises(AppError):
        client.predict(ANNA, name, api_name="/run_status")
    with pytest.raises(AppError):
        client.predict(ANNA, f"{name}/{annas}", *DRAWING, api_name="/generate")


def test_files_of_runs_and_of_the_server_are_not_served(served: Served, annas: str):
    run = served.runs / annas
    inside = [run / name for name in ("config.yaml", "owner", "events.jsonl", "uploads/00.png")]
    assert all(path.is_file() for path in inside)
    for path in (*inside, ROOT / "app.py", served.errors, Path("/etc/passwd")):
        for asked in (f"{path}", f"/{path}", f"..{path}", f"runs/../{path}"):
            answer = httpx.get(f"{served.url}gradio_api/file={asked}", timeout=SECONDS)
            assert answer.status_code in (403, 404), asked


@pytest.mark.parametrize("name", ["check_photos", "start_training"])
def test_a_file_of_the_server_is_not_taken_for_an_upload(served: Served, annas: str, name: str):
    words = {"owner": new_owner(), "identifier": "sks", "class_noun": "dog", "steps": 2, "prior": False}
    asked = words if name == "start_training" else {}
    for path in (ROOT / "LICENSE", served.runs / annas / "uploads" / "00.png"):
        said = called(served, name, filled(served, name, **asked, photos=gallery(path)))
        assert said.startswith("event: error"), path
        assert "no file that was uploaded" in said, path
        assert str(path) not in said
    own = gallery(uploaded(served, served.photos[0]))
    assert "event: complete" in called(served, name, filled(served, name, **asked, photos=own))


def test_a_further_subjects_photo_is_no_file_of_the_server_either(served: Served, annas: str):
    def start(photo: str | Path) -> str:
        more = [{"identifier": "ohwx", "class_noun": "cat", "photos": 1}]
        asked = {"owner": new_owner(), "identifier": "sks", "class_noun": "dog", "steps": 2, "prior": False}
        asked |= {"photos": own, "more_subjects": more, "more_photos": gallery(photo)}
        return called(served, "start_training", filled(served, "start_training", **asked))

    own = gallery(uploaded(served, served.photos[0]))
    for path in (ROOT / "LICENSE", served.runs / annas / "uploads" / "00.png"):
        assert "no file that was uploaded" in start(path), path
    assert "event: complete" in start(own[0]["image"]["path"])


@pytest.mark.parametrize(
    "file_name",
    [
        "../../../outside.png",
        "..\\..\\outside.png",
        "/tmp/outside.png",
        "<img src=x onerror=alert(1)>.png",
        "a\x00b.png",
    ],
)
def test_an_odd_file_name_stays_a_name(served: Served, client: Client, file_name: str, tmp_path: Path):
    image = tmp_path / "plain.png"
    Image.new("RGB", (80, 64), "teal").save(image)
    try:
        path = uploaded(served, image, file_name)
    except httpx.HTTPStatusError:
        return  # refused at the door
    assert Path(path).resolve().is_relative_to((served.runs.parent / "gradio").resolve())
    told = called(served, "check_photos", filled(served, "check_photos", photos=gallery(path)))
    assert "event: complete" in told
    assert "coached" in told, "else nothing of it was shown"
    assert "<img src=x" not in told.replace("\\u003c", "<")
    kept = served.runs.parent / "gradio"
    assert all(found.is_relative_to(kept) for found in served.runs.parent.rglob("*outside.png"))
    assert not Path("/tmp/outside.png").exists()


def test_what_is_no_picture_is_refused_by_name(served: Served, client: Client, tmp_path: Path):
    script = tmp_path / "drawing.png"
    script.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    with pytest.raises(AppError, match=r"drawing\.png"):
        client.predict(
            owner=BERT,
            photos=photos_of([script]),
            identifier="sks",
            class_noun="dog",
            recipe="toybox",
            base_model="tiny-sd",
            steps=2,
            prior=False,
            api_name="/start_training",
        )
    assert client.predict(BERT, api_name="/runs") == []


def test_settings_reach_no_file_of_the_server(client: Client, served: Served, annas: str):
    photos = photos_of(served.photos)
    for more in (
        {"subject": {"photos": "/etc"}},
        {"base_model": "/etc"},
        {"revision": "../.."},
        {"device": "/dev/sda"},
        {"evaluation": {"dino": "/etc"}},
        {"evaluation": {"clip": "somebody/model"}},
    ):
        with pytest.raises(AppError):
            client.predict(
                owner=BERT,
                photos=photos,
                identifier="sks",
                class_noun="dog",
                recipe="toybox",
                base_model="tiny-sd",
                steps=2,
                prior=False,
                more=more,
                api_name="/start_training",
            )
    with pytest.raises(AppError, match=r"not (on offer|in the list of choices)"):
        client.predict(
            owner=BERT, photos=photos, identifier="sks", class_noun="dog", base_model="/etc", api_name="/start_training"
        )
    with pytest.raises(AppError):
        client.predict(BERT, "/etc", *DRAWING, api_name="/generate")
    assert client.predict(BERT, api_name="/runs") == []


def test_no_answer_tells_a_path_or_an_id_of_the_owner(served: Served, client: Client, annas: str):
    told = json.dumps([client.predict(ANNA, api_name="/runs"), client.predict(ANNA, annas, api_name="/run_status")])
    assert str(served.runs) not in told
    assert ANNA not in told
    assert ANNA not in (served.runs / annas / "owner").read_text()


def test_a_private_model_of_one_visitor_is_refused_to_the_next(
    tiny_model: Path, photo_folder: Path, tmp_path: Path, hub: LoopbackHub, browser: Browser
):
    """Through the API, the cache that the first visitor filled, the gallery and the page."""
    hub.add_repo(
        "anna/mug",
        {
            **{path.relative_to(tiny_model).as_posix(): path.read_bytes() for path in tiny_model.rglob("*.*")},
            "README.md": "---\ntags: [dreambooth-studio]\ninstance_prompt: a photo of sks mug\n---",
        },
        private=True,
    )
    anna, bert = (hub.add_user(name, scopes=("read",)) for name in ("anna", "bert"))
    around = hub.oauth_environment() | {"HF_TOKEN": hub.add_user("anna", scopes=("write",))}  # the host is anna, too
    with serve(tmp_path, tiny_model, photo_folder, around=around, public="false") as served:

        def visitor(token: str | None) -> Client:
            return Client(served.url, verbose=False, download_files=tmp_path / "downloads", oauth_token=token)

        assert "1 picture in" in visitor(anna).predict(ANNA, "anna/mug", *DRAWING, api_name="/generate")[1]
        assert [model["repo_id"] for model in visitor(anna).predict(api_name="/gallery")] == ["anna/mug"]
        assert any(Path(around["HF_HOME"]).rglob("unet/*.safetensors")), "it is on the server now"
        [commit] = [path.name for path in Path(around["HF_HOME"]).rglob("snapshots/*")]
        for client in (visitor(bert), visitor(None)):
            for name in ("anna/mug", f"anna/mug@{commit}"):
                with pytest.raises(AppError, match="anna/mug is not on the Hub, or is private"):
                    client.predict(ANNA, name, *DRAWING, api_name="/generate")
            assert client.predict(api_name="/gallery") == []
        with pytest.raises(AppError, match="does not accept the login"):
            visitor("hf_" + "x" * 34).predict(BERT, "anna/mug", *DRAWING, api_name="/generate")

        page = browser.new_page()
        page.goto(served.url)
        log_in(page, "bert")
        open_tab(page, "Gallery")
        expect(page.locator("#gallery")).to_contain_text("No models yet")
        open_tab(page, "Generate")
        page.locator("#model input").fill("anna/mug")
        page.locator("#model input").press("Enter")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.get_by_test_id("toast-body")).to_contain_text("anna/mug is not on the Hub, or is private")
        page.close()
        said = served.errors.read_text()
        assert not any(secret in said for secret in hub.tokens)
        assert around["HF_TOKEN"] not in {request.token for request in hub.requests}
