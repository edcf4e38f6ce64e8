"""Reports: averages and differences that are right, CSVs that read back, one HTML file that gives nothing away."""

from __future__ import annotations

import csv
import html
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth import events
from dreambooth.errors import ConfigError
from dreambooth.evaluation.evaluate import (
    BASE,
    ClassPicture,
    Evaluation,
    PromptScores,
    Sampler,
    SubjectPicture,
    group_of,
)
from dreambooth.evaluation.reports import (
    Cell,
    Cost,
    Line,
    comparison_table,
    cost_of,
    cost_table,
    difference_table,
    differences,
    draw_sheet,
    drift_plot,
    gallery,
    loss_plot,
    progress_plot,
    summary,
    write_costs,
    write_csvs,
    write_report,
)
from dreambooth.evaluation.reports.gallery import CELL
from dreambooth.evaluation.reports.published import PUBLISHED, protocol
from dreambooth.evaluation.reports.tables import verdict
from dreambooth.generate import save_picture
from dreambooth.metrics.measures import Measure, Measures
from dreambooth.metrics.metrics import METRICS, Estimate, estimate_mean

TOYBOX = {"dino": "toybox ViT", "clip": "toybox CLIP", "perceptual": "toybox ViT patch distance"}
PUBLIC = {"dino": "facebook/dino-vits16", "clip": "openai/clip-vit-base-patch32", "perceptual": "LPIPS 0.1 (AlexNet)"}
COLOURS = {BASE: "grey", "without PPL": "red", "with PPL": "blue"}


def evaluation(
    folder: Path,
    subject: str = "rex",
    condition: str = "with PPL",
    seed: int = 1,
    *,
    noise: int = 0,
    levels: tuple[float, ...] = (0.6, 0.8, 0.3, 0.4, 0.5),
    prompts: tuple[str, ...] = ("a sks dog", "a wet sks dog"),
    problem: str = "",
    encoders: dict[str, str] = TOYBOX,
    identifier: str = "sks",
    precision: str = "bf16",
) -> Evaluation:
    """An evaluation whose five metrics are about `levels`, with its pictures, saved in `folder`."""
    rng = np.random.default_rng(noise)
    dino, clip_i, clip_t, pres, div = levels

    def near(level: float) -> float:
        return float(level + rng.normal(0, 0.02))

    pictures = [
        SubjectPicture(
            file=f"prompt-{n:02d}-{s}.png",
            prompt=n,
            seed=s,
            problem="",
            dino=near(dino),
            clip_i=near(clip_i),
            clip_t=near(clip_t),
        )
        for n in range(len(prompts))
        for s in range(2)
    ]
    if problem:
        pictures[0] = pictures[0].model_copy(update={"problem": problem, "dino": None, "clip_i": None, "clip_t": None})
    kin = [ClassPicture(file=f"class-{s}.png", seed=s, problem="", pres=near(pres)) for s in range(4)]
    for name in [p.file for p in (*pictures, *kin)]:
        save_picture(folder / "images" / name, Image.new("RGB", (64, 64), COLOURS.get(condition, "green")))
    rows = [
        PromptScores(
            prompt=text.replace("sks", identifier),
            described=text.replace("sks ", ""),
            count=2,
            dino=near(dino),
            clip_i=near(clip_i),
            clip_t=near(clip_t),
            div=near(div),
        )
        for text in prompts
    ]
    made = Evaluation(
        subject=subject,
        class_noun="dog",
        identifier=identifier,
        condition=condition,
        model=f"run-{seed}",
        base_model="toybox",
        method="full",
        step=0 if condition == BASE else 400,
        seed=seed,
        encoders=encoders,
        photos=5,
        images_per_prompt=2,
        class_prompt="a photo of a dog",
        class_images=4,
        first_seed=0,
        sampling=Sampler(steps=25, guidance_scale=3.0, scheduler="default", precision=precision),
        left_out=int(bool(problem)),
        metrics={},
        ceilings={"dino": 0.9, "clip_i": 0.95},
        prompts=tuple(rows),
        pictures=tuple(pictures),
        class_pictures=tuple(kin),
        request="x",
    )
    estimates = {}
    for name in METRICS:
        values = made.values(name)
        estimates[name] = estimate_mean(list(values.values()), [group_of(name, key) for key in values])
    made = made.model_copy(update={"metrics": estimates})
    made.save(folder)
    return Evaluation.load(folder)


@pytest.fixture
def trio(tmp_path) -> list[Evaluation]:
    """One subject by the base model, without and with PPL."""
    levels = {
        BASE: (0.3, 0.6, 0.32, 0.3, 0.6),
        "without PPL": (0.7, 0.85, 0.3, 0.6, 0.4),
        "with PPL": (0.65, 0.84, 0.31, 0.35, 0.55),
    }
    return [
        evaluation(tmp_path / "in" / condition, condition=condition, levels=some, noise=number)
        for number, (condition, some) in enumerate(levels.items())
    ]


@pytest.fixture
def study(tmp_path) -> list[Evaluation]:
    """Three subjects, each with its base model and two seeds of two conditions."""
    found = []
    for number, subject in enumerate(("rex", "tom", "mug")):
        found.append(evaluation(tmp_path / "in" / subject, subject, BASE, 1, noise=number))
        for seed in (1, 2):
            for condition, pres in (("without PPL", 0.6), ("with PPL", 0.4)):
                levels = (0.6, 0.8, 0.3, pres + 0.1 * number, 0.5)
                folder = tmp_path / "in" / f"{subject}-{condition}-{seed}"
                noise = 100 * number + 10 * seed + (condition == "with PPL")
                found.append(evaluation(folder, subject, condition, seed, levels=levels, noise=noise))
    return found


def measures(slope: float = 1.0, div: bool = True) -> Measures:
    steps = (0, 100, 200)
    rows = (
        Measure(s, 0.3 + 0.001 * s, 0.7, 0.3, 0.4 + slope * 0.001 * s, 0.3 - 0.0005 * s if div else None) for s in steps
    )
    return Measures(0.8, {}, 100, tuple(rows))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- Means


def test_one_evaluation_speaks_for_itself(trio):
    assert summary(trio, "with PPL") == trio[2].metrics


def test_over_subjects_each_counts_the_same_and_whole_subjects_vary(study):
    found = summary(study, "with PPL")["pres"]
    chosen = [e for e in study if e.condition == "with PPL"]
    values = [e.metrics["pres"].value for e in chosen]
    assert found.value == pytest.approx(np.mean(values))
    assert found.count == 6
    by_subject = [np.mean(values[i : i + 2]) for i in (0, 2, 4)]
    reach = 4.303 * np.std(by_subject, ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach), rel=1e-3)


def test_one_subjects_seeds_are_pooled_by_prompt(study):
    ours = [e for e in study if e.subject == "rex"]
    found = summary(ours, "with PPL")
    chosen = [e for e in ours if e.condition == "with PPL"]
    pictures = [p.dino for e in chosen for p in e.pictures]
    assert found["dino"].value == pytest.approx(np.mean(pictures))
    assert (found["dino"].count, found["pres"].count, found["div"].count) == (8, 8, 4)


# ---- Paired differences


def test_differences_of_one_subject_pair_its_pictures(trio):
    _, without, with_ppl = trio
    found = differences(trio, "with PPL", "without PPL")
    by_hand = [a.pres - b.pres for a, b in zip(with_ppl.class_pictures, without.class_pictures, strict=True)]
    assert found["pres"].value == pytest.approx(np.mean(by_hand))
    assert found["pres"].count == 4
    reach = 3.182 * np.std(by_hand, ddof=1) / np.sqrt(4)
    assert (found["pres"].low, found["pres"].high) == pytest.approx(
        (np.mean(by_hand) - reach, np.mean(by_hand) + reach), rel=1e-3
    )
    assert found["pres"].high < 0
    rows = [a.div - b.div for a, b in zip(with_ppl.prompts, without.prompts, strict=True)]
    assert found["div"].value == pytest.approx(np.mean(rows))
    assert found["div"].high - found["div"].value == pytest.approx(12.706 * abs(rows[0] - rows[1]) / 2, rel=1e-3)


def test_a_picture_that_one_side_lacks_is_left_out_of_both(tmp_path):
    ours = evaluation(tmp_path / "a", condition="with PPL", problem="held back")
    theirs = evaluation(tmp_path / "b", condition="without PPL", noise=1)
    found = differences([ours, theirs], "with PPL", "without PPL")
    pairs = list(zip(ours.pictures, theirs.pictures, strict=True))[1:]
    assert found["dino"].value == pytest.approx(np.mean([a.dino - b.dino for a, b in pairs]))
    assert found["dino"].count == 3


def test_differences_over_subjects_pair_by_subject_and_seed(study):
    found = differences(study[::-1], "with PPL", "without PPL")["pres"]
    table = {(e.subject, e.condition, e.seed): e.metrics["pres"].value for e in study}
    by_hand = [table[s, "with PPL", n] - table[s, "without PPL", n] for s in ("rex", "tom", "mug") for n in (1, 2)]
    assert found.value == pytest.approx(np.mean(by_hand))
    assert found.count == 6
    assert found.high < -0.15, "it is much clearer than the subjects' own spread of 0.2"


def test_every_seed_is_compared_with_the_one_base_model(study):
    found = differences(study, "with PPL", BASE)["dino"]
    base = {e.subject: e.metrics["dino"].value for e in study if e.condition == BASE}
    by_hand = [e.metrics["dino"].value - base[e.subject] for e in study if e.condition == "with PPL"]
    assert (found.value, found.count) == (pytest.approx(np.mean(by_hand)), 6)


def test_what_has_no_partner_is_not_compared(study):
    alone = [e for e in study if not (e.condition == "without PPL" and e.seed == 2)]
    assert differences(alone, "with PPL", "without PPL")["dino"].count == 3
    assert differences(study, "with PPL", "of another study") == {}
    assert difference_table(study, "with PPL", "of another study") == ""


def test_pictures_are_paired_whatever_word_a_model_has_for_its_subject(trio, tmp_path):
    levels = (0.5, 0.8, 0.3, 0.3, 0.6)
    ours = evaluation(tmp_path / "in" / "ti", condition="inversion", identifier="<sks>", levels=levels, noise=7)
    found = differences([*trio, ours], "inversion", "with PPL")
    by_hand = [a.dino - b.dino for a, b in zip(ours.pictures, trio[2].pictures, strict=True)]
    assert found["dino"].value == pytest.approx(np.mean(by_hand))
    assert [found[name].count for name in METRICS] == [4, 4, 4, 4, 2]
    path = gallery([trio[2], ours], tmp_path / "gallery.png", prompts=2)
    with Image.open(path) as sheet:
        colours = {colour: count for count, colour in sheet.convert("RGB").getcolors(1 << 24)}
    assert colours[(0, 0, 255)] == colours[(0, 128, 0)] == (2 + 2) * CELL * CELL, "side by side"


def test_of_many_conditions_each_has_one_table_with_all_others(trio, tmp_path):
    names = ("LoRA", "inversion", "custom")
    more = [
        evaluation(tmp_path / "in" / name, condition=name, levels=(0.1, 0.8, 0.3, 0.4, 0.5), noise=10 + n)
        for n, name in enumerate(names)
    ]
    text = write_report(tmp_path / "out", "Many", [*trio, *more]).markdown.read_text()
    section = text.split("## Differences")[1].split("## The pictures")[0]
    rows = [line.split(" | ") for line in section.splitlines() if " − " in line]
    assert [row[0].strip("| ") for row in rows[:4]] == [
        "with PPL − without PPL",
        "LoRA − without PPL",
        "inversion − without PPL",
        "custom − without PPL",
    ]
    assert [row[0].strip("| ") for row in rows[-5:]] == [
        f"{name} − base model" for name in ("without PPL", "with PPL", *names)
    ]
    assert len(rows) == 4 + 3 + 2 + 1 + 5
    found = differences([*trio, *more], "LoRA", "without PPL")["dino"]
    assert rows[1][1].startswith(f"**−{-found.value:.3f} [")
    assert rows[1][1].endswith("]**"), "clear of zero"


def test_figures_of_different_encoders_are_not_mixed(tmp_path):
    one = evaluation(tmp_path / "a")
    other = evaluation(tmp_path / "b", "tom", encoders=PUBLIC)
    with pytest.raises(ConfigError, match=r"by toybox CLIP, .*, some by openai/clip.*can't be compared"):
        summary([one, other], "with PPL")
    third = evaluation(tmp_path / "c", condition="without PPL", encoders=PUBLIC)
    with pytest.raises(ConfigError, match="can't be compared"):
        differences([one, third], "with PPL", "without PPL")


def test_figures_of_pictures_drawn_in_different_ways_are_not_mixed(tmp_path):
    one, other = evaluation(tmp_path / "a"), evaluation(tmp_path / "b", "tom", precision="no")
    with pytest.raises(ConfigError, match=r"in 25 steps, guidance 3, bf16, some in .*, float32, which can't be comp"):
        summary([one, other], "with PPL")
    third = evaluation(tmp_path / "c", condition="without PPL", precision="no")
    with pytest.raises(ConfigError, match="can't be compared"):
        differences([one, third], "with PPL", "without PPL")
    assert ("Drawn in", "25 steps, guidance 3, bf16; 25 steps, guidance 3, float32", "not told") in protocol(
        [one, other]
    )


@pytest.mark.parametrize(
    ("metric", "low", "high", "words"),
    [
        ("dino", 0.1, 0.2, "better"),
        ("dino", -0.2, -0.1, "worse"),
        ("pres", -0.2, -0.1, "better"),
        ("pres", 0.1, 0.2, "worse"),
        ("div", -0.1, 0.2, "no clear difference"),
        ("div", None, None, "one alone tells no interval"),
    ],
)
def test_a_difference_is_better_or_worse_only_where_its_interval_says_so(metric, low, high, words):
    value = 0.1 if low is None else (low + high) / 2
    assert verdict(metric, Estimate(value, low, high, 9)) == words


# ---- Tables


def test_the_table_has_every_condition_the_ceilings_and_who_measured(trio):
    lines = comparison_table(trio).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "Real photos (ceiling)",
        "Base model",
        "Without PPL",
        "With PPL",
        "*Measured by*",
    ]
    assert lines[0].split("|")[2:-1] == [" DINO ↑ ", " CLIP-I ↑ ", " CLIP-T ↑ ", " PRES ↓ ", " DIV ↑ "]
    pres = trio[2].metrics["pres"]
    assert f"{pres.value:.3f} [{pres.low:.3f},\u00a0{pres.high:.3f}]" in lines[5]
    assert [cell.strip() for cell in lines[2].split("|")[2:-1]] == ["0.900", "0.950", "–", "–", "–"]
    assert lines[-1].count("toybox") == 5


def test_a_difference_is_told_with_its_sign_and_interval(trio):
    found = differences(trio, "with PPL", "without PPL")["pres"]
    line = next(row for row in difference_table(trio, "with PPL", "without PPL").splitlines() if "PRES" in row)
    assert f"−{-found.value:.3f} [−{-found.low:.3f},\u00a0−{-found.high:.3f}]" in line
    assert "better" in line


# ---- CSVs


def test_csvs_read_back_with_a_row_per_evaluation_and_the_averages(study, tmp_path):
    paths = write_csvs(study, tmp_path)
    assert [path.name for path in paths] == [
        "dino_results.csv",
        "clip_results.csv",
        "pres_results.csv",
        "div_results.csv",
        "all_results.csv",
    ]
    for path in paths:
        rows = rows_of(path)
        own, averages = rows[: len(study)], rows[len(study) :]
        assert [(r["subject"], r["condition"], int(r["seed"])) for r in own] == [
            (e.subject, e.condition, e.seed) for e in study
        ]
        assert [(r["subject"], r["condition"], r["seed"]) for r in averages] == [
            ("average", condition, "") for condition in (BASE, "without PPL", "with PPL")
        ]
        names = [name for name in METRICS if name in rows[0]]
        assert names == {"clip_results.csv": ["clip_i", "clip_t"], "all_results.csv": list(METRICS)}.get(
            path.name, [path.name.split("_")[0]]
        )
        for name in names:
            assert [float(r[name]) for r in own] == [e.metrics[name].value for e in study]
            assert {r[f"{name}_encoder"] for r in rows} == {study[0].encoder_of[name]}
            for row in averages:
                of = [float(r[name]) for r in own if r["condition"] == row["condition"]]
                assert float(row[name]) == pytest.approx(np.mean(of))
                assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
    assert {float(r["dino_ceiling"]) for r in rows_of(tmp_path / "dino_results.csv")} == {0.9}


def test_words_with_commas_and_quotes_survive_a_csv(tmp_path):
    made = evaluation(tmp_path / "in", 'a "dog", été')
    write_csvs([made], tmp_path)
    assert rows_of(tmp_path / "all_results.csv")[0]["subject"] == 'a "dog", été'


# ---- Costs


def happened(seconds: float = 0.5, trained: int = 1000) -> list[events.Event]:
    """What a run of two steps tells, stopped after the first and gone on with a day later."""
    first, then = 1e9, 1e9 + 86_400
    return [
        events.Stage("prepare", time=first),
        events.Metric("memory_before_bytes", 5e8, 0, time=first + 1),
        events.Stage("class images", 2, time=first + 2),
        events.Progress(2, time=first + 9),
        events.Stage("encode", time=first + 10),
        events.Metric("trainable_parameters", trained, 0, time=first + 11),
        events.Stage("train", 2, time=first + 11),
        events.Step(1, 1, 1, None, 1, 9.0, time=first + 12),
        events.Cancelled(0, time=first + 13),
        events.Stage("prepare", time=then),
        events.Metric("memory_before_bytes", 6e8, 0, time=then),
        events.Stage("train", 2, time=then),
        events.Step(1, 1, 1, None, 1, seconds, time=then + 1),
        events.Step(2, 1, 1, None, 1, seconds, time=then + 2),
        events.Metric("model_bytes", 2.5e6, 2, time=then + 2),
        events.Metric("peak_memory_bytes", 9e8, 2, time=then + 3),
        events.Finished("model", 3, time=then + 3),
    ]


def test_a_trainings_costs_are_what_its_events_say():
    cost = cost_of("rex", "with PPL", 1, happened())
    assert (cost.trainable_parameters, cost.model_bytes) == (1000, 2.5e6)
    assert cost.step_seconds == 1.0, "each step once, as it was done last"
    assert cost.class_image_seconds == 8
    assert cost.run_seconds == 13 + 3, "without the night between"
    assert cost.memory_bytes == 3e8, "of the process that finished"


def test_events_of_an_earlier_version_tell_less():
    cost = cost_of("rex", "with PPL", 1, [events.Stage("prepare", time=1.0), events.Finished("model", 5, time=6.0)])
    assert cost == Cost("rex", "with PPL", 1, None, None, 0, 0, 5.0, None, None)
    assert cost.memory_bytes is None


def test_costs_stand_beside_the_figures(study, tmp_path):
    costs = [
        cost_of(e.subject, e.condition, e.seed, happened(seconds=e.seed, trained=158_720))
        for e in study
        if e.condition == "with PPL"
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in cost_table(study, costs).splitlines()]
    assert rows[0] == [
        "",
        "DINO ↑",
        "CLIP-I ↑",
        "CLIP-T ↑",
        "PRES ↓",
        "DIV ↑",
        "trained weights",
        "file",
        "training",
        "memory",
    ]
    assert [row[0] for row in rows[2:]] == ["Base model", "Without PPL", "With PPL"]
    assert rows[2][6:] == rows[3][6:] == ["–"] * 4
    assert rows[4][6:] == ["158,720", "2.5 MB", "3 s", "300 MB"], "seeds 1 and 2: 2 s and 4 s"
    assert rows[4][1] == f"{summary(study, 'with PPL')['dino'].value:.3f}"
    written = write_report(tmp_path / "out", "Many", study, costs=costs)
    assert "<h2>What it costs</h2>" in written.html.read_text()
    assert "took 8 s on average" in written.markdown.read_text()
    assert written.csvs[-1].name == "costs.csv"
    told = rows_of(written.csvs[-1])
    assert [(row["subject"], row["seed"]) for row in told[:2]] == [("rex", "1"), ("rex", "2")]
    assert (told[-1]["subject"], told[-1]["condition"]) == ("average", "with PPL")
    assert float(told[-1]["step_seconds"]) == np.mean([float(row["step_seconds"]) for row in told[:-1]]) == 3
    assert {float(row["memory_bytes"]) for row in told} == {3e8}


def test_costs_that_are_not_known_are_left_blank(tmp_path):
    cost = cost_of("rex", "with PPL", 1, [])
    assert rows_of(write_costs([cost], tmp_path))[-1]["model_bytes"] == ""


# ---- The report


def pictures_of(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)


def test_the_report_is_whole_in_both_forms(trio, tmp_path):
    out = tmp_path / "out"
    written = write_report(out, "A study", trio, {"without PPL": [measures()], "with PPL": [measures(0.1)]})
    text, page = written.markdown.read_text(), written.html.read_text()
    assert text.startswith("# A study\n")
    assert "Each was trained from one seed" in text
    assert "costs" not in text
    assert pictures_of(text) == ["metrics.png", "gallery-00.png", "drift.png"]
    assert all((out / name).is_file() for name in pictures_of(text))
    assert page.count("<img ") == page.count('src="data:image/') == 3
    for words in ("The figures", "Differences", "The pictures", "While training", "By prompt", "published figures"):
        assert words in text
        assert words in page
    assert all(path.is_file() for path in written.csvs)
    assert {path.name for path in out.glob(".*")} == set(), "nothing half-written is left"


def test_the_page_needs_nothing_else_and_gives_no_path_away(trio, tmp_path):
    out = tmp_path / "out"
    written = write_report(out, "A study", trio, {"with PPL": [measures()]})
    for path in (written.html, written.markdown, *written.csvs):
        assert str(tmp_path) not in path.read_text(), path.name
        assert "/tmp" not in path.read_text(), path.name
    page = written.html.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_a_visitors_words_stay_words(tmp_path):
    evil = "<script>alert(1)</script> ![x](http://a.b/c.png) [l](javascript:x) **b** `c` | d_e_f | a sks dog & <b>"
    made = evaluation(tmp_path / "in", subject=evil, condition=evil, prompts=(evil, "a sks dog"))
    page = write_report(tmp_path / "out", evil, [made]).html.read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert 'http://a.b/c.png"' not in page
    assert 'href="' not in page
    assert page.count("<img ") == page.count('src="data:image/')
    assert html.unescape(page).count(evil) > 5
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page, re.DOTALL) if "alert" in cell]
    assert set(cells) <= {evil, f"<strong>{evil}</strong>"}, "a bar does not split a cell"


def test_the_published_figures_stand_beside_ours_with_their_sources(trio, tmp_path):
    text = write_report(tmp_path / "out", "A study", trio).markdown.read_text()
    assert "| DreamBooth, Stable Diffusion | 0.668 | 0.803 | 0.305 | – | – | Ruiz et al. 2022, arXiv 2208.12242" in text
    assert "| Without PPL, Imagen, 15 subjects | 0.712 | 0.828 | 0.306 | 0.664 | 0.371 | Ruiz et al. 2022" in text
    assert "| With PPL, Imagen, 15 subjects | 0.684 | 0.815 | 0.308 | 0.493 | 0.391 | Ruiz et al. 2022" in text
    assert not re.search(r"\bseed doc", text)
    assert "| **With PPL** |" in text
    assert all(line.source for line in PUBLISHED)
    assert "can't be put beside the published ones" in text
    assert "| Pictures of a subject | 2 prompts × 2 = 4 | 25 × 4 = 100 |" in text
    assert "| Base model | toybox | Imagen; Stable Diffusion |" in text


def test_public_encoders_may_be_compared_in_trend(tmp_path):
    text = write_report(tmp_path / "out", "One", [evaluation(tmp_path / "in", encoders=PUBLIC)]).markdown.read_text()
    assert "compare trends rather than digits" in text
    assert "toybox's encoders" not in text


def test_pictures_that_were_left_out_are_told(tmp_path):
    made = evaluation(tmp_path / "in", problem="held back by the model's safety checker")
    text = write_report(tmp_path / "out", "One", [made]).markdown.read_text()
    assert "Left out of all figures: 1 of 8 pictures" in text


def test_many_subjects_have_a_gallery_each_and_a_table_together(study, tmp_path):
    text = write_report(tmp_path / "out", "Many", study, {"with PPL": [measures(), measures(2)]}).markdown.read_text()
    assert [name for name in pictures_of(text) if "gallery" in name] == [f"gallery-{n:02d}.png" for n in range(3)]
    assert "## By subject" in text
    assert text.count("\n| rex | ") == 5
    assert "95 % intervals over subjects, by Student's t" in text
    assert "A figure of one subject alone has none" in text
    assert "from one seed" not in text
    assert "3 subjects; 15 models: base model, without PPL, with PPL." in text


def test_the_report_is_made_again_over_the_old_one(trio, tmp_path):
    write_report(tmp_path / "out", "First", trio)
    written = write_report(tmp_path / "out", "Second", trio[:1])
    assert written.markdown.read_text().startswith("# Second\n")
    assert "Differences" not in written.html.read_text()


# ---- Pictures


def test_the_gallery_has_a_column_per_condition_and_shows_the_class_last(trio, tmp_path):
    path = gallery(trio, tmp_path / "gallery.png", prompts=1)
    with Image.open(path) as sheet:
        colours = {colour: count for count, colour in sheet.convert("RGB").getcolors(1 << 24)}
        rows = 1 + 2
        assert colours[(128, 128, 128)] == colours[(255, 0, 0)] == colours[(0, 0, 255)] == rows * CELL * CELL
        assert sheet.width > 3 * CELL


def test_what_a_gallery_can_not_show_is_told_in_its_place(tmp_path):
    made = evaluation(tmp_path / "in", problem="held back")
    (tmp_path / "in" / "images" / "class-0.png").unlink()
    with Image.open(gallery([made], tmp_path / "gallery.png")) as sheet:
        colours = {colour: count for count, colour in sheet.convert("RGB").getcolors(1 << 24)}
    assert colours[(0, 0, 255)] == 2 * CELL * CELL, "of four pictures two are not there"


def test_a_sheet_holds_every_picture_beside_its_words(tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    Image.new("RGB", (40, 20), "blue").save(tmp_path / "blue.png")
    red, blue = Cell(str(tmp_path / "red.png")), Cell(str(tmp_path / "blue.png"))
    titles = ("Base model", "Without PPL", "With PPL")

    def lines(prompt: str) -> list[Line]:
        return [Line(prompt, 0, (red, blue, None)), Line(prompt, 1, (Cell("", "held back"), red, blue))]

    sheet = draw_sheet(titles, lines("a dog in snow"))
    colours = {colour: count for count, colour in sheet.getcolors(1 << 24)}
    assert colours[(255, 0, 0)] == 2 * CELL * CELL
    assert colours[(0, 0, 255)] == 2 * CELL * CELL // 2, "not squeezed"
    assert draw_sheet(titles, lines("a very long prompt " * 20 + "W" * 300)).height > sheet.height


def test_plots_are_pictures_of_what_was_measured(tmp_path):
    paths = [
        drift_plot({"without PPL": [measures(2), measures(1)], "with PPL": [measures(0.1)]}, tmp_path / "drift.png"),
        drift_plot({"with PPL": [measures(div=False)]}, tmp_path / "no-div.png"),
        progress_plot(measures(), tmp_path / "progress.png", bounds=(0.5, 0.2)),
        progress_plot(measures(), tmp_path / "plain.png"),
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 800
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert paths[2].read_bytes() != paths[3].read_bytes()


def test_the_loss_plot_has_a_line_for_each_loss_and_leaves_out_what_is_no_number(tmp_path):
    def drawn(**losses: dict[int, float]) -> np.ndarray:
        with Image.open(loss_plot(losses, tmp_path / "loss.png")) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    ours = {step: 1.0 / step for step in range(1, 101)}
    kin = {step: 0.5 for step in range(1, 101)}
    one, two = drawn(photos=ours), drawn(photos=ours, kin=kin)
    assert one.shape == two.shape
    assert one.shape[1] > 800
    blue = (two[..., 2] - two[..., 0] > 40).sum()
    assert blue > 500 > (one[..., 2] - one[..., 0] > 40).sum()
    assert np.array_equal(drawn(photos=ours | {101: math.nan}), one)
    assert np.array_equal(drawn(photos=dict(sorted(ours.items(), reverse=True))), one), "a resumed run's are in order"
    assert drawn(photos={}).shape == one.shape


def test_a_step_far_above_the_others_does_not_flatten_the_loss_plot(tmp_path):
    losses = {step: 0.55 for step in range(1, 101)} | {50: 4.0}
    with Image.open(loss_plot({"photos": losses}, tmp_path / "spike.png")) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    line = (pixels[..., 0] - pixels[..., 2] > 100).sum(axis=1).argmax()
    assert line < 0.55 * len(pixels), "it would lie at a seventh of the height"
