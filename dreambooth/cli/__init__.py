"""The command line: `dreambooth train | generate | evaluate | compare | batch | methods | merge | push …`.

Exit code 0 on success, 2 on bad input with one line on standard error, 1 otherwise.
"""

from __future__ import annotations

import click

from dreambooth import __version__
from dreambooth.cli import evaluate, generate, models, sharing, subject, train
from dreambooth.cli.program import end_in_a_line


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dreambooth")
def cli() -> None:
    """Teach a text-to-image model one subject from three to five photos."""


for _command in (
    *(train.train, train.compare, train.batch, generate.generate, evaluate.evaluate_run),
    *(models.list_methods, models.fuse, models.export, models.merge_runs),
    *(sharing.push, sharing.class_images, sharing.rotate, subject.photos, subject.tokens),
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    end_in_a_line(lambda: cli.main(standalone_mode=False))
