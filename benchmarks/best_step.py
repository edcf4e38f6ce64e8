"""Whether the best step, chosen by a few sample pictures, is the better one by pictures that did not choose it.

    python -m dreambooth batch configs/toybox-study.yaml
    python -m benchmarks.best_step studies/toybox-study

Draws and measures, by the paper's protocol, the best model of every run of a study that keeps one beside its last, and
lets the rule that chose it (`monitor.best_of`, with the run's own bounds) choose again by these figures.
"""

import argparse
from collections import Counter
from pathlib import Path

from dreambooth.cli import quiet_third_parties
from dreambooth.evaluate import Evaluation, evaluate, run_photos, trained_model
from dreambooth.metrics import METRICS, bootstrap
from dreambooth.monitor import Measure, best_of, read_measures
from dreambooth.runs import Run

SHOWN = ("dino", "pres", "clip_t")
"""What the rule looks at."""


def evaluated(run: Run, which: str) -> Measure:
    """The best or the last model's figures, measured now where they were not."""
    out = run.path / ("evaluation-best" if which == "best" else "evaluation")
    candidate = trained_model(run.path, run.config, which)
    subject = run.config.subject.class_noun
    for _ in evaluate(candidate, run.config, run_photos(run.path), out, subject=subject):
        pass
    return as_measure(Evaluation.load(out))


def as_measure(evaluation: Evaluation) -> Measure:
    """An evaluation's means, as the rule takes them."""
    return Measure(evaluation.step, **{name: evaluation.metrics[name].value for name in METRICS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    study = parser.parse_args().study
    quiet_third_parties()
    choices, changes = Counter(), {name: [] for name in SHOWN}
    for path in sorted(study.glob("*/*/measures.json")):
        run = Run.open(path.parent)
        measures, bounds = read_measures(run.path), run.config.evaluation
        name = f"{path.parent.parent.name}, {path.parent.name}"
        if measures.best == measures.measures[-1].step:
            choices["best is last"] += 1
            print(f"{name}: the last step is the best")
            continue
        base = Evaluation.load(path.parent.parent / "base")
        best, last = evaluated(run, "best"), evaluated(run, "last")
        limits = base.ceilings["dino"], bounds.max_drift, bounds.max_prompt_loss
        choice = "best" if best_of([as_measure(base), best, last], *limits) == best else "last"
        choices[choice] += 1
        shown = ", ".join(f"{METRICS[k].title} {getattr(best, k):.3f} / {getattr(last, k):.3f}" for k in SHOWN)
        print(f"{name}: step {best.step} / {last.step}: {shown}; new pictures choose the {choice}", flush=True)
        for key in SHOWN:
            changes[key].append(getattr(best, key) - getattr(last, key))
    print(dict(choices))
    for key, values in changes.items():
        if values:
            print(f"{METRICS[key].title}, best - last: {bootstrap(values)}")


if __name__ == "__main__":
    main()
