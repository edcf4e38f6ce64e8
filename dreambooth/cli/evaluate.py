"""The command that measures a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dreambooth import events
from dreambooth.cli.console import Console, stopped_by_signal
from dreambooth.cli.options import NEW_FOLDER, PATH, PRECISION, WHICH, read_lines
from dreambooth.files import check_writable
from dreambooth.quiet import quiet_third_parties

if TYPE_CHECKING:
    from dreambooth.evaluation.evaluate import Evaluation
    from dreambooth.generate import Which


@click.command("evaluate")
@click.argument("run_dir", metavar="RUN", type=PATH)
@click.option(
    "--prompts",
    "prompts_file",
    metavar="FILE",
    type=PATH,
    help="What to draw, a prompt a line, with {identifier} and {class_noun} (default: the run's, else the paper's 25 "
    "or the toybox's own).",
)
@click.option("--images-per-prompt", type=click.IntRange(2, 1000), help="Pictures per prompt (default: the run's).")
@PRECISION
@WHICH
@click.option("--base", is_flag=True, help="Measure the run's base model instead, on the same subject.")
@click.option(
    "--out",
    type=NEW_FOLDER,
    help="Folder for pictures and report (default: evaluation, evaluation-best or evaluation-base in RUN).",
)
def evaluate_run(
    run_dir: Path,
    prompts_file: Path | None,
    images_per_prompt: int | None,
    precision: str | None,
    which: Which,
    base: bool,
    out: Path | None,
) -> None:
    """Measure a run by the paper's protocol: DINO, CLIP-I, CLIP-T, PRES, DIV.

    Pictures that are drawn are kept: after a stop, the same command goes on.
    """
    if base and which != "last":
        raise click.UsageError("--base measures the model before training; it has no --which.")
    quiet_third_parties()
    from dreambooth.config.settings import Config
    from dreambooth.config.yaml_file import merge
    from dreambooth.evaluation.evaluate import Evaluation, base_model, evaluate, run_photos, trained_model
    from dreambooth.evaluation.reports import write_report
    from dreambooth.metrics.measures import read_measures
    from dreambooth.runs.directory import Run

    run = Run.open(run_dir)
    prompts = read_lines(prompts_file, "prompt") if prompts_file else None
    asked = {"prompts": prompts, "images_per_prompt": images_per_prompt}
    given = {
        "evaluation": {key: value for key, value in asked.items() if value is not None},
        "sampling": {"precision": precision} if precision else {},
    }
    config = Config.from_dict(merge(run.config.model_dump(mode="json"), given), source="evaluate")
    candidate = base_model(config) if base else trained_model(run.path, config, which)
    out = out or run.path / ("evaluation-base" if base else "evaluation-best" if which == "best" else "evaluation")
    check_writable(out, "--out")
    subject = f"{config.subject.identifier} {config.subject.class_noun}"
    console = Console()
    with stopped_by_signal() as should_stop:
        for event in evaluate(candidate, config, run_photos(run.path), out, subject=subject, should_stop=should_stop):
            if isinstance(event, events.Cancelled):
                console.headline("Stopped; the same command goes on.")
                raise click.exceptions.Exit(1)
            console.show(event)
    console.headline("write report …")
    evaluation, measures = Evaluation.load(out), None if base else read_measures(run.path)
    drifted = {candidate.condition: [measures]} if measures else {}
    report = write_report(out, f"{subject}, {candidate.condition}", [evaluation], drifted)
    _print_figures(evaluation)
    for path in (report.html, report.markdown, *report.csvs):
        click.echo(path)


def _print_figures(evaluation: Evaluation) -> None:
    """A line per metric: its mean and interval, what the photos score, and what measured it."""
    from dreambooth.metrics.metrics import METRICS

    rows = [("", "mean [95 % interval]", "photos", "measured by")]
    for name, about in METRICS.items():
        ceiling = evaluation.ceilings.get(name)
        title = f"{about.title} ({about.better} is better)"
        photos = "" if ceiling is None else f"{ceiling:.3f}"
        rows.append((title, str(evaluation.metrics[name]), photos, evaluation.encoder_of[name]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if any(estimate.low is None for estimate in evaluation.metrics.values()):
        click.echo("One prompt, or for PRES one picture, tells no interval.")
