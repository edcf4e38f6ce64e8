"""Commands that train: one run, one subject with and without prior preservation, a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dreambooth import events
from dreambooth.cli.console import Console, stopped_by_signal, suggestion
from dreambooth.cli.options import NEW_FOLDER, PATH, config_of
from dreambooth.errors import ConfigError
from dreambooth.files import check_writable, runs_root
from dreambooth.quiet import quiet_third_parties

if TYPE_CHECKING:
    from dreambooth.config.settings import Config
    from dreambooth.evaluation.study import StudyConfig
    from dreambooth.runs.directory import Run


@click.command()
@click.argument("config_source", metavar="CONFIG.yaml")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting: --set train.steps=400.")
@click.option("--run-dir", type=NEW_FOLDER, help="Where the run is kept (default: a new one in runs/).")
@click.option(
    "--resume", is_flag=True, help="Go on with a stopped run: the one in --run-dir, or the newest with these settings."
)
def train(config_source: str, overrides: tuple[str, ...], run_dir: Path | None, resume: bool) -> None:
    """Fine-tune a model as CONFIG.yaml says.

    hub:USER/NAME, or hub:USER/NAME@REVISION, in its place repeats the training of a model that was published.
    """
    config = config_of(config_source, overrides)
    if run_dir is None and not resume:
        check_writable(runs_root(), "DREAMBOOTH_RUNS, or --run-dir")
    quiet_third_parties()
    from dreambooth.runs.directory import Run

    run = _run_to_resume(config, run_dir, config_source) if resume else Run.create(config, run_dir)
    with stopped_by_signal() as should_stop:
        click.echo(f"Run: {run.path}")
        console = Console()
        for event in run.execute(resume=resume, should_stop=should_stop):
            console.show(event)
    if run.status != "finished":
        raise click.exceptions.Exit(1)
    click.echo(f"Model: {run.path / 'model'}")
    click.echo(suggestion(config, run.path))


def _run_to_resume(config: Config, run_dir: Path | None, source: str) -> Run:
    """The run to go on with; raises `ConfigError` where its settings, or its photos, are others than asked.

    Its own config.yaml as the `source` asks to go on with what it has copied.
    """
    from dreambooth.photos.folder import join_names
    from dreambooth.runs.directory import Run, list_runs

    if run_dir is None:
        others, damaged = "", []
        for run in list_runs(runs_root()):
            try:
                if not (differing := run.differences(config)):
                    break
                others = others or f" The newest, {run.id}, has other {', '.join(differing)}."
            except ConfigError:
                damaged.append(run.id)
        else:
            if damaged:
                others += f" Damaged, or of another version: {join_names(damaged)}."
            raise ConfigError(
                f"No run in {runs_root()} has these settings.{others}", "Give its --run-dir, or leave --resume out."
            )
    else:
        run = Run.open(run_dir)
    own = run.path / "config.yaml"
    same = own.exists() and Path(source).exists() and own.samefile(source)
    remedy = f"To go on as it began, give {own} with its --run-dir; else train anew in another --run-dir."
    run.require(config, remedy, same_photos=not same)
    run.adopt(config)
    return run


@click.command()
@click.argument("config_file", metavar="CONFIG.yaml", type=PATH)
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting: --set train.steps=400.")
@click.option("--out", type=NEW_FOLDER, help="Where runs and report are kept (default: studies/<file's name>).")
def compare(config_file: Path, overrides: tuple[str, ...], out: Path | None) -> None:
    """Train one subject with and without prior preservation, else alike, and measure them and the base model.

    Where CONFIG.yaml sets drift.weight, with that penalty instead of prior preservation, too.

    What is done already is kept: after a stop, the same command goes on.
    """
    from dreambooth.config.settings import Config

    config = Config.load(config_file, overrides)
    quiet_third_parties()
    from dreambooth.evaluation.study import comparison

    _carry_out(comparison(config), out or Path("studies") / config_file.stem)


@click.command()
@click.argument("batch_file", metavar="BATCH.yaml", type=PATH)
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting: --set config.train.steps=400."
)
@click.option("--out", type=NEW_FOLDER, help="Where runs and report are kept (default: studies/<file's name>).")
def batch(batch_file: Path, overrides: tuple[str, ...], out: Path | None) -> None:
    """Train and measure many subjects under several conditions, as BATCH.yaml says.

    One that fails is told at once and at the end, and the others go on. What is done already is kept: after a stop, or
    for what failed, give the same command again.
    """
    from dreambooth.config.yaml_file import read_yaml

    read_yaml(batch_file)  # a file that is not there is told at once
    quiet_third_parties()
    from dreambooth.evaluation.study import StudyConfig

    _carry_out(StudyConfig.load(batch_file, overrides), out or Path("studies") / batch_file.stem)


def _carry_out(study: StudyConfig, out: Path) -> None:
    """Plan and run a study, and tell how it goes."""
    from dreambooth.evaluation.study import plan, run_study

    check_writable(out, "--out")
    click.echo("check …", err=True)
    cells = plan(study, out)
    done = sum(cell.evaluation is not None for cell in cells)
    click.echo(f"Study: {out}, {len(cells)} models" + (f", {done} of them done already" if done else ""))
    console, current, failures, stopped = Console(), None, [], False
    with stopped_by_signal() as should_stop:
        for cell, event in run_study(study, cells, out, should_stop=should_stop):
            if cell is not current:
                current = cell
                console.headline(f"[{cells.index(cell) + 1}/{len(cells)}] {cell}")
            match event:
                case events.Failed(_, message, hint):
                    failures.append(f"{cell}: {message} {hint}".rstrip())
                    console.headline(f"failed: {failures[-1]}")
                case events.Cancelled():
                    stopped = True
                    console.headline("Stopped; the same command goes on.")
                case events.Finished():
                    pass  # it is measured next
                case _:
                    console.show(event)
    if (out / "report.html").is_file():
        click.echo(f"Report: {out / 'report.html'}")
    if failures:
        click.echo(f"{len(failures)} of {len(cells)} failed; the same command tries them again:", err=True)
        for failure in failures:
            click.echo(failure, err=True)
    if failures or stopped:
        raise click.exceptions.Exit(1)
