"""Drawing that can be watched and stopped, here and on ZeroGPU."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gradio as gr
import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from dreambooth import apart
from dreambooth.config.sections import SamplingConfig
from dreambooth.ui import drawing, models
from dreambooth.ui.drawing import Order, Progress, Step, Weights, as_it_happens, paint
from dreambooth.ui.generate.actions import Actions as Generate
from tests.ui import studios

QUICK = SamplingConfig(steps=3)


# ---- The pencil


def test_models_are_got_while_another_draws(gallery: gr.Gallery, studio, monkeypatch: pytest.MonkeyPatch):
    """Whoever waits for a download waits without the pencil, and who has it draws."""
    fetching, fetched = threading.Event(), threading.Event()

    def open_model(*_: object, **__: object) -> models.Model:
        fetching.set()
        fetched.wait(60)
        return models.Model("tiny-sd", Weights(studio.model("tiny-sd")), QUICK)

    monkeypatch.setattr(models, "open_model", open_model)
    slow = Generate(studio, gallery).generate(studios.ANNA, "owner/slow", "a dog", "", 2, 3.0, 0, 1)
    next(slow)
    assert fetching.wait(60)
    quick = paint([Order(Weights(studio.model("tiny-sd")), "a dog", 0, 1)], QUICK, "", False)
    assert any(isinstance(news, list) for news in quick), "it draws meanwhile"
    fetched.set()
    assert [*slow][-1][0]


# ---- Watching and stopping


def test_work_is_told_as_it_happens_and_its_end_and_errors_arrive():
    def work(tell):
        tell(1)
        tell(2)
        raise KeyError("three")

    seen = []
    with pytest.raises(KeyError, match="three"):
        seen.extend(as_it_happens(work))
    assert [news for news in seen if news] == [1, 2]


def test_silence_is_told_too_so_that_a_slow_step_can_be_left(monkeypatch):
    monkeypatch.setattr(drawing, "PATIENCE", 0.01)
    go = threading.Event()
    watched = as_it_happens(lambda tell: (go.wait(60), tell("done")))
    assert next(watched) is None
    go.set()
    assert "done" in list(watched)


def test_a_closed_watch_ends_the_work_at_its_next_word():
    started, closed, ended = threading.Event(), threading.Event(), threading.Event()

    def work(tell):
        try:
            tell("first")
            started.set()
            closed.wait(60)
            tell("second")
            pytest.fail("it went on")
        finally:
            ended.set()

    watched = as_it_happens(work)
    assert next(watched) == "first"
    assert started.wait(60)
    watched.close()
    closed.set()
    assert ended.wait(60)


def test_painting_tells_steps_and_pictures_and_stops_between_steps(tiny_model: Path, monkeypatch):
    orders = [Order(Weights(str(tiny_model)), "a dog", 7, 2), Order(Weights(str(tiny_model)), "a cat", 7, 1)]
    news = [told for told in paint(orders, QUICK, "", True) if told is not None]
    kinds = ["pictures" if isinstance(told, list) else told.done for told in news]
    assert kinds == [0, 1, 2, 3, "pictures", 0, 1, 2, 3, "pictures"]
    assert [(p.prompt, p.seed) for told in news if isinstance(told, list) for p in told] == [
        ("a dog", 7),
        ("a dog", 8),
        ("a cat", 7),
    ]

    painting = paint(orders, SamplingConfig(steps=900), "", True)
    while next(painting) != Step(1, 900):
        pass
    painting.close()
    assert drawing.PENCIL.acquire(timeout=60), "the drawing went on"
    drawing.PENCIL.release()


@pytest.mark.attack
def test_strangers_models_draw_apart_but_where_a_gpu_is_lent(tiny_model: Path, monkeypatch):
    begun, ended, told = [], threading.Event(), threading.Event()

    class Child:
        def draw(self, orders, *settings):
            begun.append(orders)
            settings[-1](Step(0, 3))
            told.wait(60)

        def end(self):
            ended.set()
            told.set()

    own, strangers = Weights(str(tiny_model)), Weights(str(tiny_model), stranger=True)
    monkeypatch.setattr(drawing, "Child", Child)
    orders = [Order(own, "a dog", 7, 1), Order(strangers, "a dog", 7, 1)]
    painting = paint(orders, QUICK, "", True)
    assert next(painting) == Step(0, 3)
    assert begun == [orders]
    painting.close()
    assert ended.is_set(), "Stop ends the child"
    monkeypatch.setattr(drawing, "Child", None)
    assert list(paint(orders[:1], QUICK, "", True))
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert list(paint(orders[1:], QUICK, "", True))


def test_models_that_do_not_fit_together_are_opened_one_after_the_other(tiny_model: Path, tmp_path: Path, monkeypatch):
    orders = [
        Order(Weights(str(tiny_model)), "a dog", 0, 1),
        Order(Weights(f"{tiny_model.resolve()}/."), "a dog", 0, 1),
    ]
    monkeypatch.setattr(apart, "available_memory", lambda device: 1)
    drawn = [told for told in paint(orders, QUICK, "", True) if isinstance(told, list)]
    assert drawn[0][0].image.tobytes() == drawn[1][0].image.tobytes()


def test_adapters_are_drawn_with_as_much_as_is_asked_for(tiny_model: Path, make_config, tmp_path: Path):
    folders = [studios.save_adapter(make_config(method="lora"), tmp_path / str(seed), seed) for seed in (1, 2)]
    one, other = map(str, folders)
    base = str(tiny_model)
    asked = {
        "base": Weights(base),
        "none of it": Weights(one, base, 0.0),
        "half": Weights(one, base, 0.5),
        "half on top": Weights(base, adapters=((one, 0.5),)),
        "both": Weights(one, base, 0.5, ((other, 0.7),)),
    }
    told = paint([Order(weights, "a dog", 3, 1) for weights in asked.values()], QUICK, "", True)
    drawn = [np.asarray(news[0].image, np.int16) for news in told if isinstance(news, list)]
    seen = dict(zip(asked, drawn, strict=True))
    for name, other, same in [
        ("none of it", "base", True),
        ("half on top", "half", True),
        ("half", "base", False),
        ("both", "half", False),
    ]:
        apart = np.abs(seen[name] - seen[other]).max()
        assert apart <= 1 if same else apart > 5, name


def test_what_is_loaded_is_counted(tiny_model: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(bytes(100))
    (tmp_path / "notes").write_bytes(bytes(1000))
    model = Weights(str(tmp_path), str(tiny_model), adapters=((str(tmp_path), 1.0),))
    base = sum(path.stat().st_size for path in tiny_model.rglob("*.safetensors"))
    for free, fits in ((2 * (base + 200) + 1, True), (2 * (base + 200), False)):
        monkeypatch.setattr(apart, "available_memory", lambda device, free=free: free)
        assert apart.fits({model}, "cpu") is fits


def test_an_error_while_painting_is_a_sentence(tmp_path: Path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(gr.Error) as told:
        list(paint([Order(Weights(str(tmp_path)), "a dog", 0, 1)], QUICK, "", True))
    assert "model_index.json can't be read" in told.value.message
    assert str(tmp_path.parent) not in told.value.message


def test_a_drawing_that_fails_is_not_said_to_be_stopped(browser: Browser, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    go_on = threading.Event()

    def draw(fails: bool) -> Iterator[tuple[str]]:
        yield (drawing.bar_html("Getting ready", 0),)
        if fails:
            raise gr.Error("No such model.", print_exception=False)
        yield from iter(lambda: go_on.wait(0.05) or (drawing.bar_html("Drawing", 1),), True)

    with gr.Blocks(analytics_enabled=False) as blocks:
        fails, button, stop = gr.Checkbox(True, label="Fails"), gr.Button("Draw"), gr.Button("Stop", visible=False)
        status = gr.HTML(elem_id="status")
        drawing.stoppable(button, stop, status, fn=draw, inputs=fails, outputs=[status])
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, run_history=False)
    page = browser.new_page()
    page.goto(url)
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("#status")).to_contain_text("Not finished: the message says why")
    expect(page.get_by_test_id("toast-body")).to_contain_text("No such model.")
    page.get_by_label("Fails").uncheck()
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped. What was drawn is kept")
    go_on.set()
    page.close()
    blocks.close()


# ---- ZeroGPU


def test_without_zero_gpu_the_function_stays_as_it_is(monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert drawing.on_zero_gpu(drawing.gpu_seconds)(len) is len


def test_on_zero_gpu_the_function_asks_for_as_long_as_the_drawing_takes(monkeypatch):
    asked = {}
    spaces = ModuleType("spaces")
    spaces.GPU = lambda duration: lambda function: asked.update({function: duration}) or function
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert drawing.on_zero_gpu(drawing.gpu_seconds)(len) is len
    seconds = asked[len]
    one, other = Weights("a"), Weights("a", scale=0.5)
    few, many, two = (
        [Order(one, "", 0, 1)],
        [Order(one, "", 0, 4)] * 4,
        [Order(model, "", 0, 1) for model in (one, other)],
    )
    assert 20 < seconds(few, SamplingConfig(steps=50), "", True) < 60
    assert seconds(many, SamplingConfig(steps=50), "", True) > seconds(two, SamplingConfig(steps=50), "", True) > 40


# ---- Progress


def test_progress_is_told_in_words_and_as_a_bar():
    progress = Progress(total=2)
    assert progress.take(Step(0, 4))
    assert "Getting ready to draw a &lt;dog&gt;" in progress.as_html("a <dog>")
    progress.shown = 0
    assert progress.take(Step(2, 4))
    told = progress.as_html("a dog")
    assert "Drawing a dog · step 2 of 4 · about " in told
    assert "aria-valuenow='25'" in told
    assert not progress.take(Step(3, 4)), "not each of many quick steps"
    assert progress.take([])
    assert "aria-valuenow='50'" in progress.as_html("a dog")


def test_a_file_is_kept_under_a_name_that_nobody_guesses(tmp_path: Path):
    gallery = gr.Gallery()
    gallery.GRADIO_CACHE = str(tmp_path)
    kept = {Path(drawing.keep_file(gallery, "a.txt", lambda file: file.write_text("x"))) for _ in range(2)}
    assert len(kept) == 2
    assert all(len(path.parent.name) == 32 and path.read_text() == "x" for path in kept)
    assert {str(path) for path in kept} <= gallery.temp_files
